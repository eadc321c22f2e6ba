"""The files of an evaluation: their writer and their reader.

Light to import: the libraries of the metrics take seconds to load, and there may be nothing to do.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.backbones import WeightsNotFound, inception_weights
from pipeline.config import Config, EvaluationConfig, work_keys
from pipeline.data.other_people import FILES_CHECKED
from pipeline.data.slices import Store, open_store
from pipeline.errors import InputError
from pipeline.evaluation.report import REPORT
from pipeline.evaluation.report.about import About
from pipeline.evaluation.report.gathering import Pictures
from pipeline.figures import write_figure
from pipeline.files import csv_text, find_folder, swapped_in, work_folder, write_json, write_text
from pipeline.fits.fits import fits_digest
from pipeline.metrics.statistics import Interval
from pipeline.training.checkpoint import Checkpoint, TrainingState

# What the folder of an evaluation holds.
FILES = {
    "calibration.json", "figures", "inputs.json", "metrics.json", "per_subject.csv", REPORT,
}  # fmt: skip


@dataclass
class Evaluation:
    """What was found: aggregated metrics, a row per subject, figures by file name."""

    metrics: dict[str, Interval]
    per_subject: list[dict[str, Any]]
    figures: dict[str, Any]
    absent: dict[str, str]
    """Metrics that are left out, each with the reason."""
    pictures: Pictures
    """What the report shows beside figures."""
    calibration: dict[str, Any] | None = None
    """The curves of the figure of calibration, to draw runs side by side later."""


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


def write_evaluation(
    folder: Path, evaluation: Evaluation, inputs: dict[str, Any], about: About
) -> None:
    """Write figures, tables and the report: all of them, or the folder stays as it was."""
    from pipeline.evaluation.report.page import Page  # slow to import
    from pipeline.evaluation.report.writing import write_report

    with swapped_in(folder) as new:
        for name, figure in evaluation.figures.items():
            write_figure(new / "figures" / name, figure)
        write_text(new / "per_subject.csv", csv_text(evaluation.per_subject))
        if evaluation.calibration is not None:
            write_json(new / "calibration.json", evaluation.calibration)
        write_report(
            Page(
                about,
                evaluation.metrics,
                evaluation.per_subject,
                evaluation.pictures,
                evaluation.figures,
                evaluation.absent,
                new,
            )
        )
        write_json(new / "inputs.json", inputs, sort_keys=True)
        write_json(new / "metrics.json", evaluation.metrics)


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
