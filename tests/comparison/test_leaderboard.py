"""The table says what was found, and who is best among what can be compared."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.comparison.leaderboard import (
    FAVOURED,
    Result,
    at_rates,
    best,
    markdown,
    rows_of,
    runs_csv,
    summary_csv,
    table,
)
from pipeline.losses.registry import TERMS
from pipeline.metrics.catalogue import RECONSTRUCTION, SAMPLES, Metric

PSNR, LPIPS = (m for m in RECONSTRUCTION if m.key in ("psnr", "lpips_alex"))
GOLDEN = """| term | PSNR, dB ↑ | LPIPS alex ↓ | blur effect → data | rate, nats | β |
|---|---|---|---|---|---|
| gaussian | **25.50 ± 0.71** ‡ | 0.2000 ± 0.0000 | 0.450 ± 0.000 | 400 ± 0 | 0.5 |
| blur | *25.00 ± 0.00* | *0.1500 ± 0.0141* | **0.410 ± 0.000** | 400 ± 0 | 0.5 |
| vgg | 24.00 ± 0.00 | **0.1000 ± 0.0000** ‡ | 0.300 ± 0.000 | 400 ± 0 | 0.5 |
| ssim † | 29.00 ± 0.00 | 0.0100 ± 0.0000 | 0.400 ± 0.000 | 400 ± 0 | 0.5 |
| data |  |  | 0.400 |  | |
"""


def _result(row: str, seed: int, settled: bool = True, **scores: float | None) -> Result:
    defaults = {"rate": 400.0, "blur_effect_data": 0.4}
    return Result(row, 400.0, seed, defaults | scores, 0.5, settled)


RESULTS = [
    _result("gaussian", 0, psnr=25.0, lpips_alex=0.2, blur_effect=0.45),
    _result("blur", 0, psnr=25.0, lpips_alex=0.14, blur_effect=0.41),
    _result("vgg", 0, psnr=24.0, lpips_alex=0.1, blur_effect=0.3),
    _result("ssim", 0, psnr=29.0, lpips_alex=0.01, blur_effect=0.4, settled=True),
    _result("gaussian", 1, psnr=26.0, lpips_alex=0.2, blur_effect=0.45),
    _result("blur", 1, psnr=25.0, lpips_alex=0.16, blur_effect=0.41),
    _result("vgg", 1, psnr=24.0, lpips_alex=0.1, blur_effect=0.3),
    _result("ssim", 1, psnr=29.0, lpips_alex=0.01, blur_effect=0.4, settled=False),
]


def test_a_table_is_the_golden_one() -> None:
    """Best in bold, best of the unfavoured in italics, a row that did not settle wins nothing."""
    assert table(rows_of(RESULTS), RECONSTRUCTION) == GOLDEN


def test_one_run_that_did_not_settle_marks_the_row() -> None:
    rows = {row.name: row.settled for row in rows_of(RESULTS)}
    assert rows == {"gaussian": True, "blur": True, "vgg": True, "ssim": False}
    page = markdown(RESULTS, "T", [("store", "s")], [])
    assert "(ssim, 400 nats, seed 1)" in page
    assert "not within 3%" in page


def test_a_row_that_lacks_a_seed_says_so_and_wins_nothing() -> None:
    rows = rows_of([r for r in RESULTS if (r.row, r.seed) != ("vgg", 1)])
    assert "| vgg (1 of 2 seeds) |" in table(rows, RECONSTRUCTION)
    found = best(rows, LPIPS)
    assert found is not None
    assert found.name == "blur"


def test_rates_are_compared_apart() -> None:
    other = [replace(result, rate_target=200.0) for result in RESULTS]
    assert len(rows_of([*RESULTS, *other])) == 8
    page = markdown([*RESULTS, *other], "T", [], [])
    assert page.index("## 400 nats") < page.index("## 200 nats")


def test_rows_are_in_the_order_of_lpips_then_of_psnr() -> None:
    scores = [("a", 30.0, None), ("b", 20.0, 0.2), ("c", 31.0, None), ("d", None, None),
              ("e", 10.0, 0.1)]  # fmt: skip
    rows = rows_of([_result(name, 0, psnr=p, lpips_alex=lpips) for name, p, lpips in scores])
    (found,) = at_rates(rows)
    assert found[0] == "400 nats"
    assert [row.name for row in found[1]] == ["e", "b", "c", "a", "d"]


@pytest.mark.parametrize(
    ("better", "winner"), [("up", "a"), ("down", "c"), ("one", "b"), ("data", "c"), ("", None)]
)
def test_what_is_best_depends_on_the_metric(better: str, winner: str | None) -> None:
    rows = rows_of(
        [
            Result(name, 1.0, 0, {"m": value, "blur_effect_data": 0.1}, 1.0, True)
            for name, value in {"a": 1.4, "b": 0.9, "c": 0.2}.items()
        ]
    )
    found = best(rows, Metric("m", "m", better, 1))  # type: ignore[arg-type]
    assert (found.name if found else None) == winner


def test_a_row_without_a_score_in_one_seed_has_none() -> None:
    rows = rows_of([_result("blur", 0, psnr=1.0), _result("blur", 1, psnr=None)])
    assert math.isnan(rows[0].mean("psnr"))
    assert best(rows, PSNR) is None
    assert table(rows, [PSNR]) == ""


def test_the_csv_holds_numpy_s_mean_and_deviation() -> None:
    lines = {line["term"]: line for line in csv.DictReader(io.StringIO(summary_csv(RESULTS)))}
    for name in ("gaussian", "blur"):
        values = [r.scores["lpips_alex"] for r in RESULTS if r.row == name]
        assert float(lines[name]["lpips_alex"]) == pytest.approx(np.mean(values))
        assert float(lines[name]["lpips_alex_sd"]) == pytest.approx(np.std(values, ddof=1))
    assert lines["ssim"]["rate_settled"] == "False"
    runs = list(csv.DictReader(io.StringIO(runs_csv(RESULTS))))
    assert [float(run["psnr"]) for run in runs] == [r.scores["psnr"] for r in RESULTS]


def test_one_seed_has_no_spread() -> None:
    text = table(rows_of(RESULTS[:3]), [PSNR])
    assert "±" not in text
    assert "psnr_sd" in summary_csv(RESULTS[:3])


def test_the_order_of_runs_changes_nothing_but_the_csv_s_order() -> None:
    one = markdown(RESULTS, "T", [], [])
    assert markdown(RESULTS[::-1], "T", [], []) == one


def test_what_is_missing_stands_below_the_table_with_its_reason() -> None:
    page = markdown(RESULTS, "T", [("store", "s")], [("vgg", "no weights")])
    assert "Not in the table: vgg: no weights" in page
    assert "- store: s" in page


def test_favours_name_terms_and_metrics_that_exist() -> None:
    known = {metric.key for metric in (*RECONSTRUCTION, *SAMPLES)}
    assert set(FAVOURED) <= set(TERMS)
    assert all(keys <= known for keys, _ in FAVOURED.values())
    assert "lpips_vgg" in FAVOURED["vgg"][0]
    assert LPIPS.key in FAVOURED["vgg"][0]
