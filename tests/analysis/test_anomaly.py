"""Anomaly maps: what a person would check by hand, on a model whose answers are known."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from data_prep.config import PrepareConfig
from data_prep.sources.simulated import DESCRIPTION, is_simulated
from pipeline.__main__ import main
from pipeline.analysis import anomaly
from pipeline.analysis.anomaly import detect, deviations, restore, total_variation
from pipeline.losses.law import GaussianLaw
from pipeline.models.vae import Posterior

MS = Path(__file__).parents[2].parent / "shared/data/ms-patient07"
KEYS = PrepareConfig(
    size=32, spacing_mm=4.0, source="hcp", root="x", lower_percentile=0, upper_percentile=100
).recorded()
Fail = Callable[..., str]


class Smooth:
    """A model of healthy heads that are one intensity, 0.6: its latent is the share of the head.

    Decodes every image's own outline, filled evenly; a unit-variance posterior.
    """

    prepare_keys, which, deviation = KEYS, "term", torch.tensor(0.05)
    metadata: dict[str, Any] = {"store": {"simulated": True}, "digest": "0"}  # noqa: RUF012
    image_shape, latent_size = (1, 32, 32), 1

    def encode(self, image: Tensor) -> Posterior:
        return Posterior(image, torch.zeros_like(image))

    def decode(self, latent: Tensor) -> Tensor:
        return 0.6 * torch.sigmoid((latent - 0.1) * 200)

    def up_to(self, latent: Tensor, side: int) -> Tensor:
        return latent

    def law(self, latent: Tensor, decoded: Tensor | None = None) -> GaussianLaw:
        return GaussianLaw(self.deviation, latent.new_ones(1, 1, 32, 17))

    def log_likelihood(self, image: Tensor, latent: Tensor) -> Tensor:
        error = image - self.decode(latent)
        return -error.square().sum(dim=(1, 2, 3)) / (2 * self.deviation**2)

    def trained_on(self, **_: Any) -> bool:
        return False


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A head of 2 mm voxels in LAS with a dark ball, and the ball's mask."""
    shape = (56, 60, 40)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    head = sum((a / 0.85) ** 2 for a in axes) < 1
    noise = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(shape), 2)
    lesion = (axes[0] - 0.3) ** 2 + axes[1] ** 2 + (axes[2] + 0.1) ** 2 < 0.04
    data = (600 + 60 * noise / noise.std() - 320 * lesion) * head
    data[28, 8, 20], data[28, 9, 20] = 1, 1000  # the intensities 0 and 1 of the model
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = [56, -60, -40]
    paths = {}
    for name, values in {"t1": data.astype(np.float32), "lesion": lesion.astype(np.uint8)}.items():
        paths[name] = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(values, affine), paths[name])
    monkeypatch.setattr("pipeline.package.format.load", lambda *_: Smooth())
    monkeypatch.setattr("pipeline.analysis.jobs.existing_package", lambda _: None)
    return paths


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as stream:
        return {row["method"]: row for row in csv.DictReader(stream)}


def words_of(patient: dict[str, Path], output: Path, *more: object) -> list[str]:
    words = ["anomaly", "--package", "p", "--image", patient["t1"], "--output", output, *more]
    return [str(word) for word in words]


