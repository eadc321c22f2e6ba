"""Trainings that run away go back to an earlier checkpoint; none ends with a mean image."""

from pathlib import Path
from typing import Any

import pytest
from trainers import FixedMonitor, config

from data_prep.common.tracking import Tracker
from pipeline.data.slices import Store
from pipeline.errors import Failed
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.control import IN_A_ROW, Diverged, Watch
from pipeline.training.loop import LONG_ENOUGH, MOST_SETBACKS, Trainer

VALUES = 4096


def _watch(rate: float, distortion: float, steps: int = 100) -> Watch:
    """One that has seen a level, with outliers that are no run-away."""
    watch = Watch(VALUES)
    for step in range(steps):
        outlier = step % 30 == 29
        watch.step(1e9 if outlier else rate, distortion, warm_up=False)
    return watch


@pytest.mark.parametrize(("rate", "distortion"), [(1e13, -9000.0), (2000.0, 1355.0)])
def test_a_rate_or_distortion_far_above_its_level_is_caught(rate: float, distortion: float) -> None:
    watch = _watch(1800.0, -9000.0)
    for _ in range(IN_A_ROW - 1):
        watch.step(rate, distortion, warm_up=False)
    with pytest.raises(Diverged):
        watch.step(rate, distortion, warm_up=False)


@pytest.mark.parametrize(
    ("rate", "distortion"),
    [(130.0 * 15, -9000.0), (60.0, -9000.0), (1800.0, -5200.0)],
    ids=["a level opens", "the rate falls", "a noisy batch"],
)
def test_what_sound_trainings_do_is_not_caught(rate: float, distortion: float) -> None:
    watch = _watch(130.0 if rate > 1800 else 1800.0, -9000.0)
    for _ in range(5 * IN_A_ROW):
        watch.step(rate, distortion, warm_up=False)


def test_the_term_after_the_warm_up_has_a_level_of_its_own() -> None:
    watch = Watch(VALUES)
    for warm_up, distortion in ((True, -9000.0), (False, 9000.0)):
        for _ in range(100):
            watch.step(1800.0, distortion, warm_up)


def _trainer(store: Store, folder: Path, sound_below: float, **changes: Any) -> Trainer:
    """A trainer whose rate runs away after step 60 unless its learning rate is below a number."""
    settings = config(training__epochs=50, training__learning_rate=1e-3, **changes)
    trainer = Trainer(settings, store, folder, FixedMonitor())
    step = trainer.steps

    class RunsAway(type(step)):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **keys: Any) -> dict[str, float]:
            means = super().__call__(*arguments, **keys)
            rate = 1e-3 * 0.5 ** len(trainer.setbacks)
            return means | ({"rate": 1e13} if trainer.step > 60 and rate > sound_below else {})

    step.__class__ = RunsAway
    return trainer


def test_a_training_that_runs_away_goes_on_at_half_the_rate(
    tiny_store: Store, tmp_path: Path
) -> None:
    trainer = _trainer(tiny_store, tmp_path, sound_below=3e-4)
    trainer.fit(Tracker())
    state = find_checkpoint(tmp_path / "checkpoints", "last").state
    assert state.finished and state.epoch == 50
    assert len(state.setbacks) == 2
    assert all("went back to step 57" in setback for setback in state.setbacks)
    assert all("1e+13" in setback for setback in state.setbacks)


def test_a_training_that_keeps_running_away_ends(tiny_store: Store, tmp_path: Path) -> None:
    trainer = _trainer(tiny_store, tmp_path, sound_below=0.0)
    with pytest.raises(Failed, match="learning_rate"):
        trainer.fit(Tracker())
    state = find_checkpoint(tmp_path / "checkpoints", "last").state
    assert not state.finished and len(state.setbacks) == MOST_SETBACKS


@pytest.mark.parametrize(("step", "ends"), [(LONG_ENOUGH, True), (LONG_ENOUGH - 1, False)])
def test_a_long_training_never_ends_with_a_mean_image(
    step: int, ends: bool, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FixedMonitor, "psnr_of_the_mean", lambda _: 99.0)
    trainer = Trainer(config(training__epochs=1), tiny_store, tmp_path, FixedMonitor())
    trainer.step = step - 3
    if ends:
        with pytest.raises(Failed, match="mean slice"):
            trainer.fit(Tracker())
    else:
        trainer.fit(Tracker())
