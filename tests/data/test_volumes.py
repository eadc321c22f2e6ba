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


def head(shape: tuple[int, int, int] = (60, 76, 50), holes: bool = False) -> np.ndarray:
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
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(
        nib.io_orientation(affine), wanted)), path)  # fmt: skip
    return path


def world(path: Path) -> np.ndarray:
    """Centre of mass of a file in RAS mm."""
    image = nib.load(path)
    return nib.affines.apply_affine(image.affine, ndimage.center_of_mass(image.get_fdata()))


def centre(volume: PreparedVolume) -> np.ndarray:
    """Centre of mass of the normalised volume in RAS mm."""
    return nib.affines.apply_affine(volume.affine, ndimage.center_of_mass(volume.data))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "PIR", "SLA"])
def test_an_image_through_cut_and_put_back_overlays_itself(
    tmp_path: Path, axes: str, plane: str
) -> None:
    path = write(tmp_path / "t1.nii.gz", head(), axes)
    volume = prepare_volume(path, {**KEYS, "plane": plane})
    write_like(tmp_path / "back.nii.gz", put_back(volume.slices.images[:, 0], volume), volume, "x")
    given, back = nib.load(path), nib.load(tmp_path / "back.nii.gz")
    assert given.shape == back.shape
    np.testing.assert_array_equal(given.affine, back.affine)
    assert nib.aff2axcodes(back.affine) == tuple(axes)
    for code in ("sform_code", "qform_code", "xyzt_units"):
        assert given.header[code] == back.header[code]
    one, two = (np.asarray(image.dataobj) for image in (given, back))
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.95
    # A pixel is 5 mm: half of one is 2.5.
    assert np.abs(centre(volume) - world(tmp_path / "back.nii.gz")).max() < 0.5


def test_voxels_of_unequal_sides_come_back_in_place(tmp_path: Path) -> None:
    path = write(tmp_path / "t1.nii", head((60, 76, 34)), "LPI", (2.0, 2.0, 3.5))
    volume = prepare_volume(path, KEYS)
    write_like(tmp_path / "back.nii.gz", put_back(volume.slices.images[:, 0], volume), volume, "x")
    assert np.abs(centre(volume) - world(tmp_path / "back.nii.gz")).max() < 0.5


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR", "IPL"])
def test_the_canonical_reorientation_is_undone_to_the_bit(tmp_path: Path, axes: str) -> None:
    image = nib.load(write(tmp_path / "t1.nii.gz", head(), axes))
    canonical = nib.as_closest_canonical(image)
    back = in_storage_order(np.asarray(canonical.dataobj), image.affine)
    np.testing.assert_array_equal(back, np.asarray(image.dataobj))


def test_slices_are_those_of_the_store_and_more(tmp_path: Path) -> None:
    """What the store's preparation cuts is among them, equal to the bit."""
    path = write(tmp_path / "t1.nii.gz", head(), "LAS")
    config = PrepareConfig(size=32, spacing_mm=5.0)
    stored = load_volume(path, None, config).slices(config)
    volume = prepare_volume(path, KEYS)
    place = {index: k for k, index in enumerate(volume.slices.indices)}
    for image, index in zip(stored.images, stored.indices, strict=True):
        np.testing.assert_array_equal(image, volume.slices.images[place[index]])
        assert volume.like_training[place[index]]
    assert len(volume.slices.indices) == volume.brain.any(axis=(0, 1)).sum()
    assert 0 < volume.like_training.sum() < len(volume.like_training)


def test_holes_in_the_head_are_of_the_brain(tmp_path: Path) -> None:
    volume = prepare_volume(write(tmp_path / "t1.nii.gz", head(holes=True)), KEYS)
    assert volume.brain[29, 37, 25] and volume.data[29, 37, 25] == 0


def test_labels_follow_the_image_to_the_canonical_grid(tmp_path: Path) -> None:
    lesion = np.zeros((60, 76, 50), np.float32)
    lesion[40:44, 30:33, 20:22] = 1
    path = write(tmp_path / "t1.nii.gz", head(), "LPS")
    mask = write(tmp_path / "lesion.nii.gz", lesion, "LPS")
    labels = read_labels(mask, prepare_volume(path, KEYS))
    np.testing.assert_array_equal(labels, lesion > 0)


