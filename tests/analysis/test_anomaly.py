"""Anomaly maps: what a person would check by hand, on a model whose answers are known."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from data_prep.config import PrepareConfig
from data_prep.sources.simulated.marking import DESCRIPTION, is_simulated
from data_prep.volume import transforms
from pipeline.__main__ import main
from pipeline.analysis.anomaly import anomaly
from pipeline.analysis.anomaly.detection import best_dice, detect
from pipeline.analysis.anomaly.figures import slices_to_show
from pipeline.analysis.anomaly.maps import one_sided, slice_maps
from pipeline.analysis.anomaly.restoration import restore, total_variation
from pipeline.data import volumes
from pipeline.errors import InputError
from pipeline.losses.law import GaussianLaw
from pipeline.models.vae import Posterior

MS = Path(__file__).parents[2].parent / "shared/data/ms-patient07"
KEYS = PrepareConfig(
    size=32, spacing_mm=4.0, source="hcp", root="x", lower_percentile=0, upper_percentile=100
).recorded()


class Smooth:
    """A model of healthy heads that are one intensity, 0.6: its latent is the share of the head.

    Decodes every image's own outline, filled evenly; a unit-variance posterior.
    """

    prepare_keys, which, deviation = KEYS, "term", torch.tensor(0.05)

    def encode(self, image: Tensor) -> Posterior:
        return Posterior(image, torch.zeros_like(image))

    def decode(self, latent: Tensor) -> Tensor:
        return 0.6 * torch.sigmoid((latent - 0.1) * 200)

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
    for name in ("open_package", "open_prior"):
        monkeypatch.setattr(anomaly, name, lambda *_: Smooth())
    monkeypatch.setattr("pipeline.commands.given.existing_package", lambda _: None)
    return paths


def rows(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open() as stream:
        return {(row["method"], row["tail"]): row for row in csv.DictReader(stream)}


def test_a_lesion_is_found_where_it_is(patient: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["anomaly", "--package", "p", "--baseline", "p", "--image", patient["t1"],
             "--lesions", patient["lesion"], "--output", out, "--tail", "dark",
             "--all_maps", "true"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        ".results", "anomaly.nii.gz", "baseline_residual.nii.gz", "methods.csv", "overlay.png",
        "reconstruction.nii.gz", "residual.nii.gz", "slices.csv", "summary.json", "whitened.nii.gz",
    ]  # fmt: skip
    found = rows(out / "methods.csv")
    assert float(found["whitened", "dark"]["auroc"]) > 0.95
    # Pixels of 4 mm at the edge of the head are dark, too.
    assert float(found["whitened", "dark"]["best_dice"]) > 0.45
    assert float(found["whitened", "bright"]["auroc"]) < 0.5
    assert found["residual", "both"]["auroc"] == found["baseline_residual", "both"]["auroc"]
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
    assert main([str(word) for word in words]) == 0
    assert (out / "anomaly.nii.gz").read_bytes() == first
    assert main([str(word) for word in words[:-2]]) == 0
    assert [path.name for path in out.glob("*.nii.gz")] == ["anomaly.nii.gz"]  # no map of before


def test_the_volume_is_opened_once_however_many_maps_are_written(
    patient: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, read = [], []
    for module, name, calls in ((volumes.nib, "load", opened), (transforms, "read_verified", read)):
        real = getattr(module, name)

        def counted(
            path: Path, *words: Any, real: Any = real, calls: Any = calls, **keys: Any
        ) -> Any:
            calls.append(Path(path).name)
            return real(path, *words, **keys)

        monkeypatch.setattr(module, name, counted)
    words = ["anomaly", "--package", "p", "--image", str(patient["t1"]), "--all_maps", "true",
             "--output", str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4
    assert opened == ["t1.nii.gz"] == read  # the header by nibabel, the voxels by our reader


def test_an_image_that_was_trained_on_is_mapped_but_not_scored(
    patient: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Smooth, "trained_on", lambda *_, source_sha256: len(source_sha256) == 64)
    words = ["anomaly", "--package", "p", "--image", str(patient["t1"]), "--output", str(tmp_path)]
    assert main([*words, "--lesions", str(patient["lesion"])]) == 2
    assert "was trained on by the package" in capsys.readouterr().err
    assert main(words) == 0
    known = json.loads((tmp_path / "summary.json").read_text())["trained_on"]
    assert known == {"package": True, "baseline": False}


def test_maps_of_one_person_are_not_replaced_by_those_of_another(
    patient: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """HCP's files of all people have one name."""
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    other = tmp_path / "another" / "t1.nii.gz"
    other.parent.mkdir()
    image = nib.load(patient["t1"])
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 2, image.affine), other)
    words = ["anomaly", "--package", "p", "--image"]
    assert main([*words, str(patient["t1"])]) == 0
    written = {p: p.read_bytes() for p in (tmp_path / "work" / "anomaly" / "t1").iterdir()}
    capsys.readouterr()
    assert main([*words, str(other)]) == 2
    assert "another image of this name: choose another folder" in capsys.readouterr().err
    assert written == {p: p.read_bytes() for p in written}
    assert main([*words, str(patient["t1"])]) == 0
    assert main([*words, str(other), "--output", str(tmp_path / "second")]) == 0


