"""A volume goes through the slices of a store and comes back where it was."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from data_prep.config import PrepareConfig
from data_prep.volume.transforms import load_volume
from pipeline.data.volumes import (
    PreparedVolume,
    in_storage_order,
    prepare_volume,
    put_back,
    read_labels,
    write_like,
)
from pipeline.errors import InputError

KEYS = PrepareConfig(size=32, spacing_mm=5.0, source="hcp", root="x").recorded()
SHAPE = (60, 76, 50)


def head(shape: tuple[int, int, int] = SHAPE, holes: bool = False) -> np.ndarray:
    """A lopsided head in the RAS grid of 2 mm: brighter to the right, the front and the top."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = (axes[0] / 0.8) ** 2 + (axes[1] / 0.9) ** 2 + (axes[2] / 0.85) ** 2 < 1
    data = 100 + 30 * axes[0] + 20 * axes[1] + 40 * axes[2]
    data += 40 * ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 4) * 20
    data *= inside
    if holes:
        data[28:31, 36:39, 24:27] = -3
    return data.astype(np.float32)


def write(
    path: Path, data: np.ndarray, axes: str = "RAS", spacing: tuple[float, ...] = (2, 2, 2)
) -> Path:
    """The RAS data as a file with another storage order, the same anatomy at the same place."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-70, -90, -40]
    image = nib.Nifti1Image(data, affine)
    wanted = nib.orientations.axcodes2ornt(tuple(axes))
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), wanted)
    nib.save(image.as_reoriented(turn), path)
    return path


def back_at(path: Path, volume: PreparedVolume, data: np.ndarray | None = None) -> Any:
    """The volume's own values, or others, written as a result and read again."""
    write_like(path, volume.data if data is None else data, volume, "x")
    return nib.load(path)


def centre(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass in RAS mm."""
    return nib.affines.apply_affine(affine, ndimage.center_of_mass(values))


@pytest.mark.parametrize(
    ("axes", "plane", "shape", "spacing"),
    [
        ("RAS", "axial", SHAPE, (2, 2, 2)),
        ("LAS", "coronal", SHAPE, (2, 2, 2)),
        ("LPS", "sagittal", SHAPE, (2, 2, 2)),
        ("PIR", "axial", SHAPE, (2, 2, 2)),
        ("SLA", "coronal", SHAPE, (2, 2, 2)),
        ("LPI", "axial", (60, 76, 34), (2.0, 2.0, 3.5)),
    ],
)
def test_an_image_through_cut_and_put_back_overlays_itself(
    tmp_path: Path, axes: str, plane: str, shape: Any, spacing: Any
) -> None:
    """And the canonical reorientation is undone to the bit."""
    path = write(tmp_path / "t1.nii.gz", head(shape), axes, spacing)
    volume, given = prepare_volume(path, {**KEYS, "plane": plane}), nib.load(path)
    cut = put_back(volume.slices.images[:, 0], volume)
    back = back_at(tmp_path / "back.nii.gz", volume, cut)
    assert given.shape == back.shape and nib.aff2axcodes(back.affine) == tuple(axes)
    np.testing.assert_array_equal(given.affine, back.affine)
    for code in ("sform_code", "qform_code", "xyzt_units"):
        assert given.header[code] == back.header[code]
    one, two = (np.asarray(image.dataobj) for image in (given, back))
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.95
    # A pixel is 5 mm: half of one is 2.5.
    apart = centre(volume.data, volume.affine) - centre(two, back.affine)
    assert np.abs(apart).max() < 0.5
    canonical = np.asarray(nib.as_closest_canonical(given).dataobj)
    np.testing.assert_array_equal(in_storage_order(canonical, given.affine), one)


def test_slices_are_those_of_the_store_and_more(tmp_path: Path) -> None:
    """Cuts of the store's preparation are among them to the bit; holes in the head are of it."""
    path = write(tmp_path / "t1.nii.gz", head(holes=True), "LAS")
    config = PrepareConfig(size=32, spacing_mm=5.0)
    stored = load_volume(path, None, config).slices(config)
    volume = prepare_volume(path, KEYS)
    place = {index: k for k, index in enumerate(volume.slices.indices)}
    for image, index in zip(stored.images, stored.indices, strict=True):
        np.testing.assert_array_equal(image, volume.slices.images[place[index]])
        assert volume.like_training[place[index]]
    assert len(volume.slices.indices) == volume.brain.any(axis=(0, 1)).sum()
    assert 0 < volume.like_training.sum() < len(volume.like_training)
    assert volume.brain[29, 37, 25] and volume.data[29, 37, 25] == 0


def test_labels_follow_the_image_and_of_another_shape_or_place_are_refused(tmp_path: Path) -> None:
    lesion = np.zeros(SHAPE, np.float32)
    lesion[40:44, 30:33, 20:22] = 1
    volume = prepare_volume(write(tmp_path / "t1.nii.gz", head(), "LPS"), KEYS)
    mask = write(tmp_path / "lesion.nii.gz", lesion, "LPS")
    np.testing.assert_array_equal(read_labels(mask, volume), lesion > 0)
    other = write(tmp_path / "other.nii.gz", head((60, 76, 48)), "LPS")
    with pytest.raises(InputError, match="has the shape 60x76x48, its image 60x76x50"):
        read_labels(other, volume)
    with pytest.raises(InputError, match="does not lie where"):
        read_labels(write(tmp_path / "moved.nii.gz", lesion, "LPS", (2, 2, 2.2)), volume)


def test_volumes_that_cannot_be_mapped_are_refused_in_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "t1.nii.gz", head())
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None), tmp_path / "bare.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 5), np.float32), image.affine), tmp_path / "flat.nii.gz")
    small = write(tmp_path / "small.nii.gz", head(), spacing=(0.2, 0.2, 0.2))
    large = write(tmp_path / "large.nii.gz", head(), spacing=(6, 6, 6))
    for file, keys, words in (
        (tmp_path / "bare.nii.gz", KEYS, "gives no orientation"),
        (tmp_path / "flat.nii.gz", KEYS, "one 3-D volume is needed"),
        (tmp_path / "none.nii.gz", KEYS, "none.nii.gz is not there"),
        (small, KEYS, "brain is only"),
        (large, KEYS, "of the brain fits"),
        (path, {"source": "cifar10"}, "not trained on slices of volumes"),
        (path, {**KEYS, "transform_version": 0}, "transform version"),
    ):
        with pytest.raises(InputError, match=words) as error:
            prepare_volume(file, keys)
        assert "\n" not in str(error.value)


