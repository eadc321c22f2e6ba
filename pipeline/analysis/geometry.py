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
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from torch import Tensor

from data_prep.sources.simulated.marking import is_simulated
from pipeline.data.slices import SubjectEntry, to_scanner
from pipeline.data.volumes import read_values
from pipeline.errors import InputError
from pipeline.files import write_nifti

# Of the pixel size: further away, brains have another size than in the training.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Picture:
    """A slice in the decoder's grid and the way back to its file.

    image (H,W) float64; affine (4,4): (row, column, 0, 1) -> RAS mm; back: the axes' turn.
    """

    image: np.ndarray
    affine: np.ndarray
    back: np.ndarray
    simulated: bool


def read_picture(path: Path, orientation: str, spacing_mm: float) -> Picture:
    """Read a NIfTI file of one slice, turned to `orientation`.

    Args:
        path: the file.
        orientation: of the picture, such as "rows A>P, columns L>R".
        spacing_mm: the pixel size that it must have.

    Raises:
        InputError: the file can't be read to its end, gives no orientation, has several slices,
            values that are not finite, another plane, or another spacing.
    """
    values, affine = read_values(path, affine_needed=True)
    if min(values.shape) != 1:
        raise InputError(f"{path} must hold one slice, not {'x'.join(map(str, values.shape))}")
    stored, wanted = io_orientation(affine), axcodes2ornt(_axes(orientation))
    image = nib.Nifti1Image(values.astype(np.float64), affine)
    turned = image.as_reoriented(ornt_transform(stored, wanted))
    if turned.shape[2] != 1:
        raise InputError(f"{path} is a slice of another plane than the decoder's ({orientation})")
    spacing = np.linalg.norm(turned.affine[:3, :2], axis=0)
    if (abs(spacing / spacing_mm - 1) > TOLERANCE).any():
        raise InputError(
            f"{path} has pixels of {spacing[0]:.3g} x {spacing[1]:.3g} mm, and for this decoder "
            f"must have {spacing_mm:.3g} mm: resample it, or train on its spacing"
        )
    back = ornt_transform(wanted, stored)
    picture = np.asarray(turned.dataobj)[:, :, 0]
    return Picture(picture, turned.affine, back, is_simulated(nib.load(path)))


def _axes(orientation: str) -> tuple[str, str, str]:
    """The axis codes of rows, columns and slices: "rows A>P, columns L>R" -> P, R, S."""
    match = re.fullmatch(r"rows (.)>(.), columns (.)>(.)", orientation)
    if match is None:
        raise InputError(f"the decoder's pictures have no anatomical directions ({orientation!r})")
    slices = next(both[0] for both in ("RL", "AP", "SI") if not set(both) & set(match.groups()))
    return match[2], match[4], slices


def write_picture(path: Path, image: np.ndarray, affine: np.ndarray, like: Picture) -> None:
    """Write a picture (H,W) as .nii.gz in the axes of the file that `like` came from, atomically.

    affine: (4,4), (row, column, 0, 1) to RAS mm.
    """
    turned = nib.Nifti1Image(np.asarray(image, np.float64)[:, :, None], affine)
    stored = turned.as_reoriented(like.back)
    write_volume(path, np.asarray(stored.dataobj), stored.affine)


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write an array as .nii.gz, float32, with its affine as sform and qform (mm), atomically."""
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    write_nifti(path, image)


def write_stack(
    entry: SubjectEntry, places: Sequence[int], folder: Path, name: str, images: Tensor
) -> None:
    """Write slices of one subject of a store as NIfTI, over its volume and in the volume's unit.

    Where the store does not record that unit they are in [0,1]. Slices whose numbers are not evenly
    spaced become a file each.

    Args:
        entry: the subject.
        places: which of its slices they are.
        folder: of the file.
        name: of the file, without suffix; values of "deviation" are differences.
        images: (n,1,H,W) in [0,1].
    """
    affine, indices = np.asarray(entry.affine), [entry.slice_indices[place] for place in places]
    values = images[:, 0].permute(1, 2, 0).double().numpy()
    if (native := entry.volume) is not None and name == "deviation":
        values = values * (native.high - native.low)
    elif native is not None:
        values = to_scanner(values, native.low, native.high)
    together = stack_affine(affine, indices)
    if together is not None:
        write_volume(folder / f"{name}.nii.gz", values, together)
        return
    for number, index in enumerate(indices):
        alone = stack_affine(affine, [index])
        assert alone is not None
        write_volume(folder / f"{name}-slice-{index:03d}.nii.gz", values[:, :, [number]], alone)


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
