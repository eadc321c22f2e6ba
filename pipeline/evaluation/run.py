"""The run to score: its checkpoint and fits, the subjects it may be scored on, its earlier scores.

runs/RUN/evaluation-…/ holds what FILES names.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.config import Config, EvaluationConfig, work_keys
from pipeline.data.slices import (
    FILES_CHECKED,
    WAY_OUT,
    SliceDataset,
    Store,
    SubjectEntry,
    evenly_spread,
    open_store,
)
from pipeline.distributed import choose_device
from pipeline.errors import InputError
from pipeline.files import find_folder, run_folder, work_folder
from pipeline.fits.fits import Fits, fits_digest, read_fits
from pipeline.metrics.perceptual import WeightsNotFound, inception_weights
from pipeline.metrics.statistics import Interval
from pipeline.training.checkpoint import Checkpoint, TrainingState, find_checkpoint
from pipeline.training.loop import load_objective
from pipeline.training.objective import Objective

REPORT = "report.html"
FILES = {
    "calibration.json",
    "figures",
    "inputs.json",
    "metrics.json",
    "per_subject.csv",
    REPORT,
}
# Metrics of networks whose weights most have; few have those of FID.
WEIGHTED = {"lpips_alex", "lpips_vgg", "kid_vgg16", "fd_vgg16"}
MOST_TRAINING, MOST_HELD_OUT = 4096, 1024
# Whom a run may not be scored on; the validation subjects of its own store are, as such.
SEEN = {
    "train": "were trained on by this run",
    "validation": "chose the checkpoint of this run and calibrated its law",
}


@dataclass(frozen=True)
class Slices:
    """Images (n,C,H,W) in [0,1] and the number of each one's family (n,)."""

    images: Float[Tensor, "n C H W"]
    families: Int[Tensor, " n"]

    @property
    def count(self) -> int:
        """The number of families."""
        return len(self.families.unique())

    def some(self, most: int) -> "Slices":
        """At most so many, evenly spread."""
        chosen = evenly_spread(len(self.images), most)
        return Slices(self.images[chosen], self.families[chosen])


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint, ready to be scored.

    objective: averaged weights, in evaluation mode; fits: without a law where it may not be used,
    lawless: the reason; training: slices that it was trained on, and held_out: others of the same
    store, both to compare samples with.
    """

    objective: Objective
    config: Config
    state: TrainingState
    fits: Fits
    lawless: str
    training: Slices | None
    held_out: Slices | None

    @property
    def device(self) -> torch.device:
        """The model's."""
        return next(self.objective.parameters()).device

    @property
    def latents(self) -> str:
        """The latents of samples, in words."""
        return "z ~ N(0, I)" if self.fits.prior is None else "z blended of training subjects"


def load_trained_run(
    checkpoint: Checkpoint, config: Config, entries: Sequence[SubjectEntry]
) -> TrainedRun:
    """A run's checkpoint on the device of `evaluation.device`, with its fits.

    entries: whom to score. Where the law of residuals was fitted to some of them it is left out:
    it would seem better calibrated than it is. Raises InputError where the fits can't be read.
    """
    device = choose_device(config.evaluation.device, "evaluation.device")
    objective = load_objective(checkpoint, config).to(device)
    fits, lawless = read_fits(checkpoint.path.parents[1], checkpoint.digest, objective.vae), ""
    if fits.law is None:
        lawless = "no law of the residuals was fitted"
        lawless += "" if fits.digest else " to this checkpoint, but to the best"
    elif of_role(entries, checkpoint.state, fits.split, config.evaluation.other_people):
        lawless = f"the law was fitted to {fits.split} subjects, which these are"
        fits = Fits(None, fits.prior, digest=fits.digest)
    training = held_out = None
    if trained := trained_store(checkpoint.state):
        training = _slices_of(trained, MOST_TRAINING, "train")
        held_out = _slices_of(trained, MOST_HELD_OUT, "validation", "test")
    return TrainedRun(objective, config, checkpoint.state, fits, lawless, training, held_out)


