"""Levels open from coarse to fine, the rate's weight warms up, and β waits for both."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from trainers import FixedMonitor, Rows, config

import pipeline.training.loop as loop
from data_prep.store import Store
from pipeline.models.config import Level
from pipeline.training.loop import Trainer


def _trainer(store: Store, folder: Path, **changes: Any) -> Trainer:
    return Trainer(config(**changes), store, folder, FixedMonitor())


def _rows(trainer: Trainer) -> list[dict[str, float]]:
    """Train to the end; the metrics of every epoch."""
    tracker = Rows()
    trainer.fit(tracker)
    return list(tracker.rows.values())


def _spied_steps(trainer: Trainer, look: Callable[..., Any]) -> list[Any]:
    """What `look` says at the beginning of every step; it may take the step's arguments."""
    seen: list[Any] = []
    step = trainer.steps

    class Spied:
        def __getattr__(self, name: str) -> Any:
            return getattr(step, name)

        def __call__(self, *rest: Any, **options: Any) -> Any:
            seen.append(look(*rest, **options))
            return step(*rest, **options)

    trainer.steps = Spied()  # type: ignore[assignment]
    return seen


def test_levels_open_at_their_share_of_the_steps(tiny_store: Store, tmp_path: Path) -> None:
    """Of 12 steps, 0 to 11: at 0.5 from step 6 on."""
    levels = [Level(4, 2), Level(8, 1, opens=0.3), Level(16, 1, opens=0.5)]
    trainer = _trainer(tiny_store, tmp_path, model__levels=levels)
    seen = _spied_steps(trainer, lambda *_, **__: trainer.objective.vae.decoder.opened.sum().item())
    first, second, third, fourth = _rows(trainer)
    assert seen == [1] * 4 + [2] * 2 + [3] * 6
    assert [first["levels_open"], third["levels_open"], fourth["levels_open"]] == [1, 3, 3]
    assert second["levels_open"] == pytest.approx((1 + 2 + 2) / 3)
    assert first["rate_side_8"] == first["rate_side_16"] == second["rate_side_16"] == 0
    assert second["rate_side_8"] > 0 < third["rate_side_16"]
    assert trainer.steps.averaged.vae.decoder.opened.tolist() == [1, 1, 1]


def test_levels_open_by_the_clock_where_that_ends_the_run(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step is 6 of 60 seconds, and an epoch has three: half of the time is over in step 5."""
    now = 0.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    trainer = _trainer(
        tiny_store, tmp_path, training__epochs=1000, training__max_minutes=1.0,
        model__levels=[Level(4, 2), Level(8, 1, opens=0.5)],
    )  # fmt: skip
    train_on = trainer._train_on
    seen = []

    def taking_time(images: Tensor) -> None:
        nonlocal now
        train_on(images)
        seen.append(trainer.objective.vae.decoder.opened.sum().item())
        now += 6.0

    monkeypatch.setattr(trainer, "_train_on", taking_time)
    _rows(trainer)
    assert seen == [1] * 5 + [2] * 5


def test_the_weight_of_the_rate_warms_up(tiny_store: Store, tmp_path: Path) -> None:
    trainer = _trainer(
        tiny_store, tmp_path, training__epochs=2, training__rate_warmup_steps=4, training__beta=0.7
    )
    weights = []
    _spied_steps(trainer, lambda *_, beta, **__: weights.append(beta))
    rows = _rows(trainer)
    assert weights == pytest.approx([0.7 * share for share in (0.25, 0.5, 0.75, 1, 1, 1)])
    assert [row["beta"] for row in rows] == [0.7, 0.7]


@pytest.mark.parametrize(
    ("changes", "held_from"),
    [
        # Of 18 steps, 3 an epoch, a level that opens at 0.4 is open from step 8 on: in epoch 4 all.
        ({"model__levels": [Level(4, 2), Level(8, 1, opens=0.4)]}, 4),
        # The weight has its full size from step 4 on: in epoch 3 all.
        ({"model__levels": [Level(4, 2)], "training__rate_warmup_steps": 5}, 3),
        ({"model__levels": [Level(4, 2)], "training__rate_warmup_steps": 0}, 1),
    ],
    ids=["a level is closed", "the weight warms up", "neither"],
)
def test_the_weight_is_not_moved_before_all_can_spend_nats(
    tiny_store: Store, tmp_path: Path, changes: dict[str, Any], held_from: int
) -> None:
    """Else it would be lowered for the sake of levels that are closed, and then be far too low."""
    trainer = _trainer(
        tiny_store, tmp_path, training__rate_target=0.01, training__epochs=6,
        likelihood__warmup_epochs=0, **changes,
    )  # fmt: skip
    rows = _rows(trainer)
    assert trainer.controller.rates == [row["rate"] for row in rows[held_from - 1 :]]
    weights = [row["beta"] for row in rows] + [trainer.controller.beta]
    assert weights[:held_from] == [1.0] * held_from
    moved = [later / now for now, later in pairwise(weights)]
    assert moved[held_from - 1 :] == pytest.approx([2.0] * (7 - held_from))  # as far as it goes
