"""benchmarks/large_store.py: a sparse store is a store, and takes no room."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import large_store

from pipeline.data.slices import SliceDataset


def test_a_sparse_store_is_read_like_any_and_takes_no_room(tmp_path: Path) -> None:
    store = large_store.sparse_store(tmp_path / "large", subjects=3, slices=20, side=256)
    data = SliceDataset(store, store.subjects("train"))
    assert len(data) == 60 and torch.equal(data[59], torch.zeros(1, 256, 256))
    files = list((tmp_path / "large/slices").iterdir())
    assert sum(file.stat().st_size for file in files) > 3 * 20 * 2 * 256**2
    assert sum(512 * file.stat().st_blocks for file in files) < 1e6


def test_the_command_prints_a_row_for_each_number_of_workers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--subjects", "2", "--slices", "8", "--side", "32", "--batch", "4", "--workers", "0",
             "--seconds", "0.2"]  # fmt: skip
    assert large_store.main(words) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 0")]
    assert len(rows) == 1 and float(rows[0].split("|")[2].split()[0]) > 0
    assert large_store.main(["--subjects", "0"]) == 2
