"""Inserted lesions: where they lie, how large they are, that finding them is counted rightly."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.analysis.anomaly.inserted import (
    Lesion,
    insert,
    place,
    sensitivity,
    share,
    threshold_at,
)
from pipeline.decoder_package import DecoderPackage


@pytest.mark.parametrize("diameter", [1.0, 2.5, 7.0])
def test_a_disc_has_its_area_and_its_centre(diameter: float) -> None:
    covered = share((21, 24), (9, 12), diameter)
    assert covered.sum() == pytest.approx(math.pi * diameter**2 / 4, rel=0.03)
    rows, columns = np.indices(covered.shape)
    assert (covered * rows).sum() / covered.sum() == pytest.approx(9)
    assert (covered * columns).sum() / covered.sum() == pytest.approx(12)
    assert covered[9, 12] == 1 if diameter > 1.5 else covered[9, 12] < 1


def _brain() -> torch.Tensor:
    images = torch.zeros(4, 1, 32, 32)
    images[..., 6:26, 8:24] = 0.6
    return images


@pytest.mark.parametrize("contrast", [-0.3, 0.3])
def test_a_lesion_lies_in_the_brain_and_changes_nothing_else(contrast: float) -> None:
    images, random = _brain(), np.random.default_rng(0)
    changed, where = insert(images, Lesion(6.0, contrast), 2.0, random)  # 3 pixels wide
    difference = changed - images
    assert (difference[images == 0] == 0).all()
    assert difference[where].mean().item() == pytest.approx(contrast, rel=0.25)
    assert (difference.abs().amax(dim=(1, 2, 3)) - abs(contrast)).abs().max() < 1e-6
    assert (where.sum(dim=(1, 2, 3)) == 9).all() or (where.sum(dim=(1, 2, 3)) > 4).all()
    assert torch.equal(images, _brain()), "the images given stay as they are"
    assert changed.min() >= 0 and changed.max() <= 1


def test_a_lesion_larger_than_the_brain_lies_where_that_is_deepest() -> None:
    image = _brain()[0, 0].numpy()
    row, column = place(image, 60.0, np.random.default_rng(0))
    assert 13 <= row <= 18 and column in (15, 16)


def test_the_threshold_leaves_as_many_pieces_as_are_asked_for() -> None:
    maps, brain = torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    for k, height in enumerate((5.0, 4.0, 3.0, 2.0)):  # pieces of two pixels that touch by corners
        maps[k % 2, 0, 4 * k, 3] = maps[k % 2, 0, 4 * k + 1, 4] = height
    assert 2 <= threshold_at(maps, brain, 1.5) < 3  # three pieces on two slices
    assert 3 <= threshold_at(maps, brain, 1.0) < 4
    assert threshold_at(maps, brain, 0.1) == 5.0  # nothing is above the largest
    outside = brain.clone()
    outside[0, 0, 0, 3] = outside[0, 0, 1, 4] = False
    assert 2 <= threshold_at(maps, outside, 1.0) < 3


def test_a_lesion_is_found_by_its_largest_pixel() -> None:
    maps = torch.zeros(3, 1, 8, 8)
    where = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    where[..., 2:4, 2:4] = True
    maps[0, 0, 3, 3], maps[1, 0, 6, 6], maps[2, 0, 2, 2] = 2.0, 2.0, 1.0
    assert sensitivity(maps, where, 1.0) == pytest.approx(1 / 3)
    assert sensitivity(maps, where, 0.5) == pytest.approx(2 / 3)


@pytest.mark.usefixtures("tiny")
def test_the_command_finds_what_stands_out(tiny_store: Store, tmp_path: Path) -> None:
    words = ["lesions", "--package", "tiny", "--store", f"{tiny_store.path}", "--slices", "2",
             "--diameters", "[12]", "--contrasts", "[-0.9,0.05]"]  # fmt: skip
    assert main([*words, "--output", f"{tmp_path}/out"]) == 0
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {".results", "lesions.csv", "lesions.json", "curves.png", "examples.png"}
    kinds = json.loads((tmp_path / "out/lesions.json").read_text())["kinds"]
    auroc = {(k["method"], k["contrast"]): k["auroc"]["mean"] for k in kinds}
    assert auroc["residual", -0.9] > 0.8 > auroc["residual", 0.05]
    rows = list(csv.DictReader((tmp_path / "out/lesions.csv").open()))
    assert len(rows) == 2 * 2 * 3  # two people, two kinds, three methods
    assert main([*words, "--output", f"{tmp_path}/again"]) == 0
    for name in ("lesions.csv", "lesions.json"):
        before, after = ((tmp_path / place / name).read_text() for place in ("out", "again"))
        assert before.replace("/out", "") == after.replace("/again", "")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--diameters", "[0]"], "diameters"),
        (["--contrasts", "[0]"], "contrasts"),
        (["--repeats", "0"], "repeats"),
        (["--false_positives", "0"], "false_positives"),
        (["--split", "all"], "were trained on"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(
    tiny_store: Store, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["lesions", "--package", "tiny", "--store", f"{tiny_store.path}"]
    assert main([*command, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line


def test_a_level_that_no_decoder_has_is_told(
    tiny: DecoderPackage, tiny_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["lesions", "--package", "tiny", "--store", f"{tiny_store.path}", "--finest"]
    assert main([*words, "2"]) == 2
    assert "--finest 2: the coarsest level has side 4" in capsys.readouterr().err
    latent = torch.randn(2, tiny.latent_size)
    coarse = tiny.up_to(latent, 4)
    assert torch.equal(coarse[:, :64], latent[:, :64]) and not coarse[:, 64:].any()
    assert torch.equal(tiny.up_to(latent, 8), latent)
