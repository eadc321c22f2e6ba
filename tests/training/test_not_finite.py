"""A batch whose loss or gradient is not finite is skipped and leaves no trace; many end the run."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trainers import PLACE, STEPS, FixedMonitor, Interrupted, Rows, config, same

from data_prep.store import Store
from pipeline.errors import InputError
from pipeline.training.checkpoint import best_step
from pipeline.training.objective import Objective

SKIPPED = 4  # the step whose batch is spoilt, in the middle of an epoch


@contextlib.contextmanager
def spoilt_loss(how: str, step: int) -> Iterator[None]:
    """The step's loss is NaN or infinite, or only a gradient is."""
    forward, calls = Objective.forward, 0

    def spoilt(self: Objective, *rest: Any, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        loss, means = forward(self, *rest, **options)
        if calls == step:
            if how == "loss":
                loss, means = loss * math.nan, means | {"elbo": means["elbo"] * math.nan}
            elif how == "gradient":
                loss.register_hook(lambda gradient: gradient * math.inf)
            else:
                part = self.vae if how == "one gradient" else self.kernel_network
                assert part is not None
                hooks.append(next(part.parameters()).register_hook(lambda g: g + math.inf))
        while hooks and calls != step:
            hooks.pop().remove()
        calls += 1
        return loss, means

    hooks: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "forward", spoilt)
        yield


HOW = ("images", "loss", "gradient", "one gradient", "kernel gradient")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("step", [0, SKIPPED])
def test_a_batch_that_is_not_finite_leaves_no_trace(
    tiny_store: Store, tmp_path: Path, how: str, step: int
) -> None:
    """Weights, averaged weights, optimisers, running scale: as before; training goes on."""
    trainer, tracker = Interrupted(config(), tiny_store, tmp_path, FixedMonitor()), Rows()
    if how == "images":
        trainer.spoil = lambda number, images: images * math.nan if number == step else images
    states: list[tuple[dict[str, Any], dict[str, Any]]] = []
    train_on = trainer._train_on

    def watched(images: Tensor) -> None:
        train_on(images)
        states.append((trainer.before, trainer.after))

    trainer._train_on = watched  # type: ignore[method-assign]
    with spoilt_loss(how, step) if how != "images" else contextlib.nullcontext():
        trainer.fit(tracker)

    for number, (before, after) in enumerate(states):
        for parts in (before, after):
            for group in parts["optimizer"]["param_groups"]:
                del group["lr"]  # follows the step's number,
            del parts["weights"]["objective.vae.decoder.opened"]  # as the open levels do
        counted = {*PLACE, "skipped", "skipped_in_a_row"}
        changed = {key for key in before.keys() - counted if not same(before[key], after[key])}
        assert bool(changed) == (number != step), changed
        assert after["skipped"] == (1 if number >= step else 0)
    before, after = states[step]
    steps = {name: after[name] - before[name] for name in ("step", "epoch", "batch", "images")}
    assert steps == {"step": 1, "epoch": 0, "batch": 1, "images": 0}
    assert after["sums"] == before["sums"] and after["skipped_in_a_row"] == 1
    epoch = step // 3 + 1
    assert [row["skipped_batches"] for row in tracker.rows.values()] == [
        0.0 if number < epoch else 1.0 for number in range(1, 5)
    ]
    assert all(math.isfinite(value) for row in tracker.rows.values() for value in row.values())
    assert all(p.isfinite().all() for p in trainer.objective.parameters())


def test_an_epoch_without_a_finite_batch_is_no_end(tiny_store: Store, tmp_path: Path) -> None:
    trainer, tracker = Interrupted(config(), tiny_store, tmp_path, FixedMonitor()), Rows()
    trainer.spoil = lambda step, images: images * math.nan if 3 <= step < 6 else images
    trainer.fit(tracker)
    assert [row["skipped_batches"] for row in tracker.rows.values()] == [0.0, 3.0, 3.0, 3.0]
    assert "elbo" not in tracker.rows[2] and "elbo" in tracker.rows[3]
    assert trainer.step == STEPS


def test_no_checkpoint_is_the_best_while_batches_are_skipped(
    tiny_store: Store, tmp_path: Path
) -> None:
    monitor = FixedMonitor([20.0, 21.0, 30.0, 22.0])
    trainer = Interrupted(config(), tiny_store, tmp_path, monitor)
    trainer.spoil = lambda step, images: images * math.nan if step == 8 else images
    trainer.fit(Rows())
    assert best_step(tmp_path / "checkpoints") == STEPS  # not 9, whose PSNR was higher


def _break_the_weights(trainer: Interrupted) -> None:
    with torch.no_grad():
        next(trainer.objective.vae.decoder.parameters()).fill_(math.nan)


def _break_the_images(trainer: Interrupted) -> None:
    trainer.spoil = lambda _, images: images * math.nan


def _overflow_the_rate(trainer: Interrupted) -> None:
    """A posterior so wide that its KL is beyond float32."""
    with torch.no_grad():
        for parameter in trainer.objective.vae.encoder.parameters():
            parameter.mul_(1e6)


def _overflow_a_gradient(trainer: Interrupted) -> None:
    next(trainer.objective.vae.parameters()).register_hook(lambda gradient: gradient + math.inf)


@pytest.mark.parametrize("term", ["blur", "gaussian"])
@pytest.mark.parametrize(
    ("ruin", "words"),
    [
        (_break_the_weights, "the weights are not finite: train anew with --restart true"),
        (_break_the_images, "the images are not finite: prepare the store again"),
        (_overflow_the_rate, "the loss overflows: lower training.learning_rate"),
        (_overflow_a_gradient, "a gradient overflows: lower training.learning_rate"),
    ],
    ids=["weights", "images", "loss", "gradient"],
)
def test_too_many_batches_in_a_row_that_are_not_finite_end_the_run_and_name_the_cause(
    tiny_store: Store,
    tmp_path: Path,
    term: str,
    ruin: Callable[[Interrupted], None],
    words: str,
) -> None:
    changes = {"training__max_skipped": 3, "likelihood__term": term}
    trainer = Interrupted(config(**changes), tiny_store, tmp_path, FixedMonitor())
    ruin(trainer)
    with pytest.raises(InputError) as error:
        trainer.fit(Rows())
    said = str(error.value)
    assert said.startswith("4 batches in a row") and "training.max_skipped 3" in said
    assert words in said
    assert best_step(tmp_path / "checkpoints") is None
