"""A run in MLflow for each change of a store, with its report."""

from collections import Counter
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.provenance import code_version
from data_prep.common.tracking import track_run
from data_prep.report.page import FOLDER, PAGE, TABLE
from data_prep.store import SPLITS, Store

EXPERIMENT = "sharp-vae-mri-preparation"
EXPERIMENT_NOTE = """\
Prepared stores: a run for each time that a store changed. Its quality report is under *Artifacts*.
"""


def track(store: Store, work: Path) -> None:
    """Log a finished store: its report, counts, configuration and digest.

    The run is named like the store, in the experiment EXPERIMENT at MLFLOW_TRACKING_URI, or in
    work/mlflow.db with artifacts beside it.

    Raises:
        InputError: MLflow cannot be used. The store is not touched.
    """
    configuration = store.manifest["configuration"]
    tags = {
        "stage": "preparation",
        "dataset": store.name,
        "store_digest": store.digest,
        "source": str(configuration.get("source", "")),
        "size": str(store.image_shape[-1]),
        "simulated": str(store.simulated).lower(),
        **code_version(),
    }
    instead = "--prepare.track false"
    try:
        with track_run(
            EXPERIMENT, work, store.name, about=EXPERIMENT_NOTE, instead=instead, tags=tags
        ) as run:
            run.note(note(store))
            run.parameters({"prepare": configuration})
            run.metrics(counts(store))
            for name in (PAGE, TABLE):
                run.file(store.path / FOLDER / name, FOLDER)
    except InputError as error:
        raise InputError(f"the store {store.name} is finished, but {error}") from None


def counts(store: Store) -> dict[str, int]:
    """Numbers of entries, images and quarantined entries, by their names as metrics."""
    numbers = {"quarantined/all": len(store.quarantined)}
    for reason, number in Counter(q.reason for q in store.quarantined).items():
        numbers[f"quarantined/{reason}"] = number
    whole, part = ("blocks", "images") if store.image_set else ("subjects", "slices")
    for split in SPLITS:
        entries = store.subjects(split)
        numbers[f"{whole}/{split}"] = len(entries)
        numbers[f"{part}/{split}"] = sum(len(entry.slice_indices) for entry in entries)
    return numbers


def note(store: Store) -> str:
    """The run's description."""
    numbers, (_, height, width) = counts(store), store.image_shape
    whole, part = ("blocks", "images") if store.image_set else ("subjects", "slices")
    lines = ["**The people of this store are simulated.**", ""] if store.simulated else []
    lines += [f"| split | {whole} | {part} |", "| --- | --- | --- |"]
    lines += [f"| {s} | {numbers[f'{whole}/{s}']} | {numbers[f'{part}/{s}']} |" for s in SPLITS]
    lines += ["", f"Images of {height}×{width}; quarantined: {numbers['quarantined/all']}.", ""]
    lines += [f"Look at *Artifacts*, `{FOLDER}/{PAGE}`: quality control, outliers first."]
    return "\n".join(lines)
