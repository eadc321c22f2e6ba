"""What preparation logs to MLflow: one run per change of a store, with its report."""

from collections import Counter
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.mlflow_connection import (
    NOTE,
    flat_keys,
    mlflow_address,
    mlflow_client,
    mlflow_reason,
)
from data_prep.common.provenance import code_version
from data_prep.common.redaction import shown_address
from data_prep.report.writing import FOLDER, PAGE, TABLE
from data_prep.split import SPLITS
from data_prep.store import Store

EXPERIMENT = "sharp-vae-mri-preparation"
EXPERIMENT_NOTE = """\
Prepared stores: a run for each time that a store changed. Its quality report is under *Artifacts*.
"""

# MLflow's limits, see its REST API's runs/log-batch.
PARAMETERS_PER_BATCH = 100
LONGEST_PARAMETER = 6000


def track(store: Store, work: Path) -> None:
    """Log a finished store: its report, counts, configuration and digest.

    The run is named like the store, in the experiment EXPERIMENT at MLFLOW_TRACKING_URI, or in
    work/mlflow.db with artifacts beside it.

    Raises:
        InputError: MLflow cannot be used. The store is not touched.
    """
    try:
        _log(store, work)
    except Exception as error:  # a full disk, a server that is gone, an extra that is broken
        raise InputError(
            f"the store {store.name} is finished, but MLflow can't be used at "
            f"{shown_address(mlflow_address(work))} ({mlflow_reason(error)}): check that it exists "
            "and can be written; prepare.track false skips it"
        ) from None  # the cause may repeat a password


def _log(store: Store, work: Path) -> None:
    client, experiment = mlflow_client(EXPERIMENT, work, EXPERIMENT_NOTE)
    from mlflow.entities import Metric, Param

    tags = {"mlflow.runName": store.name, NOTE: note(store), **tags_of(store)}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    status = "FAILED"
    try:
        params = [
            Param(key, str(value)[:LONGEST_PARAMETER])
            for key, value in sorted(flat_keys({"prepare": store.manifest["configuration"]}))
        ]
        for start in range(0, len(params), PARAMETERS_PER_BATCH):
            client.log_batch(run_id, params=params[start : start + PARAMETERS_PER_BATCH])
        metrics = [Metric(key, float(value), 0, 0) for key, value in counts(store).items()]
        client.log_batch(run_id, metrics=metrics)
        for name in (PAGE, TABLE):
            client.log_artifact(run_id, str(store.path / FOLDER / name), FOLDER)
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)


def tags_of(store: Store) -> dict[str, str]:
    """Tags to filter the list of runs by."""
    return {
        "stage": "preparation",
        "dataset": store.name,
        "store_digest": store.digest,
        "source": str(store.manifest["configuration"].get("source", "")),
        "size": str(store.image_shape[-1]),
        "simulated": str(store.simulated).lower(),
        **code_version(),
    }


def nouns(store: Store) -> tuple[str, str]:
    """What the store's entries and their images are called."""
    return ("blocks", "images") if store.image_set else ("subjects", "slices")


def counts(store: Store) -> dict[str, int]:
    """What is in the store and what is not, under the names of the metrics."""
    found = {"quarantined/all": len(store.quarantined)}
    for reason, number in Counter(q.reason for q in store.quarantined).items():
        found[f"quarantined/{reason}"] = number
    whole, part = nouns(store)
    for split in SPLITS:
        entries = store.subjects(split)
        found[f"{whole}/{split}"] = len(entries)
        found[f"{part}/{split}"] = sum(len(entry.slice_indices) for entry in entries)
    return found


def note(store: Store) -> str:
    """The run's description: what is in the store, and what to look at."""
    found, (whole, part) = counts(store), nouns(store)
    _, height, width = store.image_shape
    lines = ["**The people of this store are simulated.**", ""] if store.simulated else []
    lines += [f"| split | {whole} | {part} |", "| --- | --- | --- |"]
    lines += [f"| {s} | {found[f'{whole}/{s}']} | {found[f'{part}/{s}']} |" for s in SPLITS]
    lines += ["", f"Images of {height}×{width}; quarantined: {found['quarantined/all']}.", ""]
    lines += [f"Look at *Artifacts*, `{FOLDER}/{PAGE}`: quality control, outliers first."]
    return "\n".join(lines)
