"""MLflow, of both packages: one place, one lock, no telemetry, no password in any text.

MLflow is imported late: its import takes seconds.
"""

import contextlib
import functools
import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from data_prep.common.errors import InputError
from data_prep.common.files import locked, usable_environment

# While a connection is made: that nobody is there is known in seconds. Variables that the user has
# set win. Later requests have MLflow's own patience, minutes, which a server's restart may take.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "6"}
DATABASE_ATTEMPTS = 6  # in 6 seconds

LONGEST_REASON = 200
LONGEST_DIGEST, LONGEST_NOTE = 36, 8000  # MLflow's

# Tags that MLflow's pages read: a description in Markdown, and what an experiment is about. Without
# the second MLflow asks, or takes the experiment for one of language models.
NOTE, KIND, MODEL_TRAINING = (
    "mlflow.note.content",
    "mlflow.experimentKind",
    "custom_model_development",
)
# MLflow's own variable; here the measuring is on unless it says false.
SYSTEM = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"

# Columns of MLflow's database that hold the address of a folder of artifacts.
ARTIFACTS = "mlartifacts"
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)

HIDDEN = "***"
# Variables of the environment that hold an address, and those that hold a secret itself.
WITH_SECRETS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
SECRETS = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "DATABRICKS_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
)
# A shorter word is part of too many others to be replaced wherever it stands.
SHORTEST = 4


def shown_address(address: str) -> str:
    """An address as it may be printed: without user, password, query and fragment.

    >>> shown_address("http://me:secret@host:5000/path?token=abc")
    'http://***@host:5000/path?***'
    """
    scheme, mark, rest = address.partition("://")
    if not mark or rest.startswith("/"):  # a file's name may hold any sign
        return address
    user, at, host = rest.rpartition("@")  # a password may hold any sign, if wrongly
    place = re.split("[?#]", host, maxsplit=1)[0]
    rest = f"{host[len(place)]}{HIDDEN}" if len(host) > len(place) else ""
    return f"{scheme}://{HIDDEN + at if user else ''}{place}{rest}"


def without_secrets(text: str) -> str:
    """A text without the passwords and tokens of this process's environment, and of any address."""
    words = [os.environ.get(name, "") for name in SECRETS]
    for name in WITH_SECRETS:
        rest = os.environ.get(name, "").partition("://")[2]
        user, _, host = rest.rpartition("@")
        first, _, password = user.partition(":")
        words += [user, password or first]  # a user without a password is a token
        for part in re.split(r"[?#&;]", host)[1:]:
            words += [part, part.partition("=")[2]]
    for word in sorted({*words, *map(unquote, words)}, key=len, reverse=True):
        if len(word) >= SHORTEST:
            text = text.replace(word, HIDDEN)
    return re.sub(r"(?<=://)[^/\s'\"]*@", f"{HIDDEN}@", text)


def quieten_mlflow() -> None:
    """Before MLflow's first import: no telemetry, and no message about what is raised as well."""
    usable_environment()
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if shown_address(address) != address:  # MLflow prints a run's address, as it was given
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


def mlflow_address(work: Path) -> str:
    """MLFLOW_TRACKING_URI, else the address of the database under `work`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work.resolve()}/mlflow.db"


@contextlib.contextmanager
def mlflow_errors(what: str, way_out: str) -> Iterator[None]:
    """A block in which MLflow's errors are InputErrors: "what (reason): way_out"."""
    quieten_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # of a file that is no database

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        lines = str(error).splitlines() or [""]
        line = next((line for line in lines if "Error" in line), lines[0]) or type(error).__name__
        reason = without_secrets(line)[:LONGEST_REASON]
        # The cause may repeat a password.
        raise InputError(f"{what} ({reason}): {way_out}") from None


def mlflow_failures() -> contextlib.AbstractContextManager[None]:
    """A block in which a failure of MLflow is an InputError: a full disk, a lost server."""
    return mlflow_errors(
        "MLflow's database or artifacts can't be written",
        "make room, or check the server, then give the same command again",
    )


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """A block in which requests to MLflow give up after seconds, not minutes."""
    from mlflow.store.db import utils

    chosen = {key: value for key, value in PATIENCE.items() if key not in os.environ}
    attempts, utils.MAX_RETRY_COUNT = utils.MAX_RETRY_COUNT, DATABASE_ATTEMPTS
    os.environ.update(chosen)
    try:
        yield
    finally:
        utils.MAX_RETRY_COUNT = attempts
        for key in chosen:
            os.environ.pop(key, None)


