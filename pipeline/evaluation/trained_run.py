"""The run to score, and the subjects it may be scored on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.config import Config, EvaluationConfig
from pipeline.data.other_people import WAY_OUT
from pipeline.data.slices import SliceDataset, Store, SubjectEntry, evenly_spread
from pipeline.distributed import choose_device
from pipeline.errors import InputError
from pipeline.evaluation.memorisation import Slices
from pipeline.evaluation.record import trained_store
from pipeline.fits.fits import read_fits
from pipeline.losses.residual import ResidualLaw
from pipeline.models.prior import LatentPrior
from pipeline.training.checkpoint import Checkpoint, TrainingState
from pipeline.training.loop import load_objective
from pipeline.training.objective import Objective

MOST_TRAINING, MOST_HELD_OUT = 4096, 1024
# Whom a run may not be scored on; the validation subjects of its own store are, as such.
SEEN = {
    "train": "were trained on by this run",
    "validation": "chose the checkpoint of this run and calibrated its law",
}


@dataclass(frozen=True)
class TrainedRun:
    """What a checkpoint holds, ready to be scored.

    objective: averaged weights, in evaluation mode; state: the checkpoint's; prior: what samples
    are drawn from in place of N(0,I); fitted: the law of the residuals; families: how many
    calibrated it; lawless: why there is no fitted law; training: slices that it was trained on,
    and held_out: others of the same store, both to compare samples with.
    """

    objective: Objective
    config: Config
    state: TrainingState
    prior: LatentPrior | None = None
    fitted: ResidualLaw | None = None
    families: int = 0
    lawless: str = ""
    training: Slices | None = None
    held_out: Slices | None = None

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.objective.parameters()).device

    @property
    def latents(self) -> str:
        """Where the latents of samples come from."""
        return "z ~ N(0, I)" if self.prior is None else "z blended of training subjects"


def load_trained_run(
    checkpoint: Checkpoint, config: Config, entries: Sequence[SubjectEntry]
) -> TrainedRun:
    """A run's checkpoint on the device of `evaluation.device`, with its fits.

    entries: whom to score. Where the law of residuals was fitted to some of them it is left out:
    it would seem better calibrated than it is. Raises InputError where the fits can't be read.
    """
    device = choose_device(config.evaluation.device, "evaluation.device")
    objective = load_objective(checkpoint, config).to(device)
    fits = read_fits(checkpoint.path.parents[1], checkpoint.digest, objective.vae)
    law, lawless = fits.law, ""
    if law is None:
        lawless = "no law of the residuals was fitted"
        if not fits.digest:
            lawless += " to this checkpoint, but to the best"
    elif of_role(entries, checkpoint.state, fits.split, config.evaluation.other_people):
        law, lawless = None, f"the law was fitted to {fits.split} subjects, which these are"
    trained = trained_store(checkpoint.state)
    return TrainedRun(
        objective,
        config,
        checkpoint.state,
        fits.prior,
        law,
        fits.families,
        lawless,
        slices_of(trained, MOST_TRAINING, "train") if trained else None,
        slices_of(trained, MOST_HELD_OUT, "validation", "test") if trained else None,
    )


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


def slices_of(store: Store, most: int, *splits: str) -> Slices:
    """Slices of some splits, at most so many, evenly spread; a photograph is its own family."""
    data = SliceDataset(store, [entry for split in splits for entry in store.subjects(split)])
    chosen = evenly_spread(len(data), most)
    names = [data.subjects[subject].family for subject in data.subject_of[chosen]]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    families = torch.tensor([numbers[name] for name in names])
    return Slices(
        data.__getitems__(chosen), torch.arange(len(chosen)) if store.image_set else families
    )


def subjects_to_score(
    state: TrainingState, store: Store, settings: EvaluationConfig
) -> list[SubjectEntry]:
    """The subjects of the split that is asked for.

    Args:
        state: a checkpoint's.
        store: what to score on.
        settings: the section `evaluation`.

    Raises:
        InputError: the split is empty, images have another shape than those of the training, or
            subjects were trained on, or chose the checkpoint: the latter can be scored as the
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