def trained_store(state: TrainingState) -> Store | None:
    """The store a checkpoint was trained on, if it is still there as it was.

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


def _slices_of(store: Store, most: int, *splits: str) -> Slices:
    """Slices of some splits, at most so many, evenly spread; a photograph is its own family."""
    data = SliceDataset(store, [entry for split in splits for entry in store.subjects(split)])
    chosen = evenly_spread(len(data), most)
    families = torch.arange(len(chosen)) if store.image_set else data.families_of(chosen)
    return Slices(data.__getitems__(chosen), families)


def of_role(
    entries: Sequence[SubjectEntry], state: TrainingState, role: str, other_people: bool = False
) -> list[str]:
    """Names of the entries who had a role (train, validation, test) in a run.

    The same subject, a member of the same family and the same file are meant; where they are said
    to be other people, the same file alone.
    """
    known = [who for who in state.roles if who["role"] == role]
    files = {who["source_sha256"]: who["subject"] for who in known}
    named = {(key, who[key]) for who in known for key in ("subject", "family")}
    names = []
    for entry in entries:
        own = files.get(entry.source_sha256)
        both = {("subject", entry.subject), ("family", entry.family)}
        if own is not None and own != entry.subject:
            names.append(f"{entry.subject} is the file of {own}")
        elif own or (named & both and not other_people):
            names.append(entry.subject)
    return names


def subjects_to_score(
    state: TrainingState, store: Store, settings: EvaluationConfig
) -> list[SubjectEntry]:
    """The subjects of the split that is asked for.

    Raises InputError where the split is empty, images have another shape than those of the
    training, or subjects were trained on, or chose the checkpoint: the latter can be scored as the
    validation split of the run's own store alone.
    """
    entries = store.subjects(settings.split)
    if not entries:
        raise InputError(f"store {store.name} has no subjects in split {settings.split}")
    if list(store.image_shape) != list(state.image_shape):
        raise InputError(
            f"store {store.name} holds images of {store.image_shape}, the run was trained on "
            f"{tuple(state.image_shape)}: prepare it with the same prepare.size"
        )
    own = store.digest == state.store["digest"]
    if settings.other_people and own:
        raise InputError(
            f"evaluation.other_people: store {store.name} is the one that was trained on, so equal "
            "names are the same people"
        )
    for role, words in SEEN.items():
        if role == "validation" and own and settings.split == role:
            continue
        if seen := of_role(entries, state, role, settings.other_people):
            some = ", ".join(seen[:5]) + (", …" if len(seen) > 5 else "")
            others = "" if settings.other_people else WAY_OUT.format("evaluation.other_people true")
            raise InputError(
                f"{len(seen)} of {len(entries)} subjects {words} ({some}): score evaluation.split "
                f"test, or a store of other subjects{others}"
            )
    return entries


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
    """All that an evaluation depends on; the same again gives the same result."""
    settings = asdict(config.evaluation)
    machines_own = work_keys(EvaluationConfig)  # the numbers are the same within rounding
    inputs = {
        "checkpoint": checkpoint.digest,
        "store": store.digest,
        "evaluation": {key: value for key, value in settings.items() if key not in machines_own},
        "fits": fits_digest(checkpoint.path.parents[1], checkpoint.digest),
        # Its slices are what samples are compared with: scores differ without.
        "trained_store": trained_store(checkpoint.state) is not None,
    }
    return inputs | ({"other_people": FILES_CHECKED} if config.evaluation.other_people else {})


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
        metrics: dict[str, Interval] = json.loads((folder / "metrics.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not complete or {*WEIGHTED, "fid"} <= metrics.keys():
        return metrics
    settings = inputs["evaluation"]
    if not metrics.keys() >= WEIGHTED or settings["download"]:
        return None
    try:  # without Inception's weights, which few have, an evaluation is complete
        inception_weights(settings["inception_weights"])
    except WeightsNotFound:
        return None if settings["inception_weights"] else metrics  # scoring reports the error
    return None