def readdress(work: Path) -> None:
    """Make the addresses in `work`/mlflow.db those of this folder, if it was moved or copied.

    MLflow's addresses are absolute: after a move pictures and models would be gone, and an
    evaluation in a copy would write into the original. A folder that is seen at two places at once
    (a mount), and artifacts that stayed where they are, keep their addresses. One transaction;
    raises OSError where the database can't be written.
    """
    database = work.resolve() / "mlflow.db"
    if not database.exists():
        return
    homes: list[Path] = []
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection:
        # Begun by another process; or no database, which MLflow says.
        with contextlib.suppress(sqlite3.Error):
            rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments")
            homes = [home for (place,) in rows if (home := _former_home(place or "", database))]
        if not homes:
            return
        try:
            # Two processes do it one after the other: the second has nothing to change.
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                for home in homes:
                    old, new = str(home / ARTIFACTS), str(database.parent / ARTIFACTS)
                    for table, column in ADDRESSES:
                        connection.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                        )
                    stores = [
                        f'"uri": {json.dumps(f"{place}/stores/")[:-1]}'
                        for place in (home, database.parent)
                    ]
                    connection.execute(
                        "UPDATE datasets SET dataset_source = replace(dataset_source, ?, ?)", stores
                    )
        except sqlite3.Error as error:
            raise OSError(f"{database} was moved or copied from {homes[0]}: {error}") from None


def _former_home(address: str, database: Path) -> Path | None:
    """The work folder of an address, where the database was moved away or copied from there."""
    place, home = Path(address), Path(address).parent
    if not place.is_absolute() or place.name != ARTIFACTS or home == database.parent:
        return None
    there = home / database.name
    if os.path.exists(there):
        return None if there.samefile(database) else home
    return None if os.path.exists(place) else home


@contextlib.contextmanager
def open_mlflow(work: Path) -> Iterator[Any]:
    """A client of the server or database, for a block that fails in seconds if nobody is there.

    Of the database under `work`, addresses are put right first. Raises what MLflow raises.
    """
    quieten_mlflow()
    from mlflow import MlflowClient
    from mlflow.tracking._tracking_service import utils

    # By run, whatever the database: of the original, that is, for a copy opened later.
    utils._artifact_repos_cache.clear()
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        readdress(work)
    with impatient():
        yield MlflowClient(mlflow_address(work))


def mlflow_client(experiment: str, work: Path, note: str = "") -> tuple[Any, str]:
    """A client and the experiment's id. One process at a time creates the database.

    Artifacts lie beside the database; a server chooses its own. Raises what MLflow raises.

    note: description of the experiment, unless somebody has written one.
    """
    uri, artifacts = mlflow_address(work), None
    if uri.startswith("sqlite:///"):
        artifacts = str(Path(uri.removeprefix("sqlite:///")).resolve().parent / ARTIFACTS)
    about = {KIND: MODEL_TRAINING} | ({NOTE: note} if note else {})
    with locked(work / ".mlflow.lock"), open_mlflow(work) as client:
        known = client.get_experiment_by_name(experiment)
        if known is None:
            made = client.create_experiment(experiment, artifact_location=artifacts, tags=about)
            return client, made
        if known.lifecycle_stage == "deleted":
            client.restore_experiment(known.experiment_id)
        for key in about.keys() - known.tags.keys():
            client.set_experiment_tag(known.experiment_id, key, about[key])
        return client, known.experiment_id


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
    """Open a run for a block, whose end sets the run's status. InputError if MLflow can't be used.

    Args:
        experiment: its name.
        work: the folder whose database is used without MLFLOW_TRACKING_URI.
        name: the run's.
        about: the experiment's description.
        instead: the option that does without MLflow, for the error.
        parent: id of the run that this one is nested in.
        continued: id of a run to continue, or a new one if the database lacks it.
        tags: of a new run.
        machine: whether the machine's load is logged, too.
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
    except BaseException as error:
        if not isinstance(error, Exception):  # a signal
            status = "KILLED"
        raise
    finally:
        # The first error must stay the one that is raised.
        with mlflow_failures() if status == "FINISHED" else contextlib.suppress(Exception):
            client.set_terminated(run_id, status)


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


def flat_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested mappings, and their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