def test_mistakes_are_told_in_a_line(
    patient: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nib.load(patient["t1"])
    small = tmp_path / "small.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((56, 60, 39), np.uint8), image.affine), small)
    flat = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((9, 9), np.float32), image.affine), flat)
    bare = tmp_path / "bare.nii.gz"
    nib.save(nib.Nifti1Image(image.get_fdata().astype(np.float32), None), bare)
    for words, told in (
        (["--image", patient["t1"], "--lesions", small], "has the shape 56x60x39"),
        (["--image", patient["t1"], "--mask", small], "has the shape 56x60x39"),
        (["--image", flat], "one 3-D volume is needed"),
        (["--image", bare], "gives no orientation"),
        (["--image", tmp_path / "none.nii.gz"], "none.nii.gz is not there"),
        (["--image", patient["t1"], "--restore_steps", "-1"], "restore_steps must not be negative"),
        (["--image", patient["t1"], "--tail", "left"], "tail"),
        ([], "image"),
    ):
        output = tmp_path / "refused"
        code = main(["anomaly", "--package", "p", "--output", str(output), *map(str, words)])
        said = capsys.readouterr().err
        assert code == 2 and told in said and len(said.splitlines()) == 1, said
        assert not output.exists()


def test_a_package_that_is_not_there_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["anomaly", "--package", str(tmp_path / "none"), "--image", "x.nii.gz"]
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_residuals_are_image_less_reconstruction_whatever_the_batches() -> None:
    images = torch.rand(5, 1, 32, 32)
    one, two = (slice_maps(Smooth(), images, size, lambda *_: None) for size in (2, 5))
    torch.testing.assert_close(one.whitened, two.whitened)
    torch.testing.assert_close(one.residual + one.reconstruction, images)
    torch.testing.assert_close(one.whitened, one.residual / 0.05, rtol=1e-4, atol=1e-4)


def test_the_two_tails_make_up_both() -> None:
    signed = torch.randn(100)
    tails = one_sided(signed, "dark") + one_sided(signed, "bright")
    torch.testing.assert_close(tails, one_sided(signed, "both"))


def test_restoration_fills_a_lesion_and_leaves_the_rest() -> None:
    image = torch.full((1, 1, 32, 32), 0.6)
    image[..., 12:18, 12:18] = 0.3
    keep = {"batch_size": 1, "progress": lambda *_: None}
    restored = restore(Smooth(), image, steps=80, tv=0.1, **keep)
    change = (restored - image)[0, 0]
    assert change[13:17, 13:17].min() > 0.15
    assert change[:10].abs().max() < 0.05
    assert torch.equal(restore(Smooth(), image, steps=0, tv=1.0, **keep), image)
    stiff = restore(Smooth(), image, steps=80, tv=100.0, **keep)
    assert (stiff - image).abs().max() < 0.1 < change.max()


def test_total_variation_is_the_length_of_an_edge_by_its_height() -> None:
    image = torch.zeros(1, 1, 10, 10)
    image[..., 5:] = 0.5
    assert total_variation(image).item() == pytest.approx(10 * 0.5, rel=0.01)
    assert total_variation(torch.full((1, 1, 10, 10), 0.7)).item() == pytest.approx(0, abs=1e-5)


def test_scores_of_detection_by_hand() -> None:
    score, lesion = np.array([9.0, 8, 7, 1]), np.array([True, False, True, False])
    found = detect(score, lesion)
    assert found.auroc == pytest.approx(3 / 4)
    assert found.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert (found.best_dice, found.threshold) == (pytest.approx(0.8), 7.0)


