"""Somebody else's reconstructions are scored as ours are, and what can't be scored is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.data.slices import SliceDataset
from pipeline.metrics.statistics import over_families


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two subjects, one in .npy, one in NIfTI, reconstructed with an error of 0.1 everywhere."""
    random = np.random.default_rng(0)
    slices = random.uniform(0.2, 0.8, (2, 3, 32, 32)).astype(np.float32)
    for kind, error in (("originals", 0), ("reconstructions", 0.1)):
        _save(tmp_path / f"pairs/{kind}/one.npy", slices[0] + np.float32(error))
        _save(tmp_path / f"pairs/{kind}/two.nii.gz",
              (slices[1] + np.float32(error)).transpose(1, 2, 0))  # fmt: skip
    return tmp_path / "pairs"


def _scored(*words: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, words)]) == 0
    return json.loads((Path(str(words[-1])) / "metrics.json").read_text())


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: object) -> str:
        assert main(["evaluate", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


def test_a_pair_is_compared_where_it_lies(folder: Path, tmp_path: Path, fail: Any) -> None:
    """A reconstruction in another storage order is turned; one that lies elsewhere is refused."""
    path = folder / "reconstructions/two.nii.gz"
    image = nib.load(path)
    left = nib.orientations.axcodes2ornt("LAS")
    nib.save(image.as_reoriented(left), path)
    metrics = _scored("--reconstructions", folder, "--output", tmp_path / "out")
    assert metrics["psnr"]["mean"] == pytest.approx(20, abs=1e-3)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), np.diag([-1.0, 1, 1, 1])), path)
    assert "two.nii.gz" in fail("--reconstructions", folder, "--output", tmp_path / "other")


def test_pairs_of_files_have_the_table_without_a_model(folder: Path, tmp_path: Path) -> None:
    metrics = _scored("--reconstructions", folder, "--output", tmp_path / "out")
    assert metrics["psnr"]["mean"] == pytest.approx(20, abs=1e-3)
    assert metrics["high_frequency_ratio"]["mean"] == pytest.approx(1, abs=1e-4)
    assert {"ssim", "blur_effect", "lpips_alex", "kid_vgg16", "spectrum_error"} <= metrics.keys()
    assert not metrics.keys() & {"rate", "elbo_bits_per_dim", "sample_kid_vgg16"}
    written = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    drawn = {"reconstructions.png", "spectra.png"}
    assert written == {"metrics.json", "per_subject.csv", "inputs.json", "report.html", *drawn}


def test_black_subjects_are_refused_and_results_replace_nothing_else(
    folder: Path, tmp_path: Path, fail: Any
) -> None:
    (tmp_path / "mine.txt").touch()
    assert "mine.txt" in fail("--reconstructions", folder, "--output", tmp_path)
    assert (tmp_path / "mine.txt").exists()
    for kind in ("originals", "reconstructions"):
        _save(folder / kind / "black.npy", np.zeros((3, 32, 32), np.float32))
    assert "black" in fail("--reconstructions", folder)


class Darker(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return 0.9 * images


class Smaller(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[..., ::2, ::2]


def _program(network: nn.Module, path: Path) -> Path:
    shape = ({0: torch.export.Dim("batch")},)
    torch.export.save(
        torch.export.export(network, (torch.rand(2, 1, 32, 32),), dynamic_shapes=shape), path
    )
    return path


def test_a_program_is_given_a_stores_images_whose_siblings_are_one_family(
    tmp_path: Path, store_writer: Callable[..., Store]
) -> None:
    store = store_writer(tmp_path, splits=["test"] * 3, families=["a", "b", "b"], slices=2)
    program = _program(Darker(), tmp_path / "darker.pt2")
    metrics = _scored("--reconstructions", program, "--store", store.path,
                      "--output", tmp_path / "out")  # fmt: skip
    assert metrics["families"]["mean"] == 2
    data = SliceDataset(store, store.subjects("test"))
    errors = [
        -10 * torch.log10((0.1 * data.of_subject(k)).square().mean(dim=(1, 2, 3))).mean().item()
        for k in range(len(data.subjects))
    ]
    expected = over_families(np.array(errors), ["a", "b", "b"])
    assert metrics["psnr"] == pytest.approx(expected, abs=0.05)


def test_what_does_not_fit_is_one_line(
    folder: Path, tmp_path: Path, tiny_store: Store, fail: Any
) -> None:
    words = ["--reconstructions", folder]
    assert "leave --store out" in fail(*words, "--store", tiny_store.path)
    made = folder / "reconstructions/one.npy"
    right = np.load(made)
    for values, said in (
        (right[:2], "one shape"), (255 * right, "to [0,1]"), (right[0, 0], "not (32,)"),
        (np.full_like(right, np.nan), "finite"), (right.astype(np.int16), "floating-point"),
    ):  # fmt: skip
        np.save(made, values)
        assert said in fail(*words)
    np.save(made, right)
    made.rename(folder / "reconstructions/three.npy")
    assert "one" in fail(*words) and "pair" in fail(*words)
    assert "originals" in fail("--reconstructions", tmp_path)
    program = _program(Smaller(), tmp_path / "smaller.pt2")
    store = ["--store", tiny_store.path]
    assert "1x16x16" in fail("--reconstructions", program, *store)
    assert "needs --store" in fail("--reconstructions", program)
    program.write_bytes(b"no program")
    assert "no torch.export program" in fail("--reconstructions", program, *store)
    assert "none.pt2 is not there" in fail("--reconstructions", tmp_path / "none.pt2", *store)
