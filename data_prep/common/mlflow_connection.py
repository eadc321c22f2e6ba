"""How both packages reach MLflow: one place, one lock, no telemetry, no password in any text.

MLflow is imported late: its import takes seconds.
"""

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.common.errors import InputError
from data_prep.common.files import locked, usable_environment
from data_prep.common.redaction import shown_address, without_secrets

# While a connection is made: that nobody is there is known in seconds. Variables that the user has
# set win. Later requests have MLflow's own patience, minutes, which a server's restart may take.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "6"}
DATABASE_ATTEMPTS = 6  # in 6 seconds

LONGEST_REASON = 200

# Tags that MLflow's pages read: a description in Markdown, and what an experiment is about. Without
# the second MLflow asks, or takes the experiment for one of language models.
NOTE, KIND, MODEL_TRAINING = (
    "mlflow.note.content", "mlflow.experimentKind", "custom_model_development",
)  # fmt: skip

# Columns of MLflow's database that hold the address of a folder of artifacts.
ARTIFACTS = "mlartifacts"
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def quieten_mlflow() -> None:
    """Before MLflow's first import: no telemetry, and no message about what is raised as well."""
    usable_environment()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if shown_address(address) != address:  # MLflow prints a run's address, as it was given
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


def mlflow_address(work: Path) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, else the database under `work`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work.resolve()}/mlflow.db"


def mlflow_reason(error: BaseException) -> str:
    """What is wrong with MLflow, in one line that holds no password."""
    lines = str(error).splitlines() or [type(error).__name__]
    line = next((line for line in lines if "Error" in line), lines[0]) or type(error).__name__
    return without_secrets(line)[:LONGEST_REASON]


@contextlib.contextmanager
def mlflow_errors(what: str, way_out: str) -> Iterator[None]:
    """A block in which MLflow's errors are InputErrors: "what (reason): way_out"."""
    quieten_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # of a file that is no database

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        # The cause may repeat a password.
        raise InputError(f"{what} ({mlflow_reason(error)}): {way_out}") from None


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
    if not (homes := _former_homes(database)):
        return
    try:
        # Two processes do it one after the other: the second has nothing to change.
        with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
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


def _former_homes(database: Path) -> list[Path]:
    """Work folders that a database holds addresses of, and that are not where it is now."""
    if not database.exists():
        return []
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            rows = connection.execute(
                "SELECT DISTINCT artifact_location FROM experiments"
            ).fetchall()
    except sqlite3.Error:  # begun by another process; no database, which MLflow says
        return []
    places = [Path(row[0]) for row in rows if row[0]]
    homes = [place.parent for place in places if place.is_absolute() and place.name == ARTIFACTS]
    return [home for home in homes if home != database.parent and _left(home, database)]


def _left(home: Path, database: Path) -> bool:
    """Whether a database was moved away from `home`, or copied from there."""
    there = home / database.name
    if os.path.exists(there):
        return not there.samefile(database)
    return not os.path.exists(home / ARTIFACTS)


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


def flat_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested mappings, and their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
