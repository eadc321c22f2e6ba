"""Runs of the pipeline in MLflow, and the names that it shows there.

MLflow is imported with the first run: that takes seconds.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.tracking import Tracker, track_run

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
    """Log runs to MLflow."""
    experiment: str = "sharp-vae-mri"
    """Name of the experiment, and the first part of the registered decoder's name."""


def track(
    config: TrackingConfig, work: Path, name: str, **options: Any
) -> contextlib.AbstractContextManager[Tracker]:
    """A run for a block, with the options of `track_run`; keeps nothing where tracking is off."""
    if not config.enabled:
        return contextlib.nullcontext(Tracker())
    instead = "--tracking.enabled false"
    return track_run(
        config.experiment, work, name, about=EXPERIMENT_NOTE, instead=instead, **options
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def epoch_name(key: str) -> str:
    """The name of an epoch's metric: charts are grouped by what is before the /.

    Example:
        >>> epoch_name("rate"), epoch_name("validation_psnr")
        ('train/rate', 'validation/psnr')
    """
    plain = key.removeprefix("validation_")
    return f"{'train' if plain == key else 'validation'}/{plain}"


def score_name(key: str, split: str = "test") -> str:
    """The name of a metric of metrics.json; `split` says which subjects were scored.

    Example:
        >>> score_name("psnr"), score_name("sample_kid_coarse"), score_name("training_kid_coarse")
        ('test/psnr', 'samples/kid_coarse', 'samples/training_kid_coarse')
        >>> score_name("calibration_fitted_crps")
        'calibration/fitted_crps'
    """
    if key.startswith("training_"):  # what real slices score in place of samples
        return f"samples/{key}"
    for prefix, group in (("sample_", "samples"), ("calibration_", "calibration")):
        if key.startswith(prefix):
            return f"{group}/{key.removeprefix(prefix)}"
    return f"{split}/{key}"
