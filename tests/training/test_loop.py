"""The loop: what it does in an epoch, what it tells of it, and when it goes back or gives up."""

import contextlib
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trainers import (
    PLACE,
    STEPS,
    FixedMonitor,
    Interrupted,
    Rows,
    config,
    everything,
    rows_of,
    same,
    trainer_of,
)

import pipeline.training.loop as loop
from data_prep.common.tracking import Tracker
from data_prep.store import Store
from pipeline.errors import Failed, InputError
from pipeline.evaluation.evaluate import model_scores
from pipeline.losses.registry import TERMS
from pipeline.models.config import Level
from pipeline.training import control
from pipeline.training.checkpoint import TrainingState, best_step, find_checkpoint
from pipeline.training.description import levels_of, rates, summary
from pipeline.training.loop import LONG_ENOUGH, MOST_SETBACKS, load_objective
from pipeline.training.monitor import ValidationMonitor
from pipeline.training.objective import Objective
from pipeline.training.train import missed, train_run

SKIPPED = 4  # the step whose batch is spoilt, in the middle of an epoch


@contextlib.contextmanager
def _watched(look: Callable[..., None]) -> Iterator[None]:
    """Within the block `look` is called with what the objective is called with, before it."""
    forward = Objective.forward

    def watched(self: Any, *rest: Any, **options: Any) -> Any:
        look(self, *rest, **options)
        return forward(self, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "forward", watched)
        yield


def test_a_run_follows_its_schedule_and_tells_of_it(tiny_store: Store, tmp_path: Path) -> None:
    """Of 12 steps, 0 to 11, a level opens at 0.5 with step 6; β and learning rate warm up."""
    monitor = FixedMonitor()
    trainer = trainer_of(
        tiny_store, tmp_path, monitor, training__beta=0.7, training__rate_warmup_steps=4,
        training__lr_warmup_steps=3, training__learning_rate=0.01, likelihood__warmup_epochs=5,
        model__levels=[Level(4, 2), Level(8, 1, opens=0.3), Level(16, 1, opens=0.5)],
    )  # fmt: skip
    network = trainer.objective.kernel_network
    assert network is not None
    before = [p.detach().clone() for p in network.parameters()]
    betas, opened, learning = [], [], []

    def look(objective: Objective, *_: Tensor, beta: float, warm_up: bool) -> None:
        betas.append(beta)
        opened.append(objective.vae.decoder.opened.sum().item())
        learning.append(trainer.steps.optimizer.param_groups[0]["lr"])
        assert warm_up

    with _watched(look):
        rows = rows_of(trainer)
    assert opened == [1] * 4 + [2] * 2 + [3] * 6
    assert betas == pytest.approx([0.7 * share for share in (0.25, 0.5, 0.75, *[1] * 9)])
    cosine = [0.005 * (1 + math.cos(math.pi * i / 12)) for i in range(12)]
    assert learning == pytest.approx([min((i + 1) / 3, 1) * v for i, v in enumerate(cosine)])
    # The kernel network learns from the first step, in the warm-up, too.
    assert not any(map(torch.equal, before, network.parameters()))

    open_levels = [row["levels_open"] for row in rows]
    assert open_levels == pytest.approx([1, (1 + 2 + 2) / 3, 3, 3])
    for row in rows:
        levels = levels_of(row)
        assert list(levels) == [4, 8, 16]
        assert sum(levels.values()) == pytest.approx(row["rate"], rel=1e-5)
        assert row["elbo"] == pytest.approx(-(row["distortion"] + row["rate"]), rel=1e-5)
        assert row["beta"] == 0.7 and all(map(math.isfinite, row.values()))
    assert rows[0]["rate_side_8"] == rows[1]["rate_side_16"] == 0 < rows[2]["rate_side_16"]
    named = {"kernel_loss", "kernel_width", "scale", "validation_psnr", "gradient_norm"}
    assert named <= set(rows[-1])
    words = summary(rows[-1])
    assert "dB" in words and "nats" in words and "\n" not in words
    shown = rates({"rate_side_4": 100.4, "rate_side_8": 24.3})
    assert shown == "rate by level 4²: 100, 8²: 24 nats" and rates({"rate_side_4": 9.0}) == ""

    # Scored and kept are the averaged weights, with every level open.
    averaged = trainer.steps.averaged
    assert all(model is averaged for model in monitor.seen)
    assert averaged.vae.decoder.opened.tolist() == [1, 1, 1]
    checkpoint = find_checkpoint(tmp_path / "checkpoints", "last")
    loaded = load_objective(checkpoint, trainer.config)
    assert not loaded.training and same(dict(loaded.state_dict()), dict(averaged.state_dict()))
    with pytest.raises(InputError, match="does not fit"):
        load_objective(checkpoint, config(model__width=8))


