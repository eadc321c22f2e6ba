"""docs/extending.md: a source, a transform and a term of one's own, run from top to bottom."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep import Store
from pipeline.losses.registry import TERMS

sys.path.append(str(Path(__file__).parent / "data_prep"))
from small_volumes import brain, write_nifti

PAGE = Path(__file__).parents[1] / "docs/extending.md"


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORK", "work")
    rows = [("id", "family", "file")]
    for number in range(12):
        write_nifti(tmp_path / f"scans/{number}.nii.gz", brain(seed=number))
        rows.append((f"s{number}", f"f{number // 2}", f"scans/{number}.nii.gz"))
    with open("study.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {"__name__": "extending"}
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    finally:
        TERMS.pop("charbonnier", None)
    study, smooth = (Store.open(Path("work/stores") / name) for name in ("study", "smooth"))
    assert len(study.subjects("all")) == 12 and not study.quarantined
    assert {entry.family for entry in study.entries} == {f"f{n}" for n in range(6)}
    for left, right in zip(study.entries, smooth.entries, strict=True):
        assert not np.array_equal(study.images(left), smooth.images(right))
    assert list(Path("work/runs/mine/checkpoints").glob("step-*"))


def test_each_takes_ten_lines() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        own = [line for line in block.splitlines() if line and "import" not in line]
        assert len(own) <= 10
