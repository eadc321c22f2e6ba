"""Inserted lesions: the command that looks for them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.analysis import lesions
from pipeline.analysis.lesions import insert, place, threshold_at

Fail = Callable[..., str]
pytestmark = pytest.mark.usefixtures("tiny")


def test_a_lesion_larger_than_the_brain_lies_where_that_is_deepest() -> None:
    brain = np.zeros((32, 32))
    brain[6:26, 8:24] = 0.6
    row, column = place(brain, 60.0, np.random.default_rng(0))
    assert 13 <= row <= 18 and column in (15, 16)


def test_pieces_outside_the_brain_are_no_false_positives() -> None:
    maps, brain = torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    for k, height in enumerate((5.0, 4.0, 3.0, 2.0)):  # pieces of two pixels that touch by corners
        maps[k % 2, 0, 4 * k, 3] = maps[k % 2, 0, 4 * k + 1, 4] = height
    assert 3 <= threshold_at(maps, brain, 1.0) < 4
    brain[0, 0, 0, 3] = brain[0, 0, 1, 4] = False
    assert 2 <= threshold_at(maps, brain, 1.0) < 3


def test_the_command_finds_what_stands_out_and_goes_on_after_ctrl_c(
    tiny_store: Store, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["lesions", "--package", "tiny", "--store", f"{tiny_store.path}", "--slices", "2",
             "--diameters", "[12]", "--contrasts", "[-0.9,0.05]"]  # fmt: skip
    calls: list[Any] = []

    def stops(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:  # the second subject's first
            raise KeyboardInterrupt
        return insert(*arguments)

    monkeypatch.setattr(lesions, "insert", stops)
    assert main(words) == 130
    assert main(words) == 0
    assert len(calls) == 5, "the first subject is not solved again"
    out = work / "lesions/tiny/tiny-slices-2-diameters-12-contrasts--0.9,0.05"
    assert {path.name for path in out.iterdir()} == {
        "question.json", "lesions.csv", "lesions.json", "curves.png", "examples.png", "subjects"
    }  # fmt: skip
    kinds = json.loads((out / "lesions.json").read_text())["kinds"]
    auroc = {(k["method"], k["contrast"]): k["auroc"]["mean"] for k in kinds}
    assert auroc["residual", -0.9] > 0.8 > auroc["residual", 0.05]
    rows = list(csv.DictReader((out / "lesions.csv").open()))
    assert len(rows) == 2 * 2 * 3  # two people, two kinds, three methods
    assert main([*words, "--output", f"{work}/again"]) == 0
    assert (work / "again/lesions.csv").read_bytes() == (out / "lesions.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--diameters", "[0]"], "diameters"),
        (["--contrasts", "[0]"], "contrasts"),
        (["--repeats", "0"], "repeats"),
        (["--false_positives", "0"], "false_positives"),
        (["--subjects", "all"], "were trained on"),
        (["--finest", "2"], "--finest 2: the coarsest level has side 4"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(
    tiny_store: Store, words: list[str], expected: str, fail: Fail
) -> None:
    command = ["lesions", "--package", "tiny", "--store", f"{tiny_store.path}"]
    assert expected in fail(*command, *words)


def test_equal_names_are_refused_and_taken_where_they_are_others(
    work: Path, store_writer: Callable[..., Store], fail: Fail, capsys: pytest.CaptureFixture[str]
) -> None:
    """A subject's name is a study's own; a file is the same whatever is said."""
    store_writer(work, "other", seed=7)
    store_writer(work, "copy", prefix="q")  # the tiny store's scans, renamed
    words = ["lesions", "--package", "tiny", "--subjects", "all", "--slices", "1", "--repeats", "1",
             "--diameters", "[9]", "--contrasts", "[0.4]", "--store"]  # fmt: skip
    assert "3 of 6" in (said := fail(*words, "other")) and "--other_people true" in said
    assert main([*words, "other", "--other_people", "true"]) == 0
    assert "file digests (SHA-256) were compared" in capsys.readouterr().out
    assert "(q00, q01, q02)" in fail(*words, "copy", "--other_people", "true")
