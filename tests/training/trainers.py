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
import pytest
import torch
from tiny import TINY
from torch import Tensor

from data_prep.common.tracking import Tracker
from pipeline.config import Config, TrainingConfig
from pipeline.data.config import DataConfig
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
        plain = {
            name.removeprefix("train/").replace("validation/", "validation_"): value
            for name, value in values.items()
        }
        self.rows[step] = {k: v for k, v in plain.items() if k != "images_per_second"}


class Interrupted(Trainer):
    """A trainer that gets a signal while it computes a step, and may be given spoilt images.

    `before` and `after` hold everything that the last batch could change.
    """

    stop_at: int | None = None
    spoil: Spoil | None = None
    before: dict[str, Any]
    after: dict[str, Any]

    def _train_on(self, images: Tensor) -> None:
        self.before = everything(self)
        super()._train_on(images)
        self.after = everything(self)
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


def everything(trainer: Trainer) -> dict[str, Any]:
    """A copy of all that a step depends on, but for the clock's time."""
    weights, state = trainer.steps.state()
    found = {
        "weights": weights,
        **vars(state),
        "controller": dataclasses.asdict(trainer.controller),
    }
    for name in PLACE:
        found[name] = getattr(trainer, name)
    return copy.deepcopy(found)


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


def assert_near(left: Any, right: Any, tolerance: float, name: str = "") -> None:
    """The same but for rounding: numbers and tensors within `tolerance`, all else equal.

    tolerance: of 1 or of the value, whichever is larger, as processes round differently.
    """
    if isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys(), name
        for key, value in left.items():
            assert_near(value, right[key], tolerance, f"{name}.{key}")
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        assert len(left) == len(right), name
        for index, (one, two) in enumerate(zip(left, right, strict=True)):
            assert_near(one, two, tolerance, f"{name}[{index}]")
    elif isinstance(left, Tensor) and isinstance(right, Tensor):
        torch.testing.assert_close(
            left, right, rtol=tolerance, atol=tolerance, equal_nan=True,
            msg=lambda said: f"{name}: {said}",
        )  # fmt: skip
    elif isinstance(left, float) and isinstance(right, float):
        assert right == pytest.approx(left, rel=tolerance, abs=tolerance, nan_ok=True), name
    else:
        assert left == right, name


def save_numbered(folder: Path, step: int, size: int = 50_000) -> Path:
    """A checkpoint whose every number is its step."""
    value = torch.full((size,), float(step))
    state = TrainingState(step=step, optimizer={"moment": value.clone()})
    return save_checkpoint(folder, {"one": value}, state)


def number_of(found: Checkpoint | None) -> int:
    """The step of a checkpoint that holds what `save_numbered` wrote."""
    assert found is not None
    step = found.state.step
    assert bool(
        (found.weights["one"] == step).all() and (found.state.optimizer["moment"] == step).all()
    )
    return step
