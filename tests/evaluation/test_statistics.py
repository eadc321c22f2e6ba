"""Laws of the means, their intervals over families, and paired differences."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.metrics.statistics import (
    aggregate,
    family_means,
    few,
    interval,
    over_families,
    paired_difference,
)

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).map(np.array)
TRIALS = 3000


def _covered(units: int, draws: np.ndarray, families: list[str] | None = None) -> float:
    """The share of trials (TRIALS, S) whose interval holds the truth, 0."""
    names = families or [str(unit) for unit in range(units)]
    ends = [over_families(row, names) for row in draws]
    return float(np.mean([end["low"] <= 0.0 <= end["high"] for end in ends]))  # type: ignore[operator]


@pytest.mark.parametrize("units", [3, 4, 7, 20])
def test_an_interval_covers_the_truth_as_often_as_it_says(units: int) -> None:
    draws = np.random.default_rng(units).normal(size=(TRIALS, units))
    assert _covered(units, draws) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("count", "sessions"), [(8, 4), (4, 2)])
def test_sessions_of_a_family_do_not_count_as_independent(count: int, sessions: int) -> None:
    random = np.random.default_rng(count)
    shared = random.normal(size=(TRIALS, count)).repeat(sessions, axis=1)
    draws = shared + 0.3 * random.normal(size=shared.shape)
    names = [str(family) for family in range(count) for _ in range(sessions)]
    assert _covered(count, draws, names) == pytest.approx(0.95, abs=0.02)


@settings(deadline=None, max_examples=40)
@given(values=VALUES, level=st.floats(0.1, 0.999))
def test_the_interval_is_student_s(values: np.ndarray, level: float) -> None:
    found = interval(values, level)
    error = stats.sem(values)
    mean = values.mean()
    low, high = stats.t.interval(level, len(values) - 1, mean, error) if error else (mean, mean)
    assert [found["low"], found["mean"], found["high"]] == pytest.approx([low, mean, high])


def test_families_weigh_alike_whatever_their_size_and_order() -> None:
    values, families = np.array([1.0, 2.0, 6.0, 3.0]), ["b", "a", "b", "b"]
    np.testing.assert_allclose(family_means(values, families), [10 / 3, 2.0])
    assert over_families(values, families)["mean"] == pytest.approx((10 / 3 + 2) / 2)


def test_one_family_has_no_interval() -> None:
    assert over_families(np.array([0.7, 0.9]), ["a", "a"]) == {
        "mean": pytest.approx(0.8), "low": None, "high": None,
    }  # fmt: skip


@pytest.mark.parametrize("values", [[], [np.nan], [1.0, np.nan], [np.inf, 1.0]])
def test_what_is_undefined_is_none_and_valid_json(values: list[float]) -> None:
    result = aggregate({"metric": np.array(values)}, [str(n) for n in range(len(values))])
    assert result == {"metric": {"mean": None, "low": None, "high": None}}
    json.dumps(result, allow_nan=False)


def test_a_difference_is_taken_within_subjects() -> None:
    """Subjects differ by tens of dB, two runs by one: the pairs see it, the means can't."""
    random = np.random.default_rng(0)
    names = [f"s{n}" for n in range(6)]
    other = dict(zip(names, random.normal(30, 10, 6), strict=True))
    values = {name: value + 1 + random.normal(0, 0.1) for name, value in other.items()}
    families = dict(zip(names, "aabbcd", strict=True))
    found = paired_difference(values | {"only here": 99.0}, other, families)
    expected = over_families(
        np.array([values[name] - other[name] for name in names]), list("aabbcd")
    )
    assert found == expected
    assert found["low"] is not None and found["high"] is not None
    assert 0.5 < found["low"] < 1 < found["high"] < 1.5


def test_a_difference_of_equal_runs_holds_zero_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    names = [str(n) for n in range(4)]
    same = {name: name for name in names}
    hits = 0
    for _ in range(TRIALS):
        first, second = (dict(zip(names, row, strict=True)) for row in random.normal(size=(2, 4)))
        found = paired_difference(first, second, same)
        hits += found["low"] <= 0 <= found["high"]  # type: ignore[operator]
    assert hits / TRIALS == pytest.approx(0.95, abs=0.02)


def test_few_families_are_warned_of() -> None:
    assert "7" in few(7) and few(1) and not few(8)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="families"):
        over_families(np.zeros(2), ["a"])
    with pytest.raises(ValueError, match="F,"):
        interval(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="level"):
        interval(np.zeros(2), level=1.0)
