"""The loop: what it does in an epoch, and what it tells of it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trainers import FixedMonitor, Rows, config

import pipeline.training.loop as loop
from data_prep.store import Store
from pipeline.config import TrainingConfig
from pipeline.distributed import choose_device
from pipeline.errors import InputError
from pipeline.models.config import Level
from pipeline.training.checkpoint import Checkpoint, find_checkpoint
from pipeline.training.description import levels_of, rates, summary
from pipeline.training.loop import Trainer, load_objective
from pipeline.training.monitor import ValidationMonitor
from pipeline.training.objective import Objective
from pipeline.training.train import missed


def _trainer(
    store: Store, folder: Path, monitor: FixedMonitor | None = None, **changes: Any
) -> Trainer:
    return Trainer(config(**changes), store, folder, monitor or FixedMonitor())


def _rows(trainer: Trainer) -> list[dict[str, float]]:
    """Metrics per epoch, without what the clock decides."""
    assert isinstance(trainer.tracker, Rows)
    return list(trainer.tracker.rows.values())


def _last(folder: Path) -> Checkpoint:
    return find_checkpoint(folder / "checkpoints", "last")


def test_the_same_seed_gives_the_same_losses(tiny_store: Store, tmp_path: Path) -> None:
    runs = [
        _trainer(tiny_store, tmp_path / str(i), training__epochs=2, training__seed=seed)
        for i, seed in enumerate((3, 3, 4))
    ]
    for run in runs:
        run.fit(Rows())
    assert _rows(runs[0]) == _rows(runs[1])
    assert _rows(runs[0])[0]["distortion"] != _rows(runs[2])[0]["distortion"]


def test_terms_see_the_same_batches_and_start_from_the_same_weights(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Objective.forward
    batches: dict[str, list[Tensor]] = {"gaussian": [], "blur": []}
    starts: dict[str, list[Tensor]] = {}
    for term, seen in batches.items():

        def forward(
            self: Objective, image: Tensor, *rest: Any, seen: list[Tensor] = seen, **options: Any
        ) -> Any:
            parts = original(self, image, *rest, **options)
            seen.append(image.clone())
            return parts

        monkeypatch.setattr(Objective, "forward", forward)
        trainer = _trainer(tiny_store, tmp_path / term, likelihood__term=term, training__epochs=2)
        starts[term] = [p.detach().clone() for p in trainer.objective.vae.parameters()]
        trainer.fit(Rows())
    assert len(batches["gaussian"]) == len(batches["blur"]) == 6
    for pair in (batches, starts):
        for left, right in zip(pair["gaussian"], pair["blur"], strict=True):
            assert torch.equal(left, right)


def test_tracked_are_the_parts_of_the_elbo_and_the_kernel(
    tiny_store: Store, tmp_path: Path
) -> None:
    trainer = _trainer(tiny_store, tmp_path, training__epochs=2)
    last = trainer.fit(Rows())
    assert {
        "elbo", "distortion", "rate", "kernel_loss", "kernel_width", "scale", "beta",
        "validation_psnr", "images_per_second",
    } <= set(last)  # fmt: skip
    assert all(math.isfinite(value) for value in last.values())
    assert last["elbo"] == pytest.approx(-(last["distortion"] + last["rate"]), rel=1e-5)
    words = summary(last)
    assert "dB" in words and "nats" in words and "\n" not in words


def test_tracked_and_shown_is_the_rate_of_each_level(tiny_store: Store, tmp_path: Path) -> None:
    trainer = _trainer(tiny_store, tmp_path, training__epochs=2)
    last = trainer.fit(Rows())
    for row in _rows(trainer):
        levels = levels_of(row)
        assert list(levels) == [4, 8] and all(rate > 0 for rate in levels.values())
        assert sum(levels.values()) == pytest.approx(row["rate"], rel=1e-5)
    assert last["levels_open"] == 2
    shown = rates(last | {"rate_side_4": 100.4, "rate_side_8": 24.3})
    assert shown == "rate by level 4²: 100, 8²: 24 nats"
    flat = _trainer(tiny_store, tmp_path / "flat", training__epochs=1, model__levels=[Level(4, 2)])
    assert rates(flat.fit(Rows())) == ""


def test_the_kernel_network_learns_from_the_first_step(tiny_store: Store, tmp_path: Path) -> None:
    trainer = _trainer(tiny_store, tmp_path, training__epochs=1, likelihood__warmup_epochs=5)
    assert trainer.objective.kernel_network is not None
    before = [p.detach().clone() for p in trainer.objective.kernel_network.parameters()]
    assert "kernel_loss" in trainer.fit(Rows())
    after = trainer.objective.kernel_network.parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_weight_follows_the_term_s_unit_when_the_warm_up_ends(
    tiny_store: Store, tmp_path: Path
) -> None:
    """With a rate target only: else β is the user's."""
    for target in (None, 30.0):
        trainer = _trainer(
            tiny_store, tmp_path / str(target), training__epochs=2, training__rate_target=target,
            likelihood__term="watson_dft", likelihood__warmup_epochs=1,
        )  # fmt: skip
        trainer.fit(Rows())
        first, second = (row["beta"] for row in _rows(trainer))
        if target is None:
            assert first == second == 1.0
        else:  # further than the controller goes by itself
            assert not 0.4 < second / first < 2.1


