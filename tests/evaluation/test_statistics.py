"""Laws of the means, their intervals over families, and paired differences."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline import InputError, paired_differences
from pipeline.metrics.statistics import (
    aggregate,
    family_means,
    few,
    interval,
    over_families,
)

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).map(np.array)
TRIALS = 2000


@pytest.mark.parametrize(
    ("families", "sessions"), [(3, 1), (4, 1), (7, 1), (20, 1), (8, 4), (4, 2)]
)
def test_an_interval_covers_the_truth_as_often_as_it_says(families: int, sessions: int) -> None:
    """Sessions of a family, which share most, do not count as independent."""
    random = np.random.default_rng(families)
    shared = random.normal(size=(TRIALS, families)).repeat(sessions, axis=1)
    draws = shared + 0.3 * random.normal(size=shared.shape) * (sessions > 1)
    names = [str(family) for family in range(families) for _ in range(sessions)]
    ends = [over_families(row, names) for row in draws]
    covered = np.mean([end["low"] <= 0.0 <= end["high"] for end in ends])  # type: ignore[operator]
    assert covered == pytest.approx(0.95, abs=0.02)


@given(values=VALUES, level=st.floats(0.1, 0.999))
def test_the_interval_is_student_s(values: np.ndarray, level: float) -> None:
    made, mean = interval(values, level), values.mean()
    error = stats.sem(values)
    low, high = stats.t.interval(level, len(values) - 1, mean, error) if error else (mean, mean)
    assert [made["low"], made["mean"], made["high"]] == pytest.approx([low, mean, high])


def test_families_weigh_alike_whatever_their_size_and_order() -> None:
    values, families = np.array([1.0, 2.0, 6.0, 3.0]), ["b", "a", "b", "b"]
    np.testing.assert_allclose(family_means(values, families), [10 / 3, 2.0])
    one = over_families(np.array([0.7, 0.9]), ["a", "a"])
    assert one == {"mean": pytest.approx(0.8), "low": None, "high": None}
    assert "7" in few(7) and few(1) and not few(8)


@pytest.mark.parametrize("values", [[], [np.nan], [1.0, np.nan], [np.inf, 1.0]])
def test_undefined_values_are_none_and_valid_json(values: list[float]) -> None:
    result = aggregate({"metric": np.array(values)}, [str(n) for n in range(len(values))])
    assert result == {"metric": {"mean": None, "low": None, "high": None}}
    json.dumps(result, allow_nan=False)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="families"):
        over_families(np.zeros(2), ["a"])
    for values, level in ((np.zeros((2, 2)), 0.95), (np.zeros(2), 1.0)):
        with pytest.raises(ValueError, match="level"):
            interval(values, level)


def test_a_difference_is_taken_within_subjects() -> None:
    """Subjects differ by tens of dB, two runs by one: the pairs see it, the means can't."""
    random = np.random.default_rng(0)
    names, families = [f"s{n}" for n in range(6)], list("aabbcd")
    other = dict(zip(names, random.normal(30, 10, 6), strict=True))
    values = {name: value + 1 + random.normal(0, 0.1) for name, value in other.items()}
    family = dict(zip(names, families, strict=True)) | {"only here": "e"}

    def table(scores: dict[str, float]) -> pd.DataFrame:
        people = list(scores)
        kin = [family[name] for name in people]
        return pd.DataFrame({"subject": people, "family": kin, "psnr": scores.values()})

    made = paired_differences(table(values | {"only here": 99.0}), table(other)).loc["psnr"]
    expected = over_families(np.array([values[n] - other[n] for n in names]), families)
    assert made[["mean", "low", "high"]].to_dict() == pytest.approx(expected)
    assert 0.5 < made["low"] < 1 < made["high"] < 1.5


@pytest.fixture
def rows() -> pd.DataFrame:
    """Subjects with names that a reader may take for numbers or for nothing; one without family."""
    values = np.random.default_rng(0).normal(30, 5, (4, 2))
    table = pd.DataFrame(values, columns=["psnr", "ssim"])
    return table.assign(subject=["01", "1", "NA", "x"], family=["f", "f", "NA", None], slices=3)


def test_differences_are_intervals_over_families_of_the_subjects_that_both_have(
    rows: pd.DataFrame, tmp_path: Path
) -> None:
    """In whatever order; a folder is as good as its rows; a run does not differ from itself."""
    same = paired_differences(rows, rows)
    assert list(same.index) == ["psnr", "ssim"] and (same["families"] == 3).all()
    assert (same[["mean", "low", "high"]] == 0).all(axis=None)
    other = rows.assign(psnr=[1.0, 2.0, 3.0, 4.0]).iloc[[3, 1, 0]]
    table = paired_differences(rows, other)
    values = rows["psnr"].to_numpy()[[0, 1, 3]] - [1.0, 2.0, 4.0]
    expected = over_families(values, ["f", "f", "x"])
    assert table.loc["psnr", ["mean", "low", "high"]].to_dict() == pytest.approx(expected)
    assert table.loc["psnr", "families"] == 2
    rows.to_csv(tmp_path / "per_subject.csv", index=False)
    pd.testing.assert_frame_equal(paired_differences(tmp_path, other), table)


def test_seeds_are_averaged_first_and_a_missing_score_is_no_difference(rows: pd.DataFrame) -> None:
    seeds = [rows.assign(psnr=rows["psnr"] + shift) for shift in (-1.0, 0.0, 4.0)]
    made = paired_differences(seeds, rows).loc["psnr"]
    assert made[["mean", "low", "high"]].tolist() == pytest.approx([1.0, 1.0, 1.0])
    alone = paired_differences(rows.iloc[:2], rows.assign(ssim=float("nan")).iloc[:2])
    assert np.isfinite(alone.loc["psnr", "mean"])
    assert alone.loc["psnr", ["low", "high"]].isna().all()
    assert alone.loc["ssim"][["mean", "low", "high"]].isna().all()


def test_nothing_in_common_or_no_table_is_refused(rows: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no subject in common"):
        paired_differences(rows.iloc[:1], rows.iloc[1:])
    with pytest.raises(InputError, match=r"per_subject\.csv"):
        paired_differences(tmp_path, rows)
