"""The run to score, and the subjects it may be scored on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import Config, EvaluationConfig
from pipeline.data.other_people import WAY_OUT
from pipeline.data.slices import SliceDataset, Store, SubjectEntry, evenly_spread
from pipeline.distributed import choose_device
from pipeline.errors import InputError
from pipeline.evaluation.record import trained_store
from pipeline.losses.residual import ResidualLaw
from pipeline.models.prior import LatentPrior
from pipeline.training.checkpoint import Checkpoint, TrainingState
from pipeline.training.loop import load_objective
from pipeline.training.objective import Objective
from pipeline.training.prior import prior_of
from pipeline.training.residual import residual_law_of

MOST_TRAINING = 4096


@dataclass(frozen=True)
class TrainedRun:
    """What a checkpoint holds, ready to be scored.

    objective: averaged weights, in evaluation mode; state: the checkpoint's; prior: what samples
    are drawn from in place of N(0,I); fitted: the law of the residuals; training: slices (n,C,H,W)
    that it was trained on, which samples are compared with.
    """

    objective: Objective
    config: Config
    state: TrainingState
    prior: LatentPrior | None = None
    fitted: ResidualLaw | None = None
    training: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.objective.parameters()).device


def load_trained_run(checkpoint: Checkpoint, config: Config) -> TrainedRun:
    """A run's checkpoint on the device of `evaluation.device`.

    The prior of samples and the law of residuals are read, or fitted now where the store that the
    run was trained on is still there as it was.
    """
    device = choose_device(config.evaluation.device, "evaluation.device")
    objective = load_objective(checkpoint, config).to(device)
    trained = trained_store(checkpoint.state)
    return TrainedRun(
        objective,
        config,
        checkpoint.state,
        prior_of(checkpoint, objective.vae, config, trained),
        residual_law_of(checkpoint, objective.vae, config, trained),
        training_slices(trained) if trained else None,
    )


def training_slices(store: Store) -> Tensor:
    """Slices that were trained on, at most 4,096, evenly spread: (n,C,H,W)."""
    data = SliceDataset(store, store.subjects("train"))
    return data.__getitems__(evenly_spread(len(data), MOST_TRAINING))


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
            subjects were trained on.
    """
    entries = store.subjects(settings.split)
    if not entries:
        raise InputError(f"store {store.name} has no subjects in split {settings.split}")
    if list(store.image_shape) != list(state.image_shape):
        raise InputError(
            f"store {store.name} holds images of {store.image_shape}, the run was trained on "
            f"{tuple(state.image_shape)}: prepare it with the same prepare.size"
        )
    if settings.other_people and store.digest == state.store["digest"]:
        raise InputError(
            f"evaluation.other_people: store {store.name} is the one that was trained on, so equal "
            "names are the same people"
        )
    refuse_trained_on(entries, state, settings.other_people)
    return entries


def refuse_trained_on(
    entries: list[SubjectEntry], state: TrainingState, other_people: bool = False
) -> None:
    """Raise InputError, with their names, where subjects to be scored were trained on.

    The same subject, a member of the same family and the same file count as trained on; where they
    are said to be other people, the same file alone.
    """
    by_file = {subject["source_sha256"]: subject["subject"] for subject in state.trained_on}
    copies = {
        f"{entry.subject} is the file of {by_file[entry.source_sha256]}"
        for entry in entries
        if by_file.get(entry.source_sha256, entry.subject) != entry.subject
    }
    if copies:
        raise InputError(
            f"{len(copies)} of {len(entries)} subjects are files that were trained on under "
            f"another name ({_some(sorted(copies))}): take these files away; where it is the store "
            "that was trained on, prepare it again, which puts both into one split, and train again"
        )
    keys = ("source_sha256",) if other_people else ("subject", "family", "source_sha256")
    trained = {key: {subject[key] for subject in state.trained_on} for key in keys}
    seen = [
        entry.subject
        for entry in entries
        if any(getattr(entry, key) in trained[key] for key in keys)
    ]
    if seen:
        way_out = "" if other_people else WAY_OUT.format("evaluation.other_people true")
        raise InputError(
            f"{len(seen)} of {len(entries)} subjects were trained on by this run "
            f"({_some(seen)}): score evaluation.split test, or a store of other subjects{way_out}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