def test_terms_see_the_same_batches_and_start_from_the_same_weights(
    tiny_store: Store, tmp_path: Path
) -> None:
    """And so does a repeat, whose losses are the same; another seed's are not."""
    batches: list[Tensor] = []
    found = []
    for name, term, seed in (("a", "blur", 3), ("b", "blur", 3), ("c", "gaussian", 3),
                             ("d", "blur", 4)):  # fmt: skip
        trainer = trainer_of(
            tiny_store, tmp_path / name, training__epochs=2, training__seed=seed,
            likelihood__term=term, training__epoch_steps=2,
        )  # fmt: skip
        start = [p.detach().clone() for p in trainer.objective.vae.parameters()]
        batches.clear()
        with _watched(lambda _, image, *rest, **options: batches.append(image.clone())):
            rows = rows_of(trainer)
        assert trainer.step == 4 and trainer.finished  # an epoch has as many steps as it may
        found.append((start, list(batches), rows))
    first, again, gaussian, other = found
    assert same(first, again)
    assert same(first[:2], gaussian[:2]) and first[2] != gaussian[2]
    assert first[2][0]["distortion"] != other[2][0]["distortion"]


@pytest.mark.parametrize("name", sorted(TERMS))
def test_every_term_trains_and_what_it_learns_or_counts_is_saved(
    tiny_store: Store, tmp_path: Path, name: str
) -> None:
    def made() -> Interrupted:
        try:
            return trainer_of(
                tiny_store, tmp_path, likelihood__term=name, likelihood__warmup_epochs=0
            )
        except InputError as error:  # no weights
            pytest.skip(str(error))

    trainer = made()
    before = [p.detach().clone() for p in trainer.objective.term.parameters()]
    first, *_, last = rows_of(trainer)
    assert last["skipped_batches"] == 0
    # The rate may grow meanwhile: in the first epochs it counts little.
    assert last["distortion"] < first["distortion"]
    assert not any(map(torch.equal, before, trainer.objective.term.parameters()))
    other = made()
    weights, state = trainer.steps.state()
    other.steps.resume(weights, TrainingState(step=0, **state))
    kept, expected = other.objective.term.state_dict(), trainer.objective.term.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in expected.items())
    images, model = torch.rand(2, 1, 32, 32), trainer.steps.averaged.eval()
    scores = model_scores(model, images, model.vae.infer(images), torch.Generator())
    assert ("elbo_bits_per_dim" in scores) == ("elbo" in last) == TERMS[name].density
    assert all(value.isfinite().all() for value in scores.values())


# ------------------------------------------------------------------ the rate's weight


@pytest.mark.parametrize(
    ("changes", "held_from"),
    [
        # Of 18 steps, 3 an epoch, a level that opens at 0.4 is open from step 8 on: in epoch 4 all.
        ({"model__levels": [Level(4, 2), Level(8, 1, opens=0.4)]}, 4),
        # The weight has its full size from step 4 on: in epoch 3 all.
        ({"model__levels": [Level(4, 2)], "training__rate_warmup_steps": 5}, 3),
    ],
    ids=["a level is closed", "the weight warms up"],
)
def test_the_weight_is_not_moved_before_all_can_spend_nats(
    tiny_store: Store, tmp_path: Path, changes: dict[str, Any], held_from: int
) -> None:
    """Else it would be lowered for the sake of levels that are closed, and then be far too low."""
    trainer = trainer_of(
        tiny_store, tmp_path, training__rate_target=0.01, training__epochs=6,
        likelihood__warmup_epochs=0, **changes,
    )  # fmt: skip
    rows = rows_of(trainer)
    assert trainer.controller.rates == [row["rate"] for row in rows[held_from - 1 :]]
    weights = [row["beta"] for row in rows] + [trainer.controller.beta]
    assert weights[:held_from] == [1.0] * held_from
    moved = [later / now for now, later in pairwise(weights)]
    assert moved[held_from - 1 :] == pytest.approx([2.0] * (7 - held_from))  # as far as it goes


def test_the_weight_follows_the_term_s_unit_when_the_warm_up_ends(
    tiny_store: Store, tmp_path: Path
) -> None:
    changes = {"training__epochs": 2, "training__rate_target": 30.0}
    trainer = trainer_of(tiny_store, tmp_path, likelihood__term="watson_dft", **changes)
    first, second = (row["beta"] for row in rows_of(trainer))
    assert not 0.4 < second / first < 2.1  # further than the controller goes by itself


# ------------------------------------------------------------------ the end


