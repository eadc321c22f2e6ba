"""Laws of paired differences between scored runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import InputError, paired_differences
from pipeline.metrics.statistics import over_families


@pytest.fixture
def rows() -> pd.DataFrame:
    """Subjects with names that a reader may take for numbers or for nothing; one without family."""
    values = np.random.default_rng(0).normal(30, 5, (4, 2))
    table = pd.DataFrame(values, columns=["psnr", "ssim"])
    return table.assign(subject=["01", "1", "NA", "x"], family=["f", "f", "NA", None], slices=3)


def test_a_run_does_not_differ_from_itself(rows: pd.DataFrame) -> None:
    found = paired_differences(rows, rows)
    assert list(found.index) == ["psnr", "ssim"]
    assert (found[["mean", "low", "high"]] == 0).all(axis=None) and (found["families"] == 3).all()


def test_it_is_the_interval_of_differences_over_families(rows: pd.DataFrame) -> None:
    """In whatever order, over the subjects that both have."""
    other = rows.assign(psnr=[1.0, 2.0, 3.0, 4.0]).iloc[[3, 1, 0]]
    found = paired_differences(rows, other).loc["psnr"]
    values = rows["psnr"].to_numpy()[[0, 1, 3]] - [1.0, 2.0, 4.0]
    expected = over_families(values, ["f", "f", "x"])
    assert found[["mean", "low", "high"]].to_dict() == pytest.approx(expected)
    assert found["families"] == 2


def test_seeds_are_averaged_within_subjects_first(rows: pd.DataFrame) -> None:
    seeds = [rows.assign(psnr=rows["psnr"] + shift) for shift in (-1.0, 0.0, 4.0)]
    found = paired_differences(seeds, rows).loc["psnr"]
    assert found[["mean", "low", "high"]].tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_a_folder_is_as_good_as_its_rows(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.to_csv(tmp_path / "per_subject.csv", index=False)
    other = rows.assign(psnr=rows["psnr"] ** 2)
    found = paired_differences(tmp_path, other)
    pd.testing.assert_frame_equal(found, paired_differences(rows, other))


def test_one_family_has_no_interval_and_a_missing_score_no_difference(rows: pd.DataFrame) -> None:
    alone = paired_differences(rows.iloc[:2], rows.assign(ssim=float("nan")).iloc[:2])
    assert (
        np.isfinite(alone.loc["psnr", "mean"]) and alone.loc["psnr", ["low", "high"]].isna().all()
    )
    assert alone.loc["ssim"][["mean", "low", "high"]].isna().all()


def test_nothing_in_common_or_no_table_is_refused(rows: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no subject in common"):
        paired_differences(rows.iloc[:1], rows.iloc[1:])
    with pytest.raises(InputError, match=r"per_subject\.csv"):
        paired_differences(tmp_path, rows)
