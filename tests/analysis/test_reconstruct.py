"""reconstruct as a user meets it: worked examples, files that overlay, refusals."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
import torch

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.analysis import problems
from pipeline.analysis.jobs import ReconstructOptions, caveats
from pipeline.analysis.operators import cartesian_mask, fft2c, smooth_sensitivities
from pipeline.analysis.problems import degraded
from pipeline.data.slices import SliceDataset
from pipeline.package import DecoderPackage
from pipeline.package.package import hashed

Fail = Callable[..., str]
AFFINE = np.array([[0, 3.2, 0, -50], [-3.2, 0, 0, 50], [0, 0, 1, 7], [0, 0, 0, 1]], float)
QUICK = ["reconstruct", "--package", "tiny", "--steps", "28", "--samples", "3"]

pytestmark = pytest.mark.usefixtures("tiny")


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


def _run(*words: object) -> int:
    return main([str(word) for word in words])


def test_a_study_goes_on_after_ctrl_c_and_is_not_repeated(
    tiny_store: Store, work: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [*QUICK, "--store", tiny_store.path, "--acceleration", "3", "--slices", "2"]
    out = work / "reconstructions/tiny/tiny-slices-2-acceleration-3-steps-28-samples-3"
    solve_all, calls = problems.solve_all, []

    def stops(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return solve_all(*arguments)

    monkeypatch.setattr(problems, "solve_all", stops)
    assert _run(*words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (out / "scores.json").exists()
    assert _run(*words) == 0
    assert len(calls) == 3, "the first subject is not solved again"
    said = capsys.readouterr().out
    assert "note: only 2 families" in said and "within their 90% intervals" in said
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "question.json", "weights.json", "scores.csv", "scores.json",
        *(f"{p}/{name}" for p in ("p04", "p05") for name in (
            "reconstruction.nii.gz", "deviation.nii.gz", "comparison.png", "methods.json")),
    }  # fmt: skip
    summary = _scores(out)
    assert 0 < summary["error_bars"]["coverage_90"]["mean"] <= 1
    assert all(0.0005 <= weight <= 0.5 for weight in summary["weights"].values())
    methods = summary["methods"]
    assert methods["decoder, image"]["ssim"]["mean"] > methods["zero filling"]["ssim"]["mean"]
    assert methods["decoder, image"]["psnr"]["mean"] > methods["decoder, latent"]["psnr"]["mean"]
    with (out / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    tv, decoder = ([float(r["psnr"]) for r in rows if r["method"] == method]
                   for method in ("total variation", "decoder, image"))  # fmt: skip
    assert np.mean(tv) == pytest.approx(methods["total variation"]["psnr"]["mean"])
    gain = summary["decoder_gains_psnr"]["total variation"]
    assert gain["mean"] == pytest.approx(np.mean(decoder) - np.mean(tv))
    assert gain["low"] < gain["mean"] < gain["high"]
    assert _run(*words) == 0
    assert len(calls) == 3 and "nothing has changed" in capsys.readouterr().out
    assert summary["notes"] == []
    image = nib.load(out / "p04/reconstruction.nii.gz")
    # Slices 1 and 4 of 0 to 5; the tiny store's affine is the identity.
    np.testing.assert_allclose(image.affine @ [3, 4, 1, 1], [3, 4, 4, 1])
    data = SliceDataset(tiny_store, [e for e in tiny_store.subjects() if e.subject == "p04"])
    error = image.get_fdata()[:, :, 1] - data[4][0].numpy()
    assert np.sqrt((error**2).mean()) < 0.15


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


@pytest.mark.parametrize("coils", [0, 1, 4])
def test_a_file_s_image_or_kspace_keeps_its_affine_and_unit(
    picture: Path, tmp_path: Path, coils: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--image", f"{picture}", "--acceleration", "2", "--coils", "3"]
    if coils:
        words = _measured(picture, tmp_path, coils)
    out = tmp_path / "out"
    assert _run(*QUICK, *words, "--output", out) == 0
    before, after = nib.load(picture), nib.load(out / "reconstruction.nii.gz")
    assert before.shape == after.shape
    np.testing.assert_allclose(before.affine, after.affine, atol=1e-5)
    error = after.get_fdata() - before.get_fdata()
    assert np.sqrt((error**2).mean()) < 10  # of 100
    assert (_scores(out)["methods"] == {}) == bool(coils)
    note = "has seen simulated people only"  # and the header of the slice says nothing of that
    assert note in _scores(out)["notes"][0] and note in capsys.readouterr().out


def test_a_coarse_image_comes_back_finer(picture: Path, tmp_path: Path) -> None:
    fine = nib.load(picture)
    values = fine.get_fdata().reshape(16, 2, 16, 2, 1).mean(axis=(1, 3))
    place = np.diag([2.0, 2, 1, 1])
    place[:2, 3] = 0.5
    nib.save(nib.Nifti1Image(values, fine.affine @ place), tmp_path / "coarse.nii.gz")
    assert _run(*QUICK, "--operator", "image", "--image", tmp_path / "coarse.nii.gz", "--factor",
                "2", "--noise", "0.02", "--output", tmp_path / "out") == 0  # fmt: skip
    after = nib.load(tmp_path / "out/reconstruction.nii.gz")
    assert after.shape == fine.shape
    np.testing.assert_allclose(after.affine, fine.affine, atol=1e-5)
    assert np.sqrt(((after.get_fdata() - fine.get_fdata()) ** 2).mean()) < 15


def test_a_simulated_phase_is_read_from_the_centre(tiny_store: Store) -> None:
    """The operator that reconstructs explains what was measured; without a phase it does not."""
    images = SliceDataset(tiny_store, tiny_store.subjects()).of_subject(4, 2)

    def misfit(phase: Literal["centre", "none"]) -> float:
        options = ReconstructOptions(
            package="tiny", store=f"{tiny_store.path}", acceleration=2, centre_fraction=0.25,
            noise=0, simulated_phase=1.0, phase=phase,
        )  # fmt: skip
        problem = degraded(images, 0, options)
        apart = problem.operator.forward(images) - problem.measurement
        return float(apart.abs().square().sum() / problem.measurement.abs().square().sum())

    assert misfit("centre") < 0.01
    assert misfit("none") > 0.1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "give one of --store, --image and --kspace"),
        ("--store STORE --acceleration 9", "between 2 and 8"),
        ("--store STORE --centre_fraction .5", "centre_fraction"),
        ("--store STORE --noise nan", "noise"),
        ("--store STORE --steps -3", "steps"),
        ("--store STORE --samples 1", "at least 2"),
        ("--store STORE --subjects p99", "no subject p99"),
        ("--store STORE --subjects all", "3 of 6"),
        ("--store x", "stores/x"),
        ("--store STORE --output FILE", "slice.nii.gz"),
        ("--kspace k.npy --like FILE", "k.npy is not there"),
        ("--kspace FILE", "--like"),
        ("--image FILE --operator image --factor 3", "9.6 mm"),
        ("--colour red", "--colour"),
    ],
)
def test_wrong_options(
    fail: Fail, tiny_store: Store, picture: Path, words: str, expected: str
) -> None:
    there = {"STORE": tiny_store.path, "FILE": picture}
    given = (there.get(word, word) for word in words.split())
    assert expected in fail("reconstruct", "--package", "tiny", *given)


def test_a_store_or_a_likelihood_that_does_not_fit_is_refused(
    fail: Fail, tiny: DecoderPackage, tiny_store: Store, picture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ["reconstruct", "--package", "tiny", "--store", tiny_store.path]
    for key, value in (("plane", "coronal"), ("spacing_mm", 9.0), ("transform_version", -1)):
        monkeypatch.setattr(tiny, "prepare_keys", {**tiny.prepare_keys, key: value})
        assert key in fail(*words)
    monkeypatch.setitem(tiny._modules, "density", None)
    assert "no likelihood" in fail(*words)
    assert "no likelihood" in fail("anomaly", "--package", "tiny", "--image", picture)


def test_wrong_files(fail: Fail, picture: Path, tmp_path: Path) -> None:
    words = ["reconstruct", "--package", "tiny", *_measured(picture, tmp_path, 1)]
    kspace = np.load(tmp_path / "k.npy")
    spoilt, rim = kspace.copy(), np.ones((32, 32))
    spoilt[0, 3, 3], rim[:, 16] = np.nan, 0
    for name, values, told in (
        ("k.npy", spoilt, "not finite"),
        ("k.npy", kspace[:, :16], "(coils,32,32)"),
        ("k.npy", kspace.real, "not complex"),
        ("k.npy", np.concatenate([kspace, kspace]), "coils"),
        ("m.npy", np.ones((16, 32)), "16x32"),
        ("m.npy", np.full((32, 32), 0.5), "0 and 1"),
        ("m.npy", rim, "--phase none"),
        ("s.npy", np.ones((1, 8, 8), complex), "sensitivities"),
    ):
        before = (tmp_path / name).read_bytes()
        np.save(tmp_path / name, values)
        assert told in fail(*words)
        (tmp_path / name).write_bytes(before)
    nib.save(nib.Nifti1Image(np.ones((20, 32, 1)), AFFINE), tmp_path / "small.nii.gz")
    assert "20x32" in fail(*words[:3], "--image", tmp_path / "small.nii.gz")


def test_subjects_that_the_law_was_fitted_to_are_marked_in_sample(
    tiny: DecoderPackage, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chosen,) = tiny_store.subjects("validation")
    told = {"families": 1, "family": [hashed(chosen.family)]}
    monkeypatch.setitem(tiny.metadata, "fitted_on", told)
    assert caveats(tiny, True, [chosen]) == [], "under the term's own law nothing was fitted"
    monkeypatch.setattr(tiny, "which", "fitted")
    said = [caveats(tiny, True, tiny_store.subjects(split)) for split in ("all", "test")]
    assert "in-sample" in said[0][0] and "1 of these 6 subjects" in said[0][0]
    assert said[1] == said[0][1:] and "only one family calibrated" in said[1][0]


def test_deepinv_reconstructs_under_a_decoder(
    tiny: DecoderPackage, tiny_store: Store, example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A decoder package as the prior of somebody else's reconstruction."""
    pytest.importorskip("deepinv", reason="needs the extra `bench`")
    module = example("deepinv_reconstruction")
    monkeypatch.setattr(module, "load", lambda _: tiny)
    zero_filling, decoder = module.main("tiny", str(tiny_store.path))
    assert decoder > zero_filling + 1
