"""Slices as NIfTI: whatever axes a file has, what is written lies over what was read."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_prep.store import Store
from pipeline.analysis.geometry import (
    finer_affine,
    read_array,
    read_picture,
    regular_choice,
    write_picture,
    write_stack,
)
from pipeline.errors import InputError

ORIENTATION = "rows A>P, columns L>R"
# A store's affine, its rows to the back, its columns to the right.
AFFINE = np.array([[0, 3.2, 0, -90], [-3.2, 0, 0, 80], [0, 0, 1, -20], [0, 0, 0, 1]], float)


def _write(path: Path, codes: str, shape: tuple[int, int] = (12, 10)) -> np.ndarray:
    """The same slice stored in other axes; what RAS position has which value is the same."""
    picture = np.arange(shape[0] * shape[1], dtype=float).reshape(*shape, 1)
    image = nib.Nifti1Image(picture, AFFINE)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(codes))
    )
    nib.save(image.as_reoriented(turn), path)
    return picture[:, :, 0]


@pytest.mark.parametrize("codes", ["PRS", "RAS", "LPS", "ARI", "SRA", "PSL"])
def test_read_and_written_back_it_is_the_same_file(tmp_path: Path, codes: str) -> None:
    picture = _write(tmp_path / "in.nii.gz", codes)
    read = read_picture(tmp_path / "in.nii.gz", ORIENTATION, 3.2)
    np.testing.assert_array_equal(read.image, picture)
    np.testing.assert_allclose(read.affine, AFFINE)
    write_picture(tmp_path / "out.nii.gz", read.image, read.affine, read)
    before, after = (nib.load(tmp_path / name) for name in ("in.nii.gz", "out.nii.gz"))
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    np.testing.assert_allclose(after.get_fdata(), before.get_fdata(), atol=1e-4)


def test_finer_pixels_fill_the_same_field_of_view(tmp_path: Path) -> None:
    """Both files' outer corners are at the same millimetre."""
    _write(tmp_path / "in.nii.gz", "RAS")
    read = read_picture(tmp_path / "in.nii.gz", ORIENTATION, 3.2)
    fine = np.repeat(np.repeat(read.image, 2, axis=0), 2, axis=1)
    write_picture(tmp_path / "out.nii.gz", fine, finer_affine(read.affine, 2), read)
    corners = []
    for name in ("in.nii.gz", "out.nii.gz"):
        image = nib.load(tmp_path / name)
        ends = np.array([[-0.5] * 3, [n - 0.5 for n in image.shape]])
        corners.append(nib.affines.apply_affine(image.affine, ends))
    np.testing.assert_allclose(corners[0], corners[1], atol=1e-4)


def test_slices_that_are_not_evenly_spaced_are_a_file_each(
    tmp_path: Path, tiny_store: Store
) -> None:
    entry = replace(tiny_store.subjects()[0], slice_indices=(40, 44, 49), affine=AFFINE.tolist())
    write_stack(entry, [0, 1], tmp_path, "even", torch.rand(2, 1, 5, 6))
    write_stack(entry, [0, 1, 2], tmp_path, "odd", torch.rand(3, 1, 5, 6))
    names = ["even.nii.gz", "odd-slice-040.nii.gz", "odd-slice-044.nii.gz", "odd-slice-049.nii.gz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name, place, index in (("even", 1, 44), ("odd-slice-049", 0, 49)):
        found = nib.load(tmp_path / f"{name}.nii.gz").affine @ [3, 5, place, 1]
        np.testing.assert_allclose(found, AFFINE @ [3, 5, index, 1], atol=1e-5)


@pytest.mark.parametrize(("count", "limit"), [(40, 4), (39, 3), (7, 5), (5, 5), (3, 8), (9, 0)])
def test_chosen_slices_are_evenly_spaced(count: int, limit: int) -> None:
    places = regular_choice(count, limit)
    assert len(places) == (min(count, limit) if limit else count)
    assert places[0] >= 0 and places[-1] < count
    assert len(set(np.diff(places))) <= 1


def test_files_that_are_no_slice(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"

    def said(spacing: float = 3.2) -> str:
        with pytest.raises(InputError) as error:
            read_picture(path, ORIENTATION, spacing)
        return str(error.value)

    assert "is not there" in said()
    path.write_bytes(b"no image")
    assert "not compressed" in said()
    nib.save(nib.Nifti1Image(np.ones((4, 4, 2)), AFFINE), path)
    assert "one slice" in said()
    nib.save(nib.Nifti1Image(np.full((4, 4, 1), np.nan), AFFINE), path)
    assert "NaN" in said()
    _write(path, "PRS")
    assert "3.2 x 3.2 mm" in said(1.0)
    nib.save(nib.Nifti1Image(np.ones((1, 4, 4)), np.diag([3.2, 3.2, 3.2, 1])), path)
    assert "another plane" in said()
    path.unlink()
    path.mkdir()
    assert "is a folder" in said()


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7, 0.9])
def test_a_damaged_byte_is_never_read_in_silence(tmp_path: Path, place: float) -> None:
    path = tmp_path / "x.nii.gz"
    _write(path, "PRS")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_picture(path, ORIENTATION, 3.2)
    with pytest.raises(InputError):
        read_array(path)


def test_files_that_are_no_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"

    def said() -> str:
        with pytest.raises(InputError) as error:
            read_array(path)
        return str(error.value)

    assert "there is no file" in said()
    path.write_bytes(b"PK\x03\x04 no archive")
    assert "can't be read" in said()
    with path.open("wb") as stream:
        np.savez(stream, x=np.ones(2))
    assert "numpy.save" in said()
    path.unlink()
    path.mkdir()
    assert "is a folder" in said()
