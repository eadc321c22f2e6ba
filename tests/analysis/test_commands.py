"""reconstruct and restore as a user meets them: worked examples, files that overlay, refusals."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
import torch

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.analysis.inverse.fourier import fft2c
from pipeline.analysis.inverse.masks import cartesian_mask
from pipeline.analysis.inverse.operators import smooth_sensitivities
from pipeline.analysis.inverse.reconstruct import Options, undersampled
from pipeline.analysis.results import begin
from pipeline.data.slices import SliceDataset
from pipeline.decoder_package import DecoderPackage

AFFINE = np.array([[0, 3.2, 0, -50], [-3.2, 0, 0, 50], [0, 0, 1, 7], [0, 0, 0, 1]], float)
Fail = Callable[..., str]

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Fail:
    """Runs a command that must fail in one line with exit code 2, and returns the line."""

    def run(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


@pytest.fixture
def picture(tiny_store: Store, tmp_path: Path) -> Path:
    """A slice of a test person as a NIfTI file, 100 times brighter, its axes turned to RAS."""
    data = SliceDataset(tiny_store, tiny_store.subjects("test"))
    image = nib.Nifti1Image(100 * data[2][0].numpy()[:, :, None], AFFINE)
    path = tmp_path / "slice.nii.gz"
    nib.save(nib.as_closest_canonical(image), path)
    return path


def _scores(output: Path) -> dict[str, Any]:
    return json.loads((output / "scores.json").read_text())


def _run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture
def quick() -> list[str]:
    return ["--package", "tiny", "--latent_steps", "30", "--image_steps", "20", "--samples", "3"]


def test_a_study_of_a_store(tiny_store: Store, tmp_path: Path, quick: list[str]) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    words = ["reconstruct", *quick, "--store", f"{tiny_store.path}", "--acceleration", "3",
             "--tv_weight", "0.004", "--wavelet_weight", "0.004"]  # fmt: skip
    _run(*words, "--slices", "2", "--output", out)
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        ".results", "scores.csv", "scores.json", "comparison.png",
        *(f"{p}/{kind}.nii.gz" for p in ("p04", "p05") for kind in ("reconstruction", "deviation")),
    }  # fmt: skip
    assert 0 < _scores(out)["error_bars"]["coverage_90"]["mean"] <= 1
    methods = _scores(out)["methods"]
    assert methods["decoder, image"]["ssim"]["mean"] > methods["zero filling"]["ssim"]["mean"]
    assert methods["decoder, image"]["psnr"]["mean"] > methods["decoder, latent"]["psnr"]["mean"]
    rows = list(csv.DictReader((out / "scores.csv").open()))
    found = np.mean([float(r["ssim"]) for r in rows if r["method"] == "total variation"])
    assert found == pytest.approx(methods["total variation"]["ssim"]["mean"])
    _run(*words, "--slices", "2", "--output", again)
    for name in ("scores.csv", "p04/reconstruction.nii.gz"):
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_a_stack_of_the_store_overlays_its_volume(
    tiny_store: Store, tmp_path: Path, quick: list[str]
) -> None:
    _run("reconstruct", *quick, "--store", tiny_store.path, "--subject", "p04", "--slices", "2",
         "--tv_weight", "0.003", "--wavelet_weight", "0.003", "--acceleration", "2", "--noise", "0",
         "--output", tmp_path)  # fmt: skip
    image = nib.load(tmp_path / "p04/reconstruction.nii.gz")
    # Slices 1 and 4 of 0 to 5; the tiny store's affine is the identity.
    np.testing.assert_allclose(image.affine @ [3, 4, 1, 1], [3, 4, 4, 1])
    data = SliceDataset(tiny_store, [e for e in tiny_store.subjects() if e.subject == "p04"])
    error = image.get_fdata()[:, :, 1] - data[4][0].numpy()
    assert np.sqrt((error**2).mean()) < 0.1


def test_an_image_keeps_its_affine_and_unit(
    picture: Path, tmp_path: Path, quick: list[str]
) -> None:
    _run("reconstruct", *quick, "--image", picture, "--acceleration", "2", "--coils", "3",
         "--output", tmp_path / "out")  # fmt: skip
    before, after = nib.load(picture), nib.load(tmp_path / "out/reconstruction.nii.gz")
    assert before.shape == after.shape
    np.testing.assert_allclose(before.affine, after.affine, atol=1e-5)
    error = after.get_fdata() - before.get_fdata()
    assert np.sqrt((error**2).mean()) < 10  # of 100


def _measured(picture: Path, tmp_path: Path, coils: int) -> list[str]:
    """k-space of several coils and an image with a phase, as a scanner gives it."""
    stored = nib.as_closest_canonical(nib.load(picture)).get_fdata()[:, ::-1, 0].T
    image = torch.from_numpy(stored.copy()).float()
    rows = torch.linspace(-1, 1, 32)[:, None]
    phase = torch.polar(torch.ones(32, 32), (2 * rows).expand(32, 32).contiguous())
    maps = smooth_sensitivities(coils, (32, 32))
    mask = cartesian_mask((32, 32), 2, 0.25)
    np.save(tmp_path / "k.npy", (mask * fft2c(maps * phase * image)).numpy())
    np.save(tmp_path / "s.npy", maps.numpy())
    np.save(tmp_path / "m.npy", mask.numpy())
    return ["--kspace", f"{tmp_path}/k.npy", "--sensitivities", f"{tmp_path}/s.npy",
            "--mask", f"{tmp_path}/m.npy", "--like", f"{picture}"]  # fmt: skip


@pytest.mark.parametrize("coils", [1, 4])
def test_measured_kspace(picture: Path, tmp_path: Path, quick: list[str], coils: int) -> None:
    _run("reconstruct", *quick, *_measured(picture, tmp_path, coils), "--output", tmp_path / "out")
    before, after = nib.load(picture), nib.load(tmp_path / "out/reconstruction.nii.gz")
    np.testing.assert_allclose(before.affine, after.affine, atol=1e-5)
    error = after.get_fdata() - before.get_fdata()
    assert np.sqrt((error**2).mean()) < 10
    assert _scores(tmp_path / "out")["methods"] == {}


def test_a_simulated_phase_is_read_from_the_centre(tiny_store: Store) -> None:
    """The operator that reconstructs explains what was measured; without a phase it does not."""
    images = SliceDataset(tiny_store, tiny_store.subjects()).of_subject(4, 2)

    def misfit(phase: Literal["centre", "none"]) -> float:
        options = Options(package="tiny", store="tiny", acceleration=2, centre_fraction=0.25,
                          noise=0, simulated_phase=1.0, phase=phase)  # fmt: skip
        problem = undersampled(images, 0, options)
        apart = problem.operator.forward(images) - problem.measurement
        return float(apart.abs().square().sum() / problem.measurement.abs().square().sum())

    assert misfit("centre") < 0.01
    assert misfit("none") > 0.1


def test_a_study_of_objects_with_a_phase(
    tiny_store: Store, tmp_path: Path, quick: list[str]
) -> None:
    """With the phase read from the centre the image is nearly as good as of a real object."""
    found = []
    for phase in ("0", "1"):
        _run("reconstruct", *quick, "--store", tiny_store.path, "--slices", "2", "--subject", "p04",
             "--tv_weight", "0.003", "--wavelet_weight", "0.003", "--acceleration", "2",
             "--centre_fraction", "0.25", "--simulated_phase", phase,
             "--output", tmp_path / phase)  # fmt: skip
        found.append(_scores(tmp_path / phase)["methods"]["decoder, image"]["psnr"]["mean"])
    assert found[1] > found[0] - 3


def test_a_study_of_denoising(tiny_store: Store, tmp_path: Path, quick: list[str]) -> None:
    _run("restore", *quick, "--store", tiny_store.path, "--slices", "2", "--output", tmp_path)
    methods = _scores(tmp_path)["methods"]
    assert methods["decoder, image"]["psnr"]["mean"] > methods["degraded"]["psnr"]["mean"]


def test_a_coarse_image_comes_back_finer(picture: Path, tmp_path: Path, quick: list[str]) -> None:
    fine = nib.load(picture)
    values = fine.get_fdata().reshape(16, 2, 16, 2, 1).mean(axis=(1, 3))
    place = np.diag([2.0, 2, 1, 1])
    place[:2, 3] = 0.5
    nib.save(nib.Nifti1Image(values, fine.affine @ place), tmp_path / "coarse.nii.gz")
    _run("restore", *quick, "--image", tmp_path / "coarse.nii.gz", "--factor", "2",
         "--noise", "0.02", "--output", tmp_path / "out")  # fmt: skip
    after = nib.load(tmp_path / "out/reconstruction.nii.gz")
    assert after.shape == fine.shape
    np.testing.assert_allclose(after.affine, fine.affine, atol=1e-5)
    assert np.sqrt(((after.get_fdata() - fine.get_fdata()) ** 2).mean()) < 15


def test_people_the_decoder_knows_are_refused(fail: Fail, tiny_store: Store) -> None:
    said = fail("reconstruct", "--package", "tiny", "--store", tiny_store.path, "--split", "all")
    assert "3 of 6 subjects were trained on" in said and "p00" in said
    said = fail("restore", "--package", "tiny", "--store", tiny_store.path, "--subject", "p01")
    assert "p01" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["--package"]),
        (["--package", "tiny"], ["--store", "--image", "--kspace"]),
        (["--package", "tiny", "--store", "STORE", "--acceleration", "9"], ["between 2 and 8"]),
        (["--package", "tiny", "--store", "STORE", "--centre_fraction", ".5"], ["centre_fraction"]),
        (["--package", "tiny", "--store", "STORE", "--noise", "nan"], ["noise"]),
        (["--package", "tiny", "--store", "STORE", "--latent_steps", "-3"], ["latent_steps"]),
        (["--package", "tiny", "--store", "x"], ["stores/x", "prepare it first"]),
        (["--package", "tiny", "--kspace", "k.npy"], ["--kspace: k.npy is not there"]),
        (["--package", "tiny", "--kspace", "FILE"], ["affine", "--like"]),
        (["--package", "tiny", "--colour", "red"], ["--colour"]),
    ],
    ids=str,
)
def test_wrong_options(
    fail: Fail, tiny_store: Store, picture: Path, words: list[str], expected: list[str]
) -> None:
    there = {"STORE": tiny_store.path, "FILE": picture}
    said = fail("reconstruct", *(there.get(word, word) for word in words))
    assert all(word in said for word in expected), said


def test_a_store_that_was_cut_in_another_way_is_refused(
    fail: Fail, tiny: DecoderPackage, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["reconstruct", "--package", "tiny", "--store", tiny_store.path]
    for key, value in (("plane", "coronal"), ("spacing_mm", 9.0), ("transform_version", -1)):
        monkeypatch.setattr(tiny, "prepare_keys", {**tiny.prepare_keys, key: value})
        assert key in fail(*words)


def test_a_likelihood_without_a_spectrum_is_refused_at_once(
    fail: Fail,
    tiny: DecoderPackage,
    tiny_store: Store,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(tiny._modules, "density", None)
    for command in ("reconstruct", "restore"):
        assert "no likelihood" in fail(command, "--package", "tiny", "--store", tiny_store.path)
    assert "no likelihood" in fail("anomaly", "--package", "tiny", "--image", picture)


def test_of_another_run_nothing_is_left_but_what_is_not_its_own(tmp_path: Path) -> None:
    """Killed or not: what it may write is known before it writes."""
    out, outside = tmp_path / "out", tmp_path / "other.nii.gz"
    begin(out, ["scores.csv", "a/reconstruction*.nii.gz", "../other.nii.gz", str(outside)])
    for path in (out / "scores.csv", out / "a/reconstruction-slice-001.nii.gz", outside,
                 out / "a/mine.nii.gz", out / "b/reconstruction.nii.gz"):  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    begin(out, [])
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == {
        "other.nii.gz", "out/.results", "out/a/mine.nii.gz", "out/b/reconstruction.nii.gz",
    }  # fmt: skip


def test_files_that_no_run_has_written_stay(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("student,grade\n")
    begin(tmp_path, ["scores.csv"])
    assert (tmp_path / "scores.csv").exists()


def test_an_output_that_is_a_file_is_told_before_the_work(
    fail: Fail, tiny_store: Store, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("x")
    said = fail("restore", "--package", "tiny", "--store", tiny_store.path,
                "--output", tmp_path / "taken")  # fmt: skip
    assert "taken" in said


def test_there_is_nobody(fail: Fail, tiny_store: Store) -> None:
    words = ["reconstruct", "--package", "tiny", "--store", tiny_store.path, "--subject", "p99"]
    assert "no subject p99" in fail(*words)


def test_wrong_files(fail: Fail, picture: Path, tmp_path: Path) -> None:
    words = ["reconstruct", "--package", "tiny", *_measured(picture, tmp_path, 1)]
    kspace = np.load(tmp_path / "k.npy")

    def said(name: str, values: np.ndarray) -> str:
        before = (tmp_path / name).read_bytes()
        np.save(tmp_path / name, values)
        line = fail(*words)
        (tmp_path / name).write_bytes(before)
        return line

    spoilt = kspace.copy()
    spoilt[0, 3, 3] = np.nan
    assert "not finite" in said("k.npy", spoilt)
    assert "(coils,32,32)" in said("k.npy", kspace[:, :16])
    assert "not complex" in said("k.npy", kspace.real)
    assert "coils" in said("k.npy", np.concatenate([kspace, kspace]))
    assert "16x32" in said("m.npy", np.ones((16, 32)))
    assert "0 and 1" in said("m.npy", np.full((32, 32), 0.5))
    rim = np.ones((32, 32))
    rim[:, 16] = 0
    assert "--phase none" in said("m.npy", rim)
    assert "sensitivities" in said("s.npy", np.ones((1, 8, 8), complex))
    assert "none.nii is not there" in fail(*words[:3], "--image", tmp_path / "none.nii")
    nib.save(nib.Nifti1Image(np.ones((20, 32, 1)), AFFINE), tmp_path / "small.nii.gz")
    assert "20x32" in fail(*words[:3], "--image", tmp_path / "small.nii.gz")
    assert "must be 16x16" in fail("restore", "--package", "tiny", "--factor", "2",
                                   "--image", _coarse(tmp_path))  # fmt: skip
    assert "factor 3" in fail("restore", "--package", "tiny", "--factor", "3", "--image", picture)


def _coarse(tmp_path: Path) -> Path:
    affine = AFFINE @ np.diag([2.0, 2, 1, 1])
    nib.save(nib.Nifti1Image(np.ones((12, 16, 1)), affine), tmp_path / "coarse.nii.gz")
    return tmp_path / "coarse.nii.gz"


def test_a_decoder_of_another_size(fail: Fail, tiny: DecoderPackage, picture: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(tiny, "image_shape", (1, 64, 64))
    said = fail("reconstruct", "--package", "tiny", "--image", picture)
    assert "32x32" in said and "64x64" in said