def refused(path: Path, keys: dict[str, Any] = KEYS) -> str:
    with pytest.raises(InputError) as error:
        prepare_volume(path, keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_mapped_is_refused_in_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "t1.nii.gz", head())
    image = nib.load(path)
    bare = nib.Nifti1Image(np.asarray(image.dataobj), None)
    nib.save(bare, tmp_path / "bare.nii.gz")
    assert "gives no orientation" in refused(tmp_path / "bare.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 5), np.float32), image.affine), tmp_path / "flat.nii.gz")
    assert "one 3-D volume is needed" in refused(tmp_path / "flat.nii.gz")
    assert "none.nii.gz is not there" in refused(tmp_path / "none.nii.gz")
    small = write(tmp_path / "small.nii.gz", head(), spacing=(0.2, 0.2, 0.2))
    assert "brain is only" in refused(small)
    large = write(tmp_path / "large.nii.gz", head(), spacing=(6, 6, 6))
    assert "of the brain fits" in refused(large)
    assert "not trained on slices of volumes" in refused(path, {"source": "cifar10"})
    assert "transform version" in refused(path, {**KEYS, "transform_version": 0})


def test_an_orientation_that_is_assumed_is_told_and_goes_into_the_result(tmp_path: Path) -> None:
    given = nib.load(write(tmp_path / "las.nii.gz", head(), "LAS"))
    bare = nib.Nifti1Image(np.asarray(given.dataobj), None)
    bare.header.set_zooms((2, 2, 2))
    nib.save(bare, tmp_path / "bare.nii.gz")
    volume = prepare_volume(tmp_path / "bare.nii.gz", KEYS, assume_orientation="LAS")
    expected = prepare_volume(tmp_path / "las.nii.gz", KEYS)
    np.testing.assert_array_equal(volume.slices.images, expected.slices.images)
    assert any("LAS is assumed" in words for words in volume.odd)
    write_like(tmp_path / "back.nii.gz", volume.data, volume, "x")
    back = nib.load(tmp_path / "back.nii.gz")
    assert back.header["sform_code"] > 0 and nib.aff2axcodes(back.affine) == ("L", "A", "S")
    np.testing.assert_array_equal(
        np.asarray(back.dataobj) > 0.5, np.asarray(nib.load(
            _written(tmp_path / "like.nii.gz", expected)).dataobj) > 0.5,
    )  # fmt: skip
    with pytest.raises(InputError, match="assume_orientation"):
        prepare_volume(tmp_path / "bare.nii.gz", KEYS, assume_orientation="left")


def _written(path: Path, volume: PreparedVolume) -> Path:
    write_like(path, volume.data, volume, "x")
    return path


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
    back = nib.load(_written(tmp_path / "back.nii.gz", volume))
    np.testing.assert_allclose(back.affine, image.affine, rtol=1e-6)  # the header has float32
    assert back.header.get_xyzt_units()[0] == "meter"


def test_a_mask_of_another_shape_or_place_is_refused(tmp_path: Path) -> None:
    volume = prepare_volume(write(tmp_path / "t1.nii.gz", head()), KEYS)
    other = write(tmp_path / "other.nii.gz", head((60, 76, 48)))
    with pytest.raises(InputError, match="has the shape 60x76x48, its image 60x76x50"):
        read_labels(other, volume)
    moved = write(tmp_path / "moved.nii.gz", head(), spacing=(2, 2, 2.2))
    with pytest.raises(InputError, match="does not lie where"):
        read_labels(moved, volume)


def test_what_came_as_mgz_is_overlaid_too(tmp_path: Path) -> None:
    source = nib.load(write(tmp_path / "t1.nii.gz", head(), "LIA"))
    nib.save(nib.MGHImage(np.asarray(source.dataobj), source.affine), tmp_path / "t1.mgz")
    volume = prepare_volume(tmp_path / "t1.mgz", KEYS)
    write_like(tmp_path / "same.nii.gz", volume.data, volume, "x")
    same = nib.load(tmp_path / "same.nii.gz")
    assert same.shape == source.shape
    np.testing.assert_allclose(same.affine, source.affine, atol=1e-4)
    assert np.abs(world(tmp_path / "same.nii.gz") - centre(volume)).max() < 1e-3


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    volume = prepare_volume(write(tmp_path / "t1.nii.gz", head()), KEYS)
    for name in ("a", "b"):
        write_like(tmp_path / f"{name}.nii.gz", volume.data, volume, "x")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_real_brain_overlays_itself(oasis: Path, tmp_path: Path) -> None:
    path = sorted(oasis.glob("*/T1w/T1w_acpc_dc_restore_brain.nii.gz"))[0]
    keys = PrepareConfig(source="hcp", root="x").recorded()
    volume = prepare_volume(path, keys)
    write_like(tmp_path / "back.nii.gz", put_back(volume.slices.images[:, 0], volume), volume, "x")
    back = nib.load(tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(nib.load(path).affine, back.affine)
    one, two = (np.asarray(nib.load(p).dataobj).ravel() for p in (path, tmp_path / "back.nii.gz"))
    assert np.corrcoef(one, two)[0, 1] > 0.95
    assert np.abs(centre(volume) - world(tmp_path / "back.nii.gz")).max() < 1.6  # half a pixel
