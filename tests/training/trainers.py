"""Tiny trainers that can be interrupted, and whose state can be compared bit by bit."""

import copy
import dataclasses
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import TINY
from torch import Tensor

from data_prep.common.tracking import Tracker
from pipeline.config import Config, TrainingConfig
from pipeline.data.config import DataConfig
from pipeline.data.slices import Store
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import ModelConfig
from pipeline.training.checkpoint import Checkpoint, TrainingState, save_checkpoint
from pipeline.training.loop import Trainer
from pipeline.training.objective import Objective

PLACE = ("step", "epoch", "batch", "images", "sums")  # where a trainer is
STEPS = 12  # of 4 epochs of 3 batches

Spoil = Callable[[int, Tensor], Tensor]


class FixedMonitor:
    """Says that the epochs' PSNR are what it was told; keeps what it was shown."""

    def __init__(self, psnr: list[float] | None = None) -> None:
        self.images = torch.zeros(2, 1, 32, 32)
        self.psnr = psnr or [20.0, 21.0, 22.0, 23.0, 24.0, 25.0]
        self.seen: list[Objective] = []

    def validate(self, objective: Objective, beta: float, warm_up: bool) -> dict[str, float]:
        self.seen.append(objective)
        return {"psnr": self.psnr[min(len(self.seen), len(self.psnr)) - 1]}

    def psnr_of_the_mean(self) -> float:
        return -math.inf

    def picture(self, objective: Objective) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)

    def kernels(self, objective: Objective) -> Tensor | None:
        return objective.kernel(objective.vae.encode(self.images).mean.detach())


class Rows(Tracker):
    """Keeps the metrics of every epoch, without what the clock decides."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        assert step not in self.rows
        self.rows[step] = {
            name.removeprefix("train/").replace("validation/", "validation_"): value
            for name, value in values.items()
            if name != "train/images_per_second"
        }


class Interrupted(Trainer):
    """A trainer that gets a signal while it computes a step, and may be given spoilt images."""

    stop_at: int | None = None
    spoil: Spoil | None = None

    def _train_on(self, images: Tensor) -> None:
        super()._train_on(images)
        if self.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    def _augmented(self, images: Tensor) -> Tensor:
        images = super()._augmented(images)
        return images if self.spoil is None else self.spoil(self.step, images)


def config(**changes: Any) -> Config:
    """`section__key=value` changes a key of the tiny configuration."""
    made = Config(
        data=DataConfig(store="tiny"),
        model=ModelConfig(**TINY["model"]),
        likelihood=LikelihoodConfig(**TINY["likelihood"]),
        training=TrainingConfig(**TINY["training"] | {"epochs": 4, "threads": 0}),
    )
    for name, value in changes.items():
        section, key = name.split("__")
        part = dataclasses.replace(getattr(made, section), **{key: value})
        made = dataclasses.replace(made, **{section: part})
    return made


def trainer_of(
    store: Store, folder: Path, monitor: FixedMonitor | None = None, **changes: Any
) -> Interrupted:
    """A trainer of the tiny configuration with these changes."""
    return Interrupted(config(**changes), store, folder, monitor or FixedMonitor())  # type: ignore[arg-type]


def rows_of(trainer: Trainer) -> list[dict[str, float]]:
    """Train to the end; the metrics of every epoch."""
    tracker = Rows()
    trainer.fit(tracker)
    return list(tracker.rows.values())


def everything(trainer: Trainer) -> dict[str, Any]:
    """A copy of all that a step depends on, but for the clock's time."""
    weights, state = trainer.steps.state()
    controller = dataclasses.asdict(trainer.controller)
    place = {name: getattr(trainer, name) for name in PLACE}
    return copy.deepcopy({"weights": weights, **state, "controller": controller, **place})


def same(left: Any, right: Any) -> bool:
    """Bit by bit, tensors included; NaN is NaN."""
    if isinstance(left, Tensor):
        alike = isinstance(right, Tensor) and left.shape == right.shape
        return alike and bool(torch.equal(left.nan_to_num(7e7), right.nan_to_num(7e7)))
    if isinstance(left, dict):
        keys = isinstance(right, dict) and left.keys() == right.keys()
        return keys and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


def save_numbered(folder: Path, step: int, size: int = 50_000) -> Path:
    """A checkpoint whose every number is its step."""
    value = torch.full((size,), float(step))
    state = TrainingState(step=step, optimizer={"moment": value.clone()})
    return save_checkpoint(folder, {"one": value}, state)


def number_of(checkpoint: Checkpoint | None) -> int:
    """The step of a checkpoint that holds what `save_numbered` wrote."""
    assert checkpoint is not None
    step = checkpoint.state.step
    for values in (checkpoint.weights["one"], checkpoint.state.optimizer["moment"]):
        assert bool((values == step).all())
    return step
