"""Everything that touches MLflow, except the registry of decoders (tracking.registry).

A `Tracker` is one MLflow run. Metrics are collected and sent in batches. MLflow is imported when
the first tracker is opened: the import is slow, and other commands do not need it.
"""

import contextlib
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.mlflow_connection import (
    NOTE,
    flat_keys,
    mlflow_address,
    mlflow_client,
    mlflow_reason,
    quieten_mlflow,
)
from data_prep.common.redaction import shown_address
from pipeline.errors import InputError, Stopped
from pipeline.tracking.notes import with_section
from pipeline.tracking.system import system_metrics

# MLflow's limits on one request, see its REST API's runs/log-batch.
METRICS_PER_BATCH = 1000
PARAMETERS_PER_BATCH = 100
LONGEST_PARAMETER = 6000
LONGEST_DIGEST = 36

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


class NoTracker:
    """Accepts everything and keeps nothing: tracking is off."""

    run_id: str | None = None
    parent: "NoTracker"

    def __init__(self) -> None:
        self.parent = self

    def parameters(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...

    def latest(self, values: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def text(self, content: str, name: str) -> None: ...

    def table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None: ...

    def file(self, path: Path, folder: str) -> None: ...

    def image(self, image: Any, key: str, step: int) -> None: ...

    def dataset(self, name: str, digest: str, path: Path, context: str) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def note(self, heading: str, body: str, first: bool = False) -> None: ...

    def link(self) -> str:
        return ""


@contextlib.contextmanager
def mlflow_failures() -> Iterator[None]:
    """A block in which a failure of MLflow is an InputError: a full disk, a lost server."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise InputError(
            f"MLflow's database or artifacts can't be written ({mlflow_reason(error)}): make room, "
            "or check the server, then give the same command again"
        ) from None  # the cause may repeat a password


class Tracker(NoTracker):
    """One MLflow run, new or continued.

    A continued run may repeat steps that were tracked before it stopped: these are not logged
    again.
    """

    def __init__(
        self, client: Any, run_id: str, continued: bool = False, parent: str | None = None
    ) -> None:
        self.run_id: str = run_id
        self.parent: NoTracker = Tracker(client, parent) if parent else NoTracker()
        """The run that this one is nested in; keeps nothing where there is none."""
        self._client = client
        self._pending: list[Any] = []
        self._logged_steps: dict[str, set[int]] | None = {} if continued else None

    @mlflow_failures()
    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested sections flattened to dotted names."""
        from mlflow.entities import Param

        flat = [
            Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in sorted(flat_keys(values))
        ]
        for start in range(0, len(flat), PARAMETERS_PER_BATCH):
            batch = flat[start : start + PARAMETERS_PER_BATCH]
            self._client.log_batch(self.run_id, params=batch)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Collect metrics of a step; `flush` sends them, or a full batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [
            Metric(key, float(value), now, step)
            for key, value in values.items()
            if step not in self._steps(key)
        ]
        if len(self._pending) >= METRICS_PER_BATCH:
            self.flush()

    @mlflow_failures()
    def latest(self, values: Mapping[str, float]) -> None:
        """Log metrics without a step, in place of earlier values."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, 0) for key, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    @mlflow_failures()
    def _steps(self, key: str) -> set[int]:
        """Steps of a metric that a continued run already has."""
        if self._logged_steps is None:
            return set()
        if key not in self._logged_steps:
            history = self._client.get_metric_history(self.run_id, key)
            self._logged_steps[key] = {metric.step for metric in history}
        return self._logged_steps[key]

    @mlflow_failures()
    def flush(self) -> None:
        """Send the metrics collected so far."""
        pending, self._pending = self._pending, []
        for start in range(0, len(pending), METRICS_PER_BATCH):
            self._client.log_batch(self.run_id, metrics=pending[start : start + METRICS_PER_BATCH])

    @mlflow_failures()
    def text(self, content: str, name: str) -> None:
        """Log a text as an artifact."""
        self._client.log_text(self.run_id, content, name)

    @mlflow_failures()
    def table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Log a table as an artifact, a .json that MLflow shows as such. For new runs only."""
        self._client.log_table(self.run_id, dict(columns), name)

    @mlflow_failures()
    def file(self, path: Path, folder: str) -> None:
        """Log a file as an artifact, in a folder of the run's."""
        self._client.log_artifact(self.run_id, str(path), folder)

    @mlflow_failures()
    def image(self, image: Any, key: str, step: int) -> None:
        """Log an image, uint8 (H,W,3), of a step."""
        if self._logged_steps is not None:
            files = self._client.list_artifacts(self.run_id, "images")
            name = re.compile(rf"{re.escape(key)}[+%]step[+%]{step}[+%]")  # MLflow's, of 3.x
            if any(name.match(Path(file.path).name) for file in files):
                return
        self._client.log_image(self.run_id, image, key=key, step=step)

    @mlflow_failures()
    def dataset(self, name: str, digest: str, path: Path, context: str) -> None:
        """Log a prepared store as the run's data set; context is training or evaluation."""
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two resolvers match a local path, alike
            source = resolve_dataset_source(str(path.resolve()))
        dataset = MetaDataset(  # type: ignore[abstract]
            source, name=name, digest=digest[:LONGEST_DIGEST]
        )
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(
            self.run_id, datasets=[DatasetInput(dataset._to_mlflow_entity(), [tag])]
        )

    @mlflow_failures()
    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        from mlflow.entities import RunTag

        tags = [RunTag(key, value) for key, value in values.items()]
        self._client.log_batch(self.run_id, tags=tags)

    @mlflow_failures()
    def note(self, heading: str, body: str, first: bool = False) -> None:
        """Write a section of the run's description, Markdown, in place of an earlier one.

        first: before the other sections.
        """
        note = self._client.get_run(self.run_id).data.tags.get(NOTE, "")
        self._client.set_tag(self.run_id, NOTE, with_section(note, heading, body, first))

    @mlflow_failures()
    def link(self) -> str:
        """The run's page, an address within MLflow's own pages."""
        experiment = self._client.get_run(self.run_id).info.experiment_id
        return f"#/experiments/{experiment}/runs/{self.run_id}?{VIEW}"


@contextlib.contextmanager
def track(
    config: TrackingConfig,
    work: Path,
    name: str,
    *,
    parent: str | None = None,
    continued: str | None = None,
    tags: Mapping[str, str] | None = None,
    machine: bool = False,
) -> Iterator[NoTracker]:
    """Open a run for a block, whose end sets the run's status.

    parent: id of the run that this one is nested in; continued: id of a run to continue, or a new
    one if the database lacks it; tags: of a new run; machine: whether the machine's load is logged,
    too. Raises InputError if MLflow can't be used.
    """
    if not config.enabled:
        yield NoTracker()
        return
    client, experiment = connect(config, work)
    with mlflow_failures():
        run_id = found = active_run(client, continued)
        parent = active_run(client, parent)
    if run_id is None:
        nested = {"mlflow.parentRunId": parent} if parent else {}
        with mlflow_failures():
            run_id = client.create_run(
                experiment, tags={**(tags or {}), **nested, "mlflow.runName": name}
            ).info.run_id
    with mlflow_failures():
        client.update_run(run_id, status="RUNNING")
    tracker = Tracker(client, run_id, continued=found is not None, parent=parent)
    measured = (
        system_metrics(run_id, mlflow_address(work), continued=found is not None)
        if machine
        else contextlib.nullcontext()
    )
    try:
        with measured:
            yield tracker
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | Stopped)
        with contextlib.suppress(Exception):  # the first error must stay the one that is raised
            tracker.flush()
            client.set_terminated(run_id, "KILLED" if stopped else "FAILED")
        raise
    tracker.flush()
    with mlflow_failures():
        client.set_terminated(run_id, "FINISHED")


def connect(
    config: TrackingConfig, work: Path, instead: str = "--tracking.enabled false"
) -> tuple[Any, str]:
    """A client and the experiment's id. One process at a time creates the database.

    instead: the option that an error suggests, to do without MLflow.
    """
    quieten_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # of a file that is no database

    try:
        return mlflow_client(config.experiment, work, EXPERIMENT_NOTE)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise InputError(
            f"MLflow can't be used at {shown_address(mlflow_address(work))} "
            f"({mlflow_reason(error)}): set MLFLOW_TRACKING_URI, or pass {instead}"
        ) from None  # the cause may repeat a password


def active_run(client: Any, run_id: str | None) -> str | None:
    """`run_id` if the database has that run and it is not deleted, else None."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise  # a server that is briefly away must not cost the run its history
        return None
    return run_id if run.info.lifecycle_stage == "active" else None
