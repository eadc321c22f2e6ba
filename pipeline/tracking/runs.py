"""Runs of the pipeline in MLflow, which is imported with the first: that takes seconds."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.mlflow_runs import Tracker, track_run

# What MLflow's pages call the view of trainings; without it they open as for language models.
VIEW = "workflowType=machine_learning"
EXPERIMENT_NOTE = """\
Trainings, with their evaluations nested below (+). Where `simulated` is true, of no real brains.

- Groups of metrics: `train/`, `validation/` by epoch; `test/`, `samples/`, `calibration/` of the
  evaluation. To sort the list by one, add it under *Columns*.
- To filter the list: `tags.stage = 'training' and tags.term = 'blur'`; also `dataset`, `form`,
  `size`, `seed`, `commit`, `clean`, `run`.
- The trainings of a comparison are nested below it.
"""


@dataclass(frozen=True)
class TrackingConfig:
    """The `tracking` section."""

    enabled: bool = True
    """Whether runs are logged to MLflow."""
    experiment: str = "sharp-vae-mri"
    """Name of the experiment, and the first part of the registered decoder's name."""


def track(
    config: TrackingConfig,
    work: Path,
    name: str,
    *,
    parent: str | None = None,
    continued: str | None = None,
    tags: Mapping[str, str] | None = None,
    machine: bool = False,
) -> contextlib.AbstractContextManager[Tracker]:
    """A run for a block, as `track_run` says, or nothing where tracking is off."""
    if not config.enabled:
        return contextlib.nullcontext(Tracker())
    return track_run(
        config.experiment,
        work,
        name,
        about=EXPERIMENT_NOTE,
        instead="--tracking.enabled false",
        parent=parent,
        continued=continued,
        tags=tags,
        machine=machine,
    )