def test_an_epoch_has_as_many_steps_as_it_may(tiny_store: Store, tmp_path: Path) -> None:
    trainer = _trainer(tiny_store, tmp_path, training__epochs=3, training__epoch_steps=2)
    trainer.fit(Rows())
    assert trainer.step == 6
    assert trainer.finished


def test_the_averaged_weights_are_the_documented_average(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weight of the old average: (1+n)/(10+n) of the n-th step, at most `ema_decay`."""
    trainer = _trainer(tiny_store, tmp_path, training__epochs=3, training__ema_decay=0.3)
    history = []
    averaged = trainer.steps._averaged
    update = averaged.update_parameters

    def recording(model: torch.nn.Module) -> None:
        history.append(next(model.parameters()).detach().clone())
        update(model)

    monkeypatch.setattr(averaged, "update_parameters", recording)
    trainer.fit(Rows())
    expected = history[0]
    for n, weight in enumerate(history[1:], start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
    found = next(trainer.steps.averaged.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert len(history) == 9 == trainer.step


def test_evaluation_looks_at_the_averaged_weights(tiny_store: Store, tmp_path: Path) -> None:
    monitor = FixedMonitor()
    trainer = _trainer(tiny_store, tmp_path, monitor, training__epochs=2)
    trainer.fit(Rows())
    assert all(model is trainer.steps.averaged for model in monitor.seen)
    loaded = load_objective(_last(tmp_path), trainer.config)
    assert not loaded.training
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, trainer.steps.averaged.state_dict()[key])


@pytest.mark.parametrize(
    ("warm_up", "psnr", "best"),
    [
        (0, [20, 25, 24, 23], 2),
        (2, [30, 29, 24, 25], 4),
        (2, [30, 29, 25, 24], 3),
        (9, [30, 29, 28, 27], 4),
        (2, [30, 29, math.nan, 24], 4),
    ],
)
def test_the_best_checkpoint_is_the_best_since_the_warm_up(
    tiny_store: Store, tmp_path: Path, warm_up: int, psnr: list[float], best: int
) -> None:
    """Under the Gaussian term of the warm-up PSNR is higher: it must not win for that."""
    trainer = _trainer(tiny_store, tmp_path, FixedMonitor(psnr), likelihood__warmup_epochs=warm_up)
    trainer.fit(Rows())
    assert find_checkpoint(tmp_path / "checkpoints", "best").state.epoch == best
    assert _last(tmp_path).state.epoch == 4


def test_the_clock_stops_a_run_which_is_then_finished(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def monotonic() -> float:
        nonlocal now
        now += 2.0
        return now

    monkeypatch.setattr(loop.time, "monotonic", monotonic)
    trainer = _trainer(tiny_store, tmp_path, training__epochs=1000, training__max_minutes=1.0)
    trainer.fit(Rows())
    assert 1 <= trainer.epoch < 20
    rates = {group["lr"] for group in trainer.steps.optimizer.param_groups}
    assert max(rates) < 0.5 * trainer.config.training.learning_rate  # the schedule saw the clock
    assert _last(tmp_path).state.finished


def test_a_clock_that_runs_out_in_validation_still_finishes_the_run(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch after it ends at once, is validated, and is the last."""
    now = 0.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)

    class Slow(FixedMonitor):
        def validate(self, *rest: Any, **options: Any) -> dict[str, float]:
            nonlocal now
            now += 61.0
            return super().validate(*rest, **options)

    monitor = Slow()
    trainer = _trainer(
        tiny_store, tmp_path, monitor, training__epochs=1000, training__max_minutes=1.0,
        training__validate_every=1, training__checkpoint_every=100,
    )  # fmt: skip
    last = trainer.fit(Rows())
    assert trainer.epoch == 2 and len(monitor.seen) == 2 and "validation_psnr" in last
    assert _last(tmp_path).state.finished


