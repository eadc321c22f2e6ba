"""The controller holds the rate; the watch catches a training that runs away, and no other."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.training.control import IN_A_ROW, Diverged, RateController, Watch

VALUES = 4096


@given(
    target=st.floats(20, 500),
    elasticity=st.floats(0.25, 1.2),
    at_one=st.floats(20, 1000),
    start=st.floats(0.05, 20),
)
def test_it_meets_the_target_whatever_the_slope(
    target: float, elasticity: float, at_one: float, start: float
) -> None:
    """KL(β) = KL(1)·β^(−elasticity), the model following at once."""
    assume(1e-4 < (at_one / target) ** (1 / elasticity) < 1e4)  # the β it takes
    controller = RateController(beta=start, target=target)
    rate = math.nan
    for _ in range(60):
        rate = at_one * controller.beta**-elasticity
        controller.update(rate)
    assert rate == pytest.approx(target, rel=0.03)
    assert controller.settled


@given(elasticity=st.floats(0.4, 1.2), lag=st.floats(0.5, 3.0), at_one=st.floats(1000.0, 3000.0))
def test_it_does_not_swing_about_the_target(elasticity: float, lag: float, at_one: float) -> None:
    """A model that takes some epochs to follow: within 10% for good after 18 of them.

    lag: epochs after which 1/e of the way is left. Means over each epoch.
    """
    controller = RateController(target=800.0)
    log_rate, rates = math.log(at_one), []
    for _ in range(24):
        aim = math.log(at_one) - elasticity * math.log(controller.beta)
        left = math.exp(-1 / lag)
        mean = aim + (log_rate - aim) * lag * (1 - left)
        log_rate = aim + (log_rate - aim) * left
        rates.append(math.exp(mean))
        controller.update(rates[-1])
    assert all(rate == pytest.approx(800.0, rel=0.1) for rate in rates[18:])


@given(st.floats(0.01, 100), st.floats(1e-3, 1e9), st.floats(1, 1e4))
def test_an_epoch_moves_it_towards_the_target_and_not_too_far(
    beta: float, rate: float, target: float
) -> None:
    held, free = RateController(beta=beta, target=target), RateController(beta=beta)
    moved = held.update(rate) / beta
    assert 1 / held.largest_step <= moved * (1 + 1e-9) and moved <= held.largest_step * (1 + 1e-9)
    assert (moved > 1) == (rate > target) or moved == pytest.approx(1)
    assert free.update(rate) == beta and free.settled


def test_a_collapsed_posterior_or_a_factor_that_means_nothing_does_not_break_it() -> None:
    controller = RateController(target=100.0)
    for _ in range(100):
        controller.update(0.0)
        controller.update(1e-12)
    assert controller.beta == controller.smallest
    for factor in (math.nan, math.inf, 0.0):
        controller.reweight(factor)
    assert controller.beta == controller.smallest
    controller.reweight(3e5)
    assert controller.beta == pytest.approx(0.3)
    controller.reweight(1e9)
    assert controller.beta == controller.largest


@pytest.mark.parametrize(
    ("rates", "settled"),
    [
        ([], False),
        ([96.9], False),
        ([97.1], True),
        ([103.1], False),
        ([500.0] * 18 + [94.0, 105.0], True),  # of 20 epochs the last two count, together
        ([100.0] * 18 + [94.0, 95.0], False),
    ],
)
def test_settled_means_within_three_percent(rates: list[float], settled: bool) -> None:
    assert RateController(target=100.0, rates=rates).settled == settled


def test_a_missed_target_is_said_with_what_was_held_and_the_way_out() -> None:
    held = RateController(target=100.0, rates=[500.0] * 18 + [140.0, 150.0]).miss(31, 300)
    assert "hold 145 nats, not training.rate_target 100" in held
    assert "after 20 of 31 epochs" in held and "training.rate_warmup_steps (300)" in held
    assert "never moved" in RateController(target=100.0).miss(9, 300)


@pytest.mark.parametrize(
    ("usual", "rate", "distortion", "caught"),
    [
        (1800.0, 1e13, -9000.0, True),
        (1800.0, 2000.0, 1355.0, True),
        (130.0, 1950.0, -9000.0, False),  # a level opens
        (3000.0, 55000.0, -9000.0, False),  # a codec's rate, below 20 times as much
        (1800.0, 60.0, -9000.0, False),  # the rate falls
        (1800.0, 1800.0, -5200.0, False),  # a noisy batch
    ],
)
def test_only_a_rate_or_distortion_far_above_its_level_is_caught(
    usual: float, rate: float, distortion: float, caught: bool
) -> None:
    """Outliers are no run-away; the term after the warm-up has a level of its own."""
    watch = Watch(VALUES)
    for _ in range(60):
        watch.step(usual, 9000.0, warm_up=True)
    for step in range(100):
        watch.step(1e9 if step % 30 == 29 else usual, -9000.0, warm_up=False)
    for _ in range(IN_A_ROW - 1):
        watch.step(rate, distortion, warm_up=False)
    if caught:
        with pytest.raises(Diverged):
            watch.step(rate, distortion, warm_up=False)
    else:
        watch.step(rate, distortion, warm_up=False)
