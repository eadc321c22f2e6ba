"""Tables say what was measured: means a term, differences to a reference, marks."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.comparison.table import FAVOURED, UNSEEN, differences_of, notes, tables_at
from pipeline.losses.registry import TERMS
from pipeline.metrics.catalogue import RECONSTRUCTION, SAMPLES

KEYS = {"family": list("aabcdefgh"), "subject": [f"s{n}" for n in range(9)]}
MEANS = """### Reconstructions

| term | PSNR, dB ↑ | blur effect → data | rate, nats | β |
| --- | --- | --- | --- | --- |
| blur | 25.50 ± 0.71 | 0.410 ± 0.000 | 400 ± 0 | 0.5 |
| gaussian | 25.00 ± 0.00 ‡ | 0.450 ± 0.000 | 400 ± 0 | 0.5 |
| ssim † (1 of 2 seeds) | 24.00 | 0.400 | 400 | 0.5 |
| data |  | 0.400 |  |  |"""


@pytest.fixture
def runs() -> pd.DataFrame:
    rows = [("blur", 0, 25.0, 0.41, True), ("gaussian", 0, 25.0, 0.45, True),
            ("ssim", 0, 24.0, 0.4, False), ("blur", 1, 26.0, 0.41, True),
            ("gaussian", 1, 25.0, 0.45, True)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["term", "seed", "psnr", "blur_effect", "rate_settled"])
    table["run"] = table["term"] + table["seed"].astype(str)
    return table.assign(rate_target=400.0, rate=400.0, blur_effect_data=0.4, beta=0.5)


@pytest.fixture
def folders(runs: pd.DataFrame, tmp_path: Path) -> dict[str, Path]:
    """Subjects far apart; blur is 1 dB ahead, by .1 more or less a seed; ssim is not."""
    random = np.random.default_rng(0)
    base = random.normal(30, 10, 9)
    for run, term, seed in zip(runs["run"], runs["term"], runs["seed"], strict=True):
        ahead = {"blur": 1.0 + 0.1 * (-1) ** seed + random.normal(0, 0.1, 9),
                 "ssim": random.normal(0, 1, 9)}.get(term, 0.0)  # fmt: skip
        table = pd.DataFrame(KEYS | {"slices": 3, "psnr": base + ahead})
        (tmp_path / run).mkdir()
        table.to_csv(tmp_path / run / "per_subject.csv", index=False)
    return {run: tmp_path / run for run in runs["run"]}


def test_a_table_of_means_is_the_golden_one(runs: pd.DataFrame) -> None:
    """In the order that was asked for, no cell marked as best, † where the rate was not held."""
    ((heading, (table,)),) = tables_at(runs, pd.DataFrame())
    assert heading == "400 nats"
    assert table.markdown == MEANS
    told = "\n".join(notes(runs, pd.DataFrame(), [("vgg", "no weights")]))
    assert "(ssim, 400 nats, seed 0)" in told and "Not in the table: vgg: no weights" in told


def test_differences_are_to_the_gaussian_over_families_and_seeds_of_both(
    runs: pd.DataFrame, folders: dict[str, Path]
) -> None:
    found = differences_of(runs, folders).set_index("term")
    assert set(found["reference"]) == {"gaussian"} and set(found["families"]) == {8}
    assert found.loc["blur", "mean"] == pytest.approx(1.0, abs=0.1)
    assert 0.8 < found.loc["blur", "low"] < found.loc["blur", "high"] < 1.2
    assert found["seeds"].to_dict() == {"blur": 2, "ssim": 1}
    ((_, (_, table)),) = tables_at(runs, differences_of(runs, folders))
    cells = dict(table.rows)
    assert "8 families" in table.title
    assert cells["blur − gaussian"].startswith(("+1.0", "+0.9"))
    assert cells["ssim − gaussian"].startswith(UNSEEN)


def test_rates_are_compared_apart(runs: pd.DataFrame, folders: dict[str, Path]) -> None:
    other = runs.assign(rate_target=0.0, run=runs["run"] + "b")
    both = pd.concat([runs, other])
    places = folders | {f"{run}b": folder for run, folder in folders.items()}
    found = differences_of(both, places)
    assert list(found["rate_target"]) == [400.0, 400.0, 0.0, 0.0]
    assert [heading for heading, _ in tables_at(both, found)] == ["400 nats", "fixed β"]


def test_favours_name_terms_and_metrics_that_exist() -> None:
    known = {metric.key for metric in (*RECONSTRUCTION, *SAMPLES)}
    assert set(FAVOURED) <= set(TERMS)
    assert all(keys <= known for keys, _ in FAVOURED.values())
