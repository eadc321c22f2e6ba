"""How both packages reach MLflow: one place, one lock, no telemetry.

MLflow is imported late: its import takes seconds.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.files import locked


def quieten_mlflow() -> None:
    """Before MLflow's first import: no telemetry, and no message about what is raised as well."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def mlflow_address(work: Path) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, else the database under `work`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work.resolve()}/mlflow.db"


def mlflow_client(experiment: str, work: Path) -> tuple[Any, str]:
    """A client and the experiment's id. One process at a time creates the database.

    Artifacts lie beside the database; a server chooses its own. Raises what MLflow raises.
    """
    quieten_mlflow()
    from mlflow import MlflowClient

    uri, artifacts = mlflow_address(work), None
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///")).resolve()
        artifacts = str(database.parent / "mlartifacts")
    with locked(work / ".mlflow.lock"):
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if found is not None:
            return client, found.experiment_id
        return client, client.create_experiment(experiment, artifact_location=artifacts)


def flat_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested mappings, and their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