def test_a_lesion_is_found_where_it_is(
    patient: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], fail: Fail,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    words = words_of(patient, out, "--baseline", "q", "--lesions", patient["lesion"],
                     "--tail", "dark")  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.count("this decoder has seen simulated people only") == 2
    assert sorted(path.name for path in out.iterdir()) == [
        "anomaly.nii.gz", "methods.csv", "overlay.png", "question.json", "summary.json",
    ]  # fmt: skip
    found = rows(out / "methods.csv")
    assert list(found) == ["whitened", "residual", "baseline_residual", "intensity"]
    assert float(found["whitened"]["auroc"]) > 0.95
    # Pixels of 4 mm at the edge of the head are dark, too.
    assert float(found["whitened"]["best_dice"]) > 0.45
    assert found["residual"]["auroc"] == found["baseline_residual"]["auroc"]
    given, mapped = nib.load(patient["t1"]), nib.load(out / "anomaly.nii.gz")
    np.testing.assert_array_equal(given.affine, mapped.affine)
    assert given.shape == mapped.shape
    values, lesion = mapped.get_fdata(), nib.load(patient["lesion"]).get_fdata() > 0
    deep = ndimage.binary_erosion(given.get_fdata() > 0, iterations=5)
    centre = ndimage.center_of_mass(values * deep * (values > values[lesion].mean() / 2))
    assert np.abs(np.subtract(centre, ndimage.center_of_mass(lesion))).max() < 1  # voxels of 2 mm
    summary = json.loads((out / "summary.json").read_text())
    assert summary["lesion_voxels_seen"] == lesion.sum()
    first = (out / "anomaly.nii.gz").read_bytes()
    assert main([*words, "--output", f"{tmp_path}/again"]) == 0
    assert (tmp_path / "again/anomaly.nii.gz").read_bytes() == first
    assert main([*words, "--tail", "bright", "--output", f"{tmp_path}/bright"]) == 0
    assert float(rows(tmp_path / "bright/methods.csv")["whitened"]["auroc"]) < 0.5

    monkeypatch.setattr(Smooth, "trained_on", lambda *_, source_sha256: len(source_sha256) == 64)
    assert "was trained on by the package" in fail(*words, "--output", tmp_path / "refused")
    assert main(words_of(patient, tmp_path / "unscored")) == 0
    notes = json.loads((tmp_path / "unscored/summary.json").read_text())["notes"]
    assert "the package was trained on t1.nii.gz" in notes


