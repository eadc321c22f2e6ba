"""A run in MLflow, of both packages: parameters, metrics, pictures, files, the machine's load."""

import contextlib
import functools
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.common.mlflow_connection import (
    NOTE,
    flat_keys,
    mlflow_address,
    mlflow_client,
    mlflow_errors,
)
from data_prep.common.redaction import shown_address

LONGEST_DIGEST, LONGEST_NOTE = 36, 8000  # MLflow's

# MLflow's own variable; here the measuring is on unless it says false.
SYSTEM = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"


class Tracker:
    """A run in MLflow, new or continued; without a client it keeps nothing: tracking is off.

    A continued run may repeat steps that were tracked before it stopped: these are not logged
    again. Each method is one request. They raise InputError where MLflow fails.
    """

    def __init__(
        self,
        client: Any = None,
        run_id: str | None = None,
        parent: str | None = None,
        continued: bool = False,
    ) -> None:
        self.run_id = run_id
        self._client, self._parent, self._continued = client, parent, continued
        self._steps = functools.cache(self._logged_steps)

    @property
    def parent(self) -> "Tracker":
        """The run that this one is nested in; keeps nothing where there is none."""
        return Tracker(self._client if self._parent else None, self._parent)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested sections flattened to dotted names."""
        self._log("log_batch", params=[(key, str(v)) for key, v in sorted(flat_keys(values))])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics: of a step, from 1, or in place of earlier values."""
        now = int(time.time() * 1000)
        new = [item for item in values.items() if not (step and step in self._steps(item[0]))]
        self._log("log_batch", metrics=[(key, float(value), now, step) for key, value in new])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._log("log_batch", tags=[*values.items()])

    def note(self, text: str) -> None:
        """Describe the run, in Markdown."""
        self.tags({NOTE: text[:LONGEST_NOTE]})

    def text(self, content: str, name: str) -> None:
        """Log a text as an artifact."""
        self._log("log_text", content, name)

    def table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Log a table as an artifact, a .json that MLflow shows as such. For new runs only."""
        self._log("log_table", dict(columns), name)

    def file(self, path: Path, folder: str) -> None:
        """Log a file as an artifact, in a folder of the run's."""
        self._log("log_artifact", str(path), folder)

    def image(self, image: Any, key: str, step: int) -> None:
        """Log an image, uint8 (H,W,3), of a step."""
        name = re.compile(rf"images/{re.escape(key)}[+%]step[+%]{step}[+%]")  # MLflow's, of 3.x
        files = self._log("list_artifacts", "images") if self._continued else ()
        if not any(name.match(file.path) for file in files):
            self._log("log_image", image, key=key, step=step)

    def dataset(self, name: str, digest: str, path: Path, context: str) -> None:
        """Log a prepared store as the run's data set; context is training or evaluation."""
        if self._client is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": str(path.resolve())})
        dataset = Dataset(name, digest[:LONGEST_DIGEST], "local", source)
        tags = [InputTag("mlflow.data.context", context)]
        self._log("log_inputs", datasets=[DatasetInput(dataset, tags)])

    def _logged_steps(self, key: str) -> set[int]:
        """Steps of a metric that a continued run already has."""
        history = self._log("get_metric_history", key) if self._continued else ()
        return {metric.step for metric in history}

    def _log(self, method: str, *values: Any, **named: Any) -> Any:
        """Call a method of the client for this run."""
        if self._client is None:
            return ()
        from mlflow.entities import Metric, Param, RunTag

        if method == "log_batch":
            kinds = {"params": Param, "metrics": Metric, "tags": RunTag}
            named = {kind: [kinds[kind](*row) for row in rows] for kind, rows in named.items()}
        with mlflow_failures():
            return getattr(self._client, method)(self.run_id, *values, **named)


def mlflow_failures() -> contextlib.AbstractContextManager[None]:
    """A block in which a failure of MLflow is an InputError: a full disk, a lost server."""
    return mlflow_errors(
        "MLflow's database or artifacts can't be written",
        "make room, or check the server, then give the same command again",
    )


@contextlib.contextmanager
def track_run(
    experiment: str,
    work: Path,
    name: str,
    *,
    about: str = "",
    instead: str,
    parent: str | None = None,
    continued: str | None = None,
    tags: Mapping[str, str] | None = None,
    machine: bool = False,
) -> Iterator[Tracker]:
    """Open a run for a block, whose end sets the run's status.

    about: the experiment's description; instead: the option that does without MLflow, for the
    error; parent: id of the run that this one is nested in; continued: id of a run to continue,
    or a new one if the database lacks it; tags: of a new run; machine: whether the machine's load
    is logged, too. Raises InputError if MLflow can't be used.
    """
    client, experiment_id = connect_mlflow(experiment, work, about, instead)
    with mlflow_failures():
        run_id, parent = active_run(client, continued), active_run(client, parent)
        known = run_id is not None
        if run_id is None:
            nested = {"mlflow.parentRunId": parent} if parent else {}
            tags = {**(tags or {}), **nested, "mlflow.runName": name}
            run_id = client.create_run(experiment_id, tags=tags).info.run_id
        client.update_run(run_id, status="RUNNING")
    status = "FAILED"
    try:
        with _load(run_id, mlflow_address(work), known) if machine else contextlib.nullcontext():
            yield Tracker(client, run_id, parent, known)
        status = "FINISHED"
    except Exception:
        raise
    except BaseException:  # a signal
        status = "KILLED"
        raise
    finally:
        # The first error must stay the one that is raised.
        with mlflow_failures() if status == "FINISHED" else contextlib.suppress(Exception):
            client.set_terminated(run_id, status)


def connect_mlflow(experiment: str, work: Path, about: str, instead: str) -> tuple[Any, str]:
    """A client and the experiment's id. Raises InputError, which suggests the option `instead`."""
    with mlflow_errors(
        f"MLflow can't be used at {shown_address(mlflow_address(work))}",
        f"set MLFLOW_TRACKING_URI, or pass {instead}",
    ):
        return mlflow_client(experiment, work, about)


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


@contextlib.contextmanager
def _load(run_id: str, uri: str, continued: bool) -> Iterator[None]:
    """The load of processor, memory, disk, network and GPUs, `system/…`, every 10 seconds.

    It needs psutil, for GPUs also nvidia-ml-py. Without them, or where it fails (a driver, a
    container without /proc), the run goes on and nothing is said.
    """
    monitor = None
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    if os.environ.get(SYSTEM, "true").strip().lower() not in ("false", "0"):
        with contextlib.suppress(Exception):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(run_id, resume_logging=continued, tracking_uri=uri)
            monitor.start()
    try:
        yield
    finally:
        if monitor is not None:
            with contextlib.suppress(Exception):
                monitor.finish()
