"""Laws of the means and their intervals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.aggregate import aggregate, bootstrap

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12).map(np.array)


@settings(deadline=None, max_examples=40)
@given(values=VALUES)
def test_the_interval_is_ordered_deterministic_and_within_the_values(values: np.ndarray) -> None:
    first = bootstrap(values, samples=200)
    assert first == bootstrap(values.copy(), samples=200)
    low, mean, high = (first[key] for key in ("low", "mean", "high"))
    assert low is not None and mean is not None and high is not None
    slack = 1e-9 * (1 + np.abs(values).max())
    assert values.min() - slack <= low <= mean <= high <= values.max() + slack


def test_another_seed_gives_another_interval_of_the_same_mean() -> None:
    values = np.random.default_rng(0).normal(size=20)
    first, second = bootstrap(values, seed=0), bootstrap(values, seed=1)
    assert first["mean"] == second["mean"] and first["low"] != second["low"]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        interval = bootstrap(generator.normal(size=40), samples=300)
        assert interval["low"] is not None and interval["high"] is not None
        hits += interval["low"] <= 0.0 <= interval["high"]
    assert 0.90 <= hits / 300 <= 0.98


def test_the_interval_is_between_quantiles_of_means_of_subjects_drawn_with_replacement() -> None:
    values, random = np.random.default_rng(3).gamma(2.0, size=25), np.random.default_rng(9)
    means = values[random.integers(25, size=(20_000, 25))].mean(axis=1)
    found = bootstrap(values, samples=20_000, seed=4)
    assert [found["low"], found["high"]] == pytest.approx(
        np.quantile(means, [0.025, 0.975]), rel=0.01
    )
    assert bootstrap(values, samples=20_000, seed=9) == pytest.approx(
        {"mean": values.mean(), "low": np.quantile(means, 0.025), "high": np.quantile(means, 0.975)}
    )


def test_a_higher_level_is_wider() -> None:
    values = np.random.default_rng(0).normal(size=30)
    narrow, wide = bootstrap(values, level=0.5), bootstrap(values, level=0.99)
    assert narrow["low"] is not None and wide["low"] is not None
    assert narrow["high"] is not None and wide["high"] is not None
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_one_subject_has_no_width() -> None:
    assert bootstrap(np.array([0.7])) == {"mean": 0.7, "low": 0.7, "high": 0.7}


def test_large_cohorts_are_drawn_in_blocks_of_the_right_number() -> None:
    values = np.random.default_rng(0).normal(size=30_000)
    interval = bootstrap(values, samples=300)
    assert interval["low"] is not None and interval["high"] is not None
    assert interval["high"] - interval["low"] == pytest.approx(2 * 1.96 / np.sqrt(30_000), rel=0.2)


@pytest.mark.parametrize("values", [[], [np.nan], [1.0, np.nan], [np.inf, 1.0]])
def test_what_is_undefined_is_none_and_valid_json(values: list[float]) -> None:
    result = aggregate({"metric": np.array(values)})
    assert result == {"metric": {"mean": None, "low": None, "high": None}}
    json.dumps(result, allow_nan=False)


def test_a_constant_shift_shifts_two_metrics_alike() -> None:
    """The same subjects are drawn for every metric, so intervals of metrics belong together."""
    values = np.random.default_rng(0).normal(size=10)
    result = aggregate({"a": values, "b": values + 1.0})
    for key in ("mean", "low", "high"):
        left, right = result["a"][key], result["b"][key]
        assert left is not None and right == pytest.approx(left + 1.0)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="S,"):
        bootstrap(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="level"):
        bootstrap(np.zeros(2), level=1.0)
    with pytest.raises(ValueError, match="samples"):
        bootstrap(np.zeros(2), samples=0)
    with pytest.raises(ValueError, match="different numbers"):
        aggregate({"a": np.zeros(2), "b": np.zeros(3)})