def test_scores_of_detection_depend_on_order_alone() -> None:
    generator = np.random.default_rng(0)
    score, lesion = generator.random(2000), generator.random(2000) < 0.1
    one, two = detect(score, lesion), detect(np.exp(20 * score), lesion)
    assert one.auroc == pytest.approx(two.auroc) and one.best_dice == two.best_dice
    assert one.auroc == pytest.approx(0.5, abs=0.06)
    assert one.average_precision == pytest.approx(0.1, abs=0.03)


def test_equal_scores_are_taken_together() -> None:
    assert best_dice(np.zeros(4), np.array([True, False, False, False])) == (0.4, 0.0)
    assert np.isnan(detect(np.ones(3), np.zeros(3, bool)).auroc)


def test_shown_slices_are_the_heaviest_and_apart() -> None:
    weight = np.zeros(100)
    weight[10:90] = np.arange(80)
    chosen = slices_to_show(weight, 5)
    assert len(chosen) == 5 and 89 in chosen and min(np.diff(chosen)) >= 7
    assert slices_to_show(np.zeros(5)) == []


@pytest.mark.slow
def test_a_real_patient_is_mapped_in_his_own_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not MS.is_dir():
        pytest.skip(f"the patient's volume is not at {MS}")
    for name in ("open_package", "open_prior"):
        monkeypatch.setattr(anomaly, name, lambda *_: Smooth())
    image = MS / "T1w_brain.nii.gz"
    monkeypatch.setitem(KEYS, "spacing_mm", 6.4)
    anomaly.run(
        anomaly.Options("p", str(image), str(tmp_path), lesions=str(MS / "lesion_mask.nii.gz"))
    )
    given, mapped = nib.load(image), nib.load(tmp_path / "anomaly.nii.gz")
    assert nib.aff2axcodes(mapped.affine) == ("L", "A", "S")
    np.testing.assert_array_equal(given.affine, mapped.affine)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["lesion_voxels_seen"] == summary["lesion_voxels"] == 1300


def test_another_contrast_of_the_head_is_a_bar_beside(
    patient: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lesion's own mask, brightened, finds it all; stored another way round it is refused."""
    image = nib.load(patient["lesion"])
    other = nib.as_closest_canonical(
        nib.Nifti1Image(1 + 5 * image.get_fdata().astype(np.float32), image.affine)
    )
    words = ["anomaly", "--package", "p", "--image", str(patient["t1"]), "--lesions",
             str(patient["lesion"]), "--output", str(tmp_path / "out"), "--beside"]  # fmt: skip
    bright = nib.Nifti1Image(1 + 5 * image.get_fdata().astype(np.float32), image.affine)
    nib.save(bright, tmp_path / "flair.nii.gz")
    assert main([*words, str(tmp_path / "flair.nii.gz")]) == 0
    found = rows(tmp_path / "out/methods.csv")["intensity of flair", "bright"]
    assert float(found["auroc"]) == pytest.approx(1) == float(found["best_dice"])
    nib.save(other, tmp_path / "turned.nii.gz")
    capsys.readouterr()
    assert main([*words, str(tmp_path / "turned.nii.gz")]) == 2
    assert "turned.nii.gz does not lie on the grid" in capsys.readouterr().err


@pytest.mark.parametrize("simulated", [True, False])
def test_a_simulated_person_is_called_so_wherever_a_result_is_seen(
    patient: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    simulated: bool,
) -> None:
    image = nib.load(patient["t1"])
    image.header["descrip"] = DESCRIPTION.encode() if simulated else b"FSL5.0"
    nib.save(image, tmp_path / "t1_copy.nii.gz")
    titles = []
    drawn = anomaly.overlay
    monkeypatch.setattr(
        anomaly, "overlay", lambda *a, **k: (titles.append(k["title"]), drawn(*a, **k))[1]
    )
    words = ["anomaly", "--package", "p", "--image", str(tmp_path / "t1_copy.nii.gz"),
             "--output", str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 0
    assert ("simulated person" in capsys.readouterr().out) == simulated
    assert ["(simulated person)" in title for title in titles] == [simulated]
    assert json.loads((tmp_path / "out/summary.json").read_text())["simulated"] is simulated
    mapped = nib.load(tmp_path / "out/anomaly.nii.gz")
    assert is_simulated(mapped) == simulated
    assert b"whitened, both tail" in mapped.header["descrip"].item()


def test_a_baseline_of_other_slices_is_refused() -> None:
    other = Smooth()
    other.prepare_keys = {**KEYS, "spacing_mm": 3.0}
    with pytest.raises(InputError, match="another spacing_mm"):
        anomaly._check_alike(Smooth(), other)  # type: ignore[arg-type]
