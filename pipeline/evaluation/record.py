"""Where the files of an evaluation lie, what they depend on, and their reader.

Light to import: the libraries of the metrics take seconds to load, and there may be nothing to do.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.backbones import WeightsNotFound, inception_weights
from pipeline.config import Config, EvaluationConfig, work_keys
from pipeline.data.other_people import FILES_CHECKED
from pipeline.data.slices import Store, open_store
from pipeline.errors import InputError
from pipeline.files import find_folder, run_folder, work_folder
from pipeline.fits.fits import fits_digest
from pipeline.metrics.statistics import Interval
from pipeline.training.checkpoint import Checkpoint, TrainingState, find_checkpoint

REPORT = "report.html"
# What the folder of an evaluation holds.
FILES = {
    "calibration.json", "figures", "inputs.json", "metrics.json", "per_subject.csv", REPORT,
}  # fmt: skip


def trained_store(state: TrainingState) -> Store | None:
    """The store a checkpoint was trained on, where it is still there as it was.

    On another machine than that of the training it is looked for by its name, too.
    """
    for name in (state.config["data"]["store"], state.store["name"]):
        try:
            store = open_store(name, work_folder())
        except InputError:
            continue
        if store.digest == state.store["digest"]:
            return store
    return None


def store_to_score(config: Config) -> Store:
    """The store of evaluation.store, or the one trained on."""
    return open_store(config.evaluation.store or config.data.store, work_folder())


def evaluation_folder(config: Config, store: Store) -> str:
    """Name of the folder, in the run's, of the scores of one split of a store.

    evaluation for the test subjects of the store trained on, evaluation-SPLIT for its others,
    evaluation-STORE or evaluation-STORE-SPLIT for other stores. A store whose name could be taken
    for one with a split gets its split always.
    """
    split = config.evaluation.split
    parts = ["evaluation"]
    name = store.path.resolve().name
    if store.path.resolve() != find_folder(config.data.store, "stores").resolve():
        parts.append(name)
    if split != "test" or (len(parts) > 1 and name.split("-")[-1] in ("test", "validation", "all")):
        parts.append(split)
    return "-".join(parts)


def fingerprint(checkpoint: Checkpoint, store: Store, config: Config) -> dict[str, Any]:
    """What an evaluation depends on; the same again gives the same result."""
    settings = asdict(config.evaluation)
    machines_own = work_keys(EvaluationConfig)  # the numbers are the same within rounding
    return {
        "checkpoint": checkpoint.digest,
        "store": store.digest,
        "evaluation": {key: value for key, value in settings.items() if key not in machines_own},
        "fits": fits_digest(checkpoint.path.parents[1], checkpoint.digest),
        # Its slices are what samples are compared with: scores differ without.
        "trained_store": trained_store(checkpoint.state) is not None,
        **({"other_people": FILES_CHECKED} if config.evaluation.other_people else {}),
    }


def earlier_scores(config: Config, run: str) -> dict[str, Interval] | None:
    """The metrics of a trained run as it is now, as far as they are there; else None."""
    folder, store = run_folder(run), store_to_score(config)
    checkpoint = find_checkpoint(folder / "checkpoints", config.evaluation.checkpoint)
    inputs = fingerprint(checkpoint, store, config)
    return read_evaluation(folder / evaluation_folder(config, store), inputs, complete=False)


def read_evaluation(
    folder: Path, inputs: dict[str, Any], complete: bool = True
) -> dict[str, Interval] | None:
    """The metrics written before, if they were made from the same inputs; else None.

    With `complete` None, too, where metrics were left out whose weights may have come since.
    """
    try:
        before = json.loads((folder / "inputs.json").read_text("utf-8"))
        if before != json.loads(json.dumps(inputs)):
            return None
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return None if complete and _may_be_had_now(metrics, inputs["evaluation"]) else metrics


def _may_be_had_now(metrics: dict[str, Interval], settings: dict[str, Any]) -> bool:
    """Whether scoring again could give more metrics."""
    if not {"lpips_alex", "lpips_vgg", "kid_vgg16", "fd_vgg16"} <= metrics.keys():
        return True
    if "fid" in metrics:
        return False
    if settings["download"]:
        return True
    try:  # without these weights, which few have, the evaluation is complete
        inception_weights(settings["inception_weights"])
    except WeightsNotFound:
        return bool(settings["inception_weights"])  # scoring again reports the error
    return True
