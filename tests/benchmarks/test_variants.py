"""The table of variants: a row each, what failed left out."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import variants

ARGUMENTS = [
    "--store", "here", "--seeds", "0", "1", "--jobs", "1",
    "--variant", "first", "--variant", "second", "model.width=8", "--training.epochs=3",
]  # fmt: skip


def test_a_row_has_mean_and_spread_of_its_seeds_and_columns_that_all_runs_have() -> None:
    rows = {
        "first": [{"psnr": 30.0, "rate": 1000.0, "ssim": 0.5}, {"psnr": 32.0, "rate": 1200.0}],
        "second": [{"psnr": 31.0, "rate": 900.0, "ssim": 0.6}],
    }
    assert variants.table(rows).splitlines() == [
        "| variant | seeds | PSNR, dB ↑ | rate, nats |",
        "|---|---|---|---|",
        "| first | 2 | 31.00 ± 1.41 | 1,100 ± 141 |",
        "| second | 1 | 31.00 | 900 |",
    ]


def test_a_run_that_fails_leaves_the_others_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, ...]] = []

    def stage(*words: str) -> None:
        calls.append(words)
        run = next(word.removeprefix("--run=") for word in words if word.startswith("--run="))
        if run == "variants-second-1":
            raise variants.Failed("no memory")
        folder = tmp_path / "runs" / run / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({"psnr": {"mean": 30.0}}))

    monkeypatch.setenv("WORK", str(tmp_path))
    monkeypatch.setattr(variants, "call", stage)
    assert variants.main(ARGUMENTS) == 1
    assert "variants-second-1 failed: no memory" in capsys.readouterr().err
    text = (tmp_path / "variants-test.md").read_text()
    assert "| first | 2 | 30.00 ± 0.00 |" in text
    assert "| second | 1 | 30.00 |" in text
    trained = [words for words in calls if words[0] == "pipeline train"]
    assert all("--training.epochs=3" in words for words in trained)
    assert [("--model.width=8" in words) for words in trained] == [False, True, False, True]
    # Keys of the training would be refused by evaluate.
    scored = [words for words in calls if words[0] == "pipeline evaluate"]
    assert scored and not any("--training.epochs=3" in words for words in scored)
