"""How both packages reach MLflow: one place, one lock, no telemetry, no password in any text.

MLflow is imported late: its import takes seconds.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.files import locked
from data_prep.redaction import shown_address, without_secrets

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


def quieten_mlflow() -> None:
    """Before MLflow's first import: no telemetry, and no message about what is raised as well."""
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


def mlflow_client(experiment: str, work: Path, note: str = "") -> tuple[Any, str]:
    """A client and the experiment's id. One process at a time creates the database.

    Artifacts lie beside the database; a server chooses its own. Raises what MLflow raises.

    note: description of the experiment, unless somebody has written one.
    """
    quieten_mlflow()
    from mlflow import MlflowClient

    uri, artifacts = mlflow_address(work), None
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///")).resolve()
        artifacts = str(database.parent / "mlartifacts")
    about = {KIND: MODEL_TRAINING} | ({NOTE: note} if note else {})
    with locked(work / ".mlflow.lock"), impatient():
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if found is None:
            made = client.create_experiment(experiment, artifact_location=artifacts, tags=about)
            return client, made
        for key in about.keys() - found.tags.keys():
            client.set_experiment_tag(found.experiment_id, key, about[key])
        return client, found.experiment_id


def flat_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested mappings, and their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