def test_an_orientation_that_is_assumed_is_told_and_goes_into_the_result(tmp_path: Path) -> None:
    given = nib.load(write(tmp_path / "las.nii.gz", head(), "LAS"))
    bare = nib.Nifti1Image(np.asarray(given.dataobj), None)
    bare.header.set_zooms((2, 2, 2))
    nib.save(bare, tmp_path / "bare.nii.gz")
    volume = prepare_volume(tmp_path / "bare.nii.gz", KEYS, assume_orientation="LAS")
    expected = prepare_volume(tmp_path / "las.nii.gz", KEYS)
    np.testing.assert_array_equal(volume.slices.images, expected.slices.images)
    assert any("LAS is assumed" in words for words in volume.odd)
    back = back_at(tmp_path / "back.nii.gz", volume)
    assert back.header["sform_code"] > 0 and nib.aff2axcodes(back.affine) == ("L", "A", "S")
    like = back_at(tmp_path / "like.nii.gz", expected)
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(like.dataobj))
    with pytest.raises(InputError, match="assume_orientation"):
        prepare_volume(tmp_path / "bare.nii.gz", KEYS, assume_orientation="left")


def test_lengths_in_metres_are_mapped_too(tmp_path: Path) -> None:
    given = nib.load(write(tmp_path / "mm.nii.gz", head(), "LAS"))
    affine = given.affine.copy()
    affine[:3] /= 1000
    image = nib.Nifti1Image(np.asarray(given.dataobj), affine)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "m.nii.gz")
    volume = prepare_volume(tmp_path / "m.nii.gz", KEYS)
    expected = prepare_volume(tmp_path / "mm.nii.gz", KEYS)
    np.testing.assert_allclose(volume.slices.images, expected.slices.images, atol=1e-5)
    back = back_at(tmp_path / "back.nii.gz", volume)
    np.testing.assert_allclose(back.affine, image.affine, rtol=1e-6)  # the header has float32
    assert back.header.get_xyzt_units()[0] == "meter"


def test_mgz_is_overlaid_too_and_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    source = nib.load(write(tmp_path / "t1.nii.gz", head(), "LIA"))
    nib.save(nib.MGHImage(np.asarray(source.dataobj), source.affine), tmp_path / "t1.mgz")
    volume = prepare_volume(tmp_path / "t1.mgz", KEYS)
    same = back_at(tmp_path / "a.nii.gz", volume)
    assert same.shape == source.shape
    np.testing.assert_allclose(same.affine, source.affine, atol=1e-4)
    apart = centre(same.get_fdata(), same.affine) - centre(volume.data, volume.affine)
    assert np.abs(apart).max() < 1e-3
    back_at(tmp_path / "b.nii.gz", volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_real_brain_overlays_itself(oasis: Path, tmp_path: Path) -> None:
    path = sorted(oasis.glob("*/T1w/T1w_acpc_dc_restore_brain.nii.gz"))[0]
    volume = prepare_volume(path, PrepareConfig(source="hcp", root="x").recorded())
    cut = put_back(volume.slices.images[:, 0], volume)
    given, back = nib.load(path), back_at(tmp_path / "back.nii.gz", volume, cut)
    np.testing.assert_array_equal(given.affine, back.affine)
    one, two = (np.asarray(image.dataobj) for image in (given, back))
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.95
    apart = centre(volume.data, volume.affine) - centre(two, back.affine)
    assert np.abs(apart).max() < 1.6  # half a pixel