def test_the_learning_rate_warms_up_and_decays_to_nothing(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(
        tiny_store, tmp_path, training__epochs=10, training__lr_warmup_steps=3,
        training__learning_rate=0.01,
    )  # fmt: skip
    rates = []
    step = trainer.steps.optimizer.step

    def recording(*args: Any) -> Any:
        rates.append(trainer.steps.optimizer.param_groups[0]["lr"])
        return step(*args)

    monkeypatch.setattr(trainer.steps.optimizer, "step", recording)
    trainer.fit(Rows())
    cosine = [0.005 * (1 + math.cos(math.pi * i / 30)) for i in range(30)]
    expected = [min((i + 1) / 3, 1) * value for i, value in enumerate(cosine)]
    assert rates == pytest.approx(expected)


def test_a_rate_above_its_target_makes_the_rate_dearer(tiny_store: Store, tmp_path: Path) -> None:
    """As far as the controller goes in an epoch, all levels open and the warm-up over."""
    trainer = _trainer(tiny_store, tmp_path, training__rate_target=0.01, training__epochs=3)
    trainer.fit(Rows())
    first, second, third = (row["beta"] for row in _rows(trainer))
    assert first == 1.0 and third == pytest.approx(2 * second)
    fixed = _trainer(tiny_store, tmp_path / "fixed", training__beta=0.7, training__epochs=2)
    fixed.fit(Rows())
    assert [row["beta"] for row in _rows(fixed)] == [0.7, 0.7]


def test_a_store_without_training_slices_is_refused(
    work: Path, tmp_path: Path, store_writer: Any
) -> None:
    store = store_writer(work, splits=("test", "validation"))
    with pytest.raises(InputError, match=r"no training slices: see prepare\.split"):
        _trainer(store, tmp_path)


def test_sagittal_slices_are_never_mirrored(work: Path, tmp_path: Path, store_writer: Any) -> None:
    """Left and right of a sagittal slice are front and back."""
    stores = [store_writer(work, name=plane, plane=plane) for plane in ("axial", "sagittal")]
    assert [_trainer(store, tmp_path).flip for store in stores] == [True, False]
    assert not _trainer(stores[0], tmp_path, data__flip=False).flip


@pytest.mark.parametrize(("psnr", "said"), [(9.05, True), (14.2, True), (14.3, False)])
def test_a_training_that_is_no_better_than_the_mean_slice_says_so(
    psnr: float, said: bool, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FixedMonitor, "psnr_of_the_mean", lambda _: 14.2)
    trainer = _trainer(tiny_store, tmp_path, training__learning_rate=0.004)
    notes = " ".join(missed(trainer, {"validation_psnr": psnr}))
    assert ("diverged" in notes) == said
    assert ("training.learning_rate (now 0.004)" in notes) == said


def test_without_validation_subjects_nothing_is_said(tiny_store: Store, tmp_path: Path) -> None:
    assert not list(missed(_trainer(tiny_store, tmp_path), {}))


def test_the_mean_slice_is_scored_as_a_reconstruction(tiny_store: Store) -> None:
    rows = [
        tiny_store.images(entry).astype("float64") for entry in tiny_store.subjects("validation")
    ]
    mean = np.concatenate(rows).mean(0)
    errors = [np.square(images - mean).mean(axis=(1, 2, 3)) for images in rows]
    expected = np.mean([-10 * np.log10(error).mean() for error in errors])
    monitor = ValidationMonitor(tiny_store, torch.device("cpu"))
    assert monitor.psnr_of_the_mean() == pytest.approx(expected, abs=1e-3)


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"training\.device 'gpu'"):
        choose_device("gpu")
    assert choose_device("cpu").type == "cpu"


def test_a_checkpoint_of_another_model_is_refused(tiny_store: Store, tmp_path: Path) -> None:
    _trainer(tiny_store, tmp_path, training__epochs=1).fit(Rows())
    with pytest.raises(InputError, match="does not fit"):
        load_objective(_last(tmp_path), config(model__width=8))


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 0), ("batch_size", -1), ("learning_rate", 0.0), ("beta", -1.0), ("max_minutes", -1),
     ("ema_decay", 1.0), ("rate_target", 0.0), ("gradient_clip", -0.1), ("threads", -1),
     ("seed", -1), ("accumulation", 0), ("keep_checkpoints", 0), ("max_skipped", -1),
     ("checkpoint_minutes", -1.0), ("lr_warmup_steps", -1), ("rate_warmup_steps", -1)],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"training\.{key}"):
        TrainingConfig(**{key: value})  # type: ignore[arg-type]