def test_mistakes_are_told_in_a_line(
    patient: dict[str, Path], tmp_path: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = nib.load(patient["t1"])
    small, flat, bare = (tmp_path / f"{name}.nii.gz" for name in ("small", "flat", "bare"))
    nib.save(nib.Nifti1Image(np.ones((56, 60, 39), np.uint8), image.affine), small)
    nib.save(nib.Nifti1Image(np.ones((9, 9), np.float32), image.affine), flat)
    nib.save(nib.Nifti1Image(image.get_fdata().astype(np.float32), None), bare)
    for words, told in (
        (["--image", patient["t1"], "--lesions", small], "has the shape 56x60x39"),
        (["--image", patient["t1"], "--mask", small], "has the shape 56x60x39"),
        (["--image", flat], "one 3-D volume is needed"),
        (["--image", bare], "gives no orientation"),
        (["--image", tmp_path / "none.nii.gz"], "none.nii.gz is not there"),
        (["--image", patient["t1"], "--restore_steps", "-1"], "restore_steps must be at least 0"),
        (["--image", patient["t1"], "--tail", "left"], "tail"),
        ([], "image"),
    ):
        output = tmp_path / "refused"
        assert told in fail("anomaly", "--package", "p", "--output", output, *words)
        assert not output.exists()

    def other(source: str, _: object) -> Smooth:
        model = Smooth()
        model.prepare_keys = {**KEYS, "spacing_mm": 3.0} if source.endswith("q") else KEYS
        return model

    monkeypatch.setattr("pipeline.package.format.load", lambda source, _: other(f"{source}", _))
    assert "another spacing_mm" in fail(*words_of(patient, tmp_path / "x", "--baseline", "q"))


def test_residuals_are_image_less_reconstruction_whatever_the_batches() -> None:
    images = torch.rand(40, 1, 32, 32)
    found, part = deviations(Smooth(), images), deviations(Smooth(), images[:3])
    torch.testing.assert_close(found["residual"], images - Smooth().decode(images))
    torch.testing.assert_close(found["whitened"], found["residual"] / 0.05, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["whitened"][:3], part["whitened"])


def test_restoration_fills_a_lesion_and_leaves_the_rest() -> None:
    image = torch.full((1, 1, 32, 32), 0.6)
    image[..., 12:18, 12:18] = 0.3
    restored = restore(Smooth(), image, steps=80, tv=0.1)
    change = (restored - image)[0, 0]
    assert change[13:17, 13:17].min() > 0.15
    assert change[:10].abs().max() < 0.05
    assert torch.equal(restore(Smooth(), image, steps=0), image)
    stiff = restore(Smooth(), image, steps=80, tv=100.0)
    assert (stiff - image).abs().max() < 0.1 < change.max()


def test_total_variation_is_the_length_of_an_edge_by_its_height() -> None:
    image = torch.zeros(1, 1, 10, 10)
    image[..., 5:] = 0.5
    assert total_variation(image).item() == pytest.approx(10 * 0.5, rel=0.01)
    assert total_variation(torch.full((1, 1, 10, 10), 0.7)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("levels", [4, 1000])
def test_scores_of_detection_are_torchmetrics_and_depend_on_order_alone(levels: int) -> None:
    generator = np.random.default_rng(0)
    score, lesion = generator.integers(levels, size=2000) / levels, generator.random(2000) < 0.1
    found, other = detect(score, lesion), detect(np.exp(20 * score), lesion)
    truth = torch.from_numpy(lesion.astype(int))
    assert found["auroc"] == pytest.approx(float(binary_auroc(torch.from_numpy(score), truth)))
    precision = float(binary_average_precision(torch.from_numpy(score), truth))
    assert found["average_precision"] == pytest.approx(precision)
    assert (
        found["auroc"] == pytest.approx(other["auroc"]) and found["best_dice"] == other["best_dice"]
    )
    assert detect(np.ones(3), np.zeros(3, bool))["auroc"] is None
    together = detect(np.zeros(4), np.array([True, False, False, False]))
    assert (together["best_dice"], together["threshold"]) == (0.4, 0.0)


@pytest.mark.parametrize("simulated", [True, False])
def test_a_simulated_person_is_called_so_wherever_a_result_is_seen(
    patient: dict[str, Path], tmp_path: Path, simulated: bool,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    image = nib.load(patient["t1"])
    image.header["descrip"] = DESCRIPTION.encode() if simulated else b"FSL5.0"
    nib.save(image, patient["t1"])
    titles, drawn = [], anomaly.overlay
    monkeypatch.setattr(anomaly, "overlay", lambda *a: (titles.append(a[-1]), drawn(*a))[1])
    assert main(words_of(patient, tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert ("is of a simulated person" in said) == simulated
    assert ("seen simulated people only" in said) != simulated
    assert ["(simulated person)" in title for title in titles] == [simulated]
    assert json.loads((tmp_path / "out/summary.json").read_text())["simulated"] is simulated
    mapped = nib.load(tmp_path / "out/anomaly.nii.gz")
    assert is_simulated(mapped) == simulated
    assert b"whitened, tail: both" in mapped.header["descrip"].item()


@pytest.mark.slow
def test_a_real_patient_is_mapped_in_his_own_space(
    patient: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not MS.is_dir():
        pytest.skip(f"the patient's volume is not at {MS}")
    patient["t1"], out = MS / "T1w_brain.nii.gz", tmp_path / "out"
    monkeypatch.setitem(KEYS, "spacing_mm", 6.4)
    assert main(words_of(patient, out, "--lesions", MS / "lesion_mask.nii.gz")) == 0
    given, mapped = nib.load(patient["t1"]), nib.load(out / "anomaly.nii.gz")
    assert nib.aff2axcodes(mapped.affine) == ("L", "A", "S")
    np.testing.assert_array_equal(given.affine, mapped.affine)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["lesion_voxels_seen"] == summary["lesion_voxels"] == 1300
