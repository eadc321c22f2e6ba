"""The controller holds the rate."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.training.control import RateController


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


@given(target=st.floats(30, 300), start=st.floats(0.1, 10), lag=st.floats(0.2, 1.0))
def test_it_meets_the_target_of_a_model_that_follows_slowly(
    target: float, start: float, lag: float
) -> None:
    """A trained model's rate falls with log β and needs epochs to follow; noise of 1%."""
    controller = RateController(beta=start, target=target)
    log_rate, rates = math.log(200.0), []
    for epoch in range(200):
        aim = math.log(200.0) - 0.5 * math.log(controller.beta)
        log_rate += lag * (aim - log_rate)
        rates.append(math.exp(log_rate) * (1 + 0.01 * math.sin(7.0 * epoch)))
        controller.update(rates[-1])
    assert sum(rates[-20:]) / 20 == pytest.approx(target, rel=0.03)


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


@given(st.floats(0.01, 100), st.lists(st.floats(0, 1e6), max_size=20))
def test_without_a_target_the_weight_stays(beta: float, rates: list[float]) -> None:
    controller = RateController(beta=beta)
    assert all(controller.update(rate) == beta for rate in rates)
    assert controller.settled


@given(st.floats(1e-3, 1e9), st.floats(1, 1e4))
def test_one_epoch_moves_it_towards_the_target_and_not_too_far(rate: float, target: float) -> None:
    controller = RateController(beta=1.0, target=target)
    new = controller.update(rate)
    assert 1 / controller.largest_step <= new <= controller.largest_step
    assert (new > 1) == (rate > target) or new == 1


def test_a_collapsed_posterior_does_not_break_it() -> None:
    controller = RateController(target=100.0)
    for _ in range(100):
        controller.update(0.0)
        controller.update(1e-12)
    assert controller.beta == controller.smallest


@pytest.mark.parametrize(
    ("rates", "settled"),
    [
        ([], False),
        ([96.9], False),
        ([97.1], True),
        ([102.9], True),
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


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_reweighting_multiplies_the_weight_where_there_is_a_target(
    beta: float, factor: float
) -> None:
    held, free = RateController(beta=beta, target=100.0), RateController(beta=beta)
    for controller in (held, free):
        controller.reweight(factor)
    assert held.beta == pytest.approx(min(max(beta * factor, 1e-6), 1e6))
    assert free.beta == beta


@pytest.mark.parametrize("factor", [math.nan, math.inf, 0.0])
def test_a_factor_that_means_nothing_leaves_the_weight(factor: float) -> None:
    controller = RateController(beta=0.7, target=100.0)
    controller.reweight(factor)
    assert controller.beta == 0.7
