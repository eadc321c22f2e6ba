"""Slices as NIfTI files: read into the decoder's grid, written back with the affine they came with.

A decoder's picture has rows and columns of known direction ("rows A>P, columns L>R") and spacing;
a NIfTI slice may be stored in any order of axes. Results are turned back before they
are written, so that they lie over the input.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from pipeline.data.volumes import read_values
from pipeline.errors import InputError
from pipeline.files import write_nifti

# Of the pixel size: further away, brains have another size than in the training.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Picture:
    """A slice in the decoder's grid and the way back to its file.

    image (H,W) float64; affine (4,4): (row, column, 0, 1) -> RAS mm.
    """

    image: np.ndarray
    affine: np.ndarray
    back: np.ndarray
    source_shape: tuple[int, ...]


def read_picture(path: Path, orientation: str, spacing_mm: float | None) -> Picture:
    """Read a NIfTI file of one slice, turned to `orientation`.

    Args:
        path: the file.
        orientation: of the picture, such as "rows A>P, columns L>R".
        spacing_mm: the pixel size that it must have; None = any.

    Raises:
        InputError: the file can't be read to its end, gives no orientation, has several slices,
            values that are not finite, another plane, or another spacing.
    """
    read, affine = read_values(path, affine_needed=True)
    values = read.astype(np.float64)
    shape = values.shape
    if min(shape) != 1:
        raise InputError(f"{path} must hold one slice, not {'x'.join(map(str, shape))}")
    found = io_orientation(affine)
    turn = ornt_transform(found, axcodes2ornt(_axes(orientation)))
    turned = apply_orientation(values, turn)
    if turned.shape[2] != 1:
        raise InputError(f"{path} is a slice of another plane than the decoder's ({orientation})")
    moved = affine @ inv_ornt_aff(turn, values.shape)
    spacing = np.linalg.norm(moved[:3, :2], axis=0)
    if spacing_mm is not None and (abs(spacing / spacing_mm - 1) > TOLERANCE).any():
        raise InputError(
            f"{path} has pixels of {spacing[0]:.3g} x {spacing[1]:.3g} mm, the decoder draws "
            f"{spacing_mm:.3g} mm: resample it, or train on its spacing"
        )
    back = ornt_transform(axcodes2ornt(_axes(orientation)), found)
    return Picture(turned[:, :, 0], moved, back, shape)


def _axes(orientation: str) -> tuple[str, str, str]:
    """The axis codes of rows, columns and slices: "rows A>P, columns L>R" -> P, R, S."""
    match = re.fullmatch(r"rows (.)>(.), columns (.)>(.)", orientation)
    if match is None:
        raise InputError(f"the decoder's pictures have no anatomical directions ({orientation!r})")
    rows, columns = match[2], match[4]
    used = rows + columns
    slices = next(c for c, both in (("R", "RL"), ("A", "AP"), ("S", "SI"))
                  if not set(both) & set(used))  # fmt: skip
    return rows, columns, slices


def write_picture(path: Path, image: np.ndarray, affine: np.ndarray, like: Picture | None) -> None:
    """Write a picture as a NIfTI file, atomically.

    Args:
        path: ends in .nii.gz.
        image: (H,W).
        affine: (4,4), (row, column, 0, 1) to RAS mm.
        like: the file is written in the axes of the file that this came from; None = as it is.
    """
    values = np.asarray(image, np.float64)[:, :, None]
    if like is not None:
        stored = apply_orientation(values, like.back)
        affine = affine @ inv_ornt_aff(like.back, values.shape)
        if image.shape == like.image.shape:
            stored = stored.reshape(like.source_shape)
        values = stored
    write_volume(path, values, affine)


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write an array as .nii.gz, float32, with its affine as sform and qform (mm), atomically."""
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    write_nifti(path, image)


def stack_affine(affine: np.ndarray, indices: Sequence[int]) -> np.ndarray | None:
    """The affine of a stack of slices.

    Args:
        affine: (4,4) of a shard, (row, column, slice number, 1) to RAS mm.
        indices: the slices' numbers, ascending.

    Returns:
        (4,4), (row, column, place in the stack, 1) to RAS mm; None where the slices are not evenly
        spaced, as no affine describes such a stack.
    """
    steps = np.diff(indices)
    if len(steps) and (steps != steps[0]).any():
        return None
    step = int(steps[0]) if len(steps) else 1
    place = np.eye(4)
    place[2, 2], place[2, 3] = step, indices[0]
    return affine @ place


def finer_affine(affine: np.ndarray, factor: int) -> np.ndarray:
    """The affine of pixels `factor` times finer than those of a picture's affine."""
    place = np.diag([1 / factor, 1 / factor, 1.0, 1.0])
    place[:2, 3] = -(factor - 1) / (2 * factor)
    return affine @ place


def regular_choice(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` places, in equal steps about the middle; 0 = all."""
    if not limit or limit >= count:
        return list(range(count))
    step = max(1, count // limit)
    first = (count - 1 - (limit - 1) * step) // 2
    return [first + step * i for i in range(limit)]


def intensity_unit(image: np.ndarray, scale: float) -> float:
    """The value that becomes intensity 1.

    `scale`, or where it is 0 the 99.5th percentile of those |image| that exceed 5% of the largest.
    """
    size = np.abs(image)
    if scale or not size.max() > 0:
        return scale or 1.0
    return float(np.percentile(size[size > 0.05 * size.max()], 99.5))


def read_array(path: Path) -> np.ndarray:
    """A .npy file, or the values of a NIfTI file. Raises InputError where it can't be read."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return read_values(path, affine_needed=False)[0]
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, not a file") from error
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} can't be read ({str(error)[:120]})") from error
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path} is an archive of arrays: save one array as .npy (numpy.save)")
    return found