@pytest.mark.parametrize(
    ("warm_up", "psnr", "best"),
    [(0, [20, 25, 24, 23], 2), (2, [30, 29, 25, 24], 3), (9, [30, 29, 28, 27], 4),
     (2, [30, 29, math.nan, 24], 4)],
)  # fmt: skip
def test_the_best_checkpoint_is_the_best_since_the_warm_up(
    tiny_store: Store, tmp_path: Path, warm_up: int, psnr: list[float], best: int
) -> None:
    """Under the Gaussian term of the warm-up PSNR is higher: it must not win for that."""
    rows_of(trainer_of(tiny_store, tmp_path, FixedMonitor(psnr), likelihood__warmup_epochs=warm_up))
    assert find_checkpoint(tmp_path / "checkpoints", "best").state.epoch == best
    assert find_checkpoint(tmp_path / "checkpoints", "last").state.epoch == 4


@pytest.mark.parametrize("slow", ["steps", "validation"])
def test_the_clock_opens_levels_and_stops_a_run_which_is_then_finished(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """A step is 6 of 60 seconds, half of the time is over in step 5; or a validation is 61, and the
    epoch after it, which ends at once, is validated and the last."""
    now = 0.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    monitor = FixedMonitor()
    trainer = trainer_of(
        tiny_store, tmp_path, monitor, training__epochs=1000, training__max_minutes=1.0,
        training__checkpoint_every=100, model__levels=[Level(4, 2), Level(8, 1, opens=0.5)],
    )  # fmt: skip
    train_on, validate, opened = trainer._train_on, trainer._validate, []

    def taking_time(call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def taken(*arguments: Any) -> Any:
            nonlocal now
            result = call(*arguments)
            opened.append(trainer.objective.vae.decoder.opened.sum().item())
            now += seconds
            return result

        return taken

    if slow == "steps":
        monkeypatch.setattr(trainer, "_train_on", taking_time(train_on, 6.0))
    else:
        monkeypatch.setattr(trainer, "_validate", taking_time(validate, 61.0))
    rows = rows_of(trainer)
    if slow == "steps":
        assert opened == [1] * 5 + [2] * 5
        learning = trainer.steps.optimizer.param_groups[0]["lr"]
        assert learning < 0.5 * trainer.config.training.learning_rate  # it saw the clock
    else:
        assert trainer.epoch == 2 == len(monitor.seen) and "validation_psnr" in rows[-1]
    assert find_checkpoint(tmp_path / "checkpoints", "last").state.finished


@pytest.mark.parametrize(
    ("psnr", "step", "words"),
    [(9.0, 0, "diverged, or was too short"), (14.3, LONG_ENOUGH, ""), (14.2, LONG_ENOUGH, "mean")],
)
def test_a_training_that_ends_with_the_mean_slice_says_so_and_a_long_one_fails(
    psnr: float, step: int, words: str, tiny_store: Store, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(FixedMonitor, "psnr_of_the_mean", lambda _: 14.2)
    trainer = trainer_of(tiny_store, tmp_path, FixedMonitor([psnr]), training__epochs=1)
    trainer.step = step
    if words == "mean":
        with pytest.raises(Failed, match="mean slice"):
            trainer.fit(Tracker())
        return
    notes = " ".join(missed(trainer, trainer.fit(Tracker())))
    assert words in notes and ("training.learning_rate (now 0.004)" in notes) == bool(words)


def test_the_mean_slice_is_scored_as_a_reconstruction(tiny_store: Store) -> None:
    rows = [
        tiny_store.images(entry).astype("float64") for entry in tiny_store.subjects("validation")
    ]
    mean = np.concatenate(rows).mean(0)
    errors = [np.square(images - mean).mean(axis=(1, 2, 3)) for images in rows]
    expected = np.mean([-10 * np.log10(error).mean() for error in errors])
    monitor = ValidationMonitor(tiny_store, torch.device("cpu"))
    assert monitor.psnr_of_the_mean() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("sound_below", "setbacks"), [(3e-4, 2), (0.0, MOST_SETBACKS)])
def test_a_training_that_runs_away_goes_on_at_half_the_rate_and_ends_where_it_keeps_to_it(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    sound_below: float, setbacks: int,
) -> None:  # fmt: skip
    """The rate runs away after step 16 unless the learning rate is below a number."""
    monkeypatch.setattr(control, "FEWEST", 10)
    monkeypatch.setattr(control, "IN_A_ROW", 5)
    trainer = trainer_of(tiny_store, tmp_path, training__epochs=9, training__learning_rate=1e-3)
    step, learning = trainer.steps, {}

    class RunsAway(type(step)):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **keys: Any) -> dict[str, float]:
            means = super().__call__(*arguments, **keys)
            learning[len(trainer.setbacks), trainer.step] = self.optimizer.param_groups[0]["lr"]
            rate = 1e-3 * 0.5 ** len(trainer.setbacks)
            return means | ({"rate": 1e13} if trainer.step > 16 and rate > sound_below else {})

    step.__class__ = RunsAway
    fails = pytest.raises(Failed, match="learning_rate")
    with contextlib.nullcontext() if sound_below else fails:
        trainer.fit(Tracker())
    assert learning[1, 13] == pytest.approx(0.5 * learning[0, 13])
    state = find_checkpoint(tmp_path / "checkpoints", "last").state
    assert state.finished == bool(sound_below) and len(state.setbacks) == setbacks
    assert all("went back to step 12" in text and "1e+13" in text for text in state.setbacks)


# ------------------------------------------------------------------ nothing is finite


def _spoil(trainer: Interrupted, how: str, step: int | None = None) -> None:
    """Let the weights be broken, or images, loss or a gradient of one step, or of every one."""

    def now() -> bool:
        return step is None or trainer.step == step

    if how == "weights":
        with torch.no_grad():
            next(trainer.objective.vae.decoder.parameters()).fill_(math.nan)
    elif how == "images":
        trainer.spoil = lambda _, images: images * math.nan if now() else images
    elif how == "loss":
        rates = trainer.objective.vae.rates
        trainer.objective.vae.rates = lambda posterior: {  # type: ignore[method-assign]
            side: rate * math.inf if now() else rate for side, rate in rates(posterior).items()
        }
    else:
        network = trainer.objective.kernel_network
        part = network if how == "kernel gradient" else trainer.objective.vae
        assert part is not None
        next(part.parameters()).register_hook(lambda g: g + math.inf if now() else g)


@pytest.mark.parametrize(
    ("how", "step"),
    [("images", 0), ("images", SKIPPED), ("loss", SKIPPED), ("gradient", SKIPPED),
     ("kernel gradient", SKIPPED)],
)  # fmt: skip
def test_a_batch_that_is_not_finite_leaves_no_trace(
    tiny_store: Store, tmp_path: Path, how: str, step: int
) -> None:
    """Weights, averaged weights, optimisers, running scale: as before; training goes on."""
    trainer, tracker = trainer_of(tiny_store, tmp_path), Rows()
    _spoil(trainer, how, step)
    states: list[tuple[dict[str, Any], dict[str, Any]]] = []
    train_on = trainer._train_on

    def watched(images: Tensor) -> None:
        before = everything(trainer)
        train_on(images)
        states.append((before, everything(trainer)))

    trainer._train_on = watched  # type: ignore[method-assign]
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


def test_an_epoch_without_a_finite_batch_is_no_end_and_none_after_it_the_best(
    tiny_store: Store, tmp_path: Path
) -> None:
    trainer, tracker = trainer_of(tiny_store, tmp_path, FixedMonitor([20, 21, 30, 22])), Rows()
    trainer.spoil = lambda step, images: images * math.nan if step in (3, 4, 5, 8) else images
    trainer.fit(tracker)
    assert [row["skipped_batches"] for row in tracker.rows.values()] == [0.0, 3.0, 4.0, 4.0]
    assert "elbo" not in tracker.rows[2] and "elbo" in tracker.rows[3]
    assert trainer.step == STEPS == best_step(tmp_path / "checkpoints")  # not 9, with PSNR 30


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("weights", "the weights are not finite: train anew with --restart true"),
        ("images", "the images are not finite: prepare the store again"),
        ("loss", "the loss overflows: lower training.learning_rate"),
        ("gradient", "a gradient overflows: lower training.learning_rate"),
    ],
)
def test_too_many_batches_in_a_row_that_are_not_finite_end_the_run_and_name_the_cause(
    tiny_store: Store, tmp_path: Path, how: str, words: str
) -> None:
    trainer = trainer_of(tiny_store, tmp_path, training__max_skipped=3)
    _spoil(trainer, how)
    with pytest.raises(InputError, match=r"4 batches in a row.*training\.max_skipped 3") as error:
        trainer.fit(Rows())
    assert words in str(error.value) and best_step(tmp_path / "checkpoints") is None


# ------------------------------------------------------------------ stores and settings


def test_sagittal_slices_are_never_mirrored(work: Path, tmp_path: Path, store_writer: Any) -> None:
    """Left and right of a sagittal slice are front and back."""
    for plane, mirrored in (("axial", True), ("sagittal", False)):
        store = store_writer(work, name=plane, plane=plane)
        assert trainer_of(store, tmp_path).flip == mirrored
        assert not trainer_of(store, tmp_path, data__flip=False).flip


@pytest.mark.parametrize("splits", [("test", "validation"), ("test",)], ids=str)
def test_a_store_with_nobody_to_train_on_is_refused(
    work: Path, store_writer: Any, splits: tuple[str, ...]
) -> None:
    store_writer(work, splits=splits)
    with pytest.raises(InputError, match=r"no training slices: see prepare\.split"):
        train_run(config(), "nobody")
    assert not (work / "runs/nobody/checkpoints").exists()
