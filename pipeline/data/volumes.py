"""A NIfTI volume as a trained model wants to see it, and results back in the volume's own space."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from data_prep import PLANES, PrepareConfig, Slices, read_verified
from data_prep.common.errors import VolumeError
from data_prep.config import TRANSFORM_VERSION
from data_prep.sources.simulated import MARK, is_simulated
from data_prep.volume.plausibility import words_of
from data_prep.volume.verify import ANYWHERE, on_axes_of
from pipeline.errors import InputError
from pipeline.files import write_nifti

# Keys of the preparation that decide an image's pixels; all others choose subjects and slices.
PIXEL_KEYS = ("plane", "size", "spacing_mm", "lower_percentile", "upper_percentile", "n4")

# Decide the pixels, too, though no key of the configuration.
VERSION = "transform_version"

# Less of the brain than this on the pixel grid is another field of view than the model's: often a
# header in other units.
LEAST_COVERED = 0.9


@dataclass(frozen=True)
class PreparedVolume:
    """A volume cut as a store's were, but into every slice that shows brain.

    path: the file; shape, storage: of its voxels as stored, and (4, 4) to RAS mm; stored: the file
    as nibabel has it, its header alone read.
    data: (X, Y, Z) float32 in [0, 1] on the canonical RAS grid; brain: (X, Y, Z) bool, the mask
    with its holes filled; affine: (4, 4) of that grid, to RAS mm.
    slices: images (n, 1, H, W) float32 in [0, 1], their numbers and affine.
    low, high: the file's intensities that became 0 and 1 (after N4, where it was asked for).
    odd: what is odd about the file though it is usable, in words.
    plane: "axial", "coronal" or "sagittal"; like_training: (n,) bool, slices with as much brain
    as those that the store took.
    """

    path: Path
    shape: tuple[int, int, int]
    storage: np.ndarray
    data: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    slices: Slices
    plane: str
    like_training: np.ndarray
    sha256: str
    low: float
    high: float
    stored: Any
    odd: tuple[str, ...] = ()

    @property
    def simulated(self) -> bool:
        """Whether the file's header says that this is a simulated person."""
        return is_simulated(self.stored)

    def in_pixel_axes(self, volume: np.ndarray) -> np.ndarray:
        """(X, Y, Z) on the canonical grid -> a view (slice, row, column), the slices' way up."""
        return volume.transpose(PLANES[self.plane])[:, ::-1]


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys in which two preparations differ, so that one file would have other pixels in each."""
    return [key for key in (*PIXEL_KEYS, VERSION) if one.get(key) != other.get(key)]


def prepare_volume(
    path: Path,
    keys: Mapping[str, Any],
    mask: Path | None = None,
    *,
    assume_orientation: str = "",
) -> PreparedVolume:
    """Read, check, normalise and cut one NIfTI file.

    keys: the preparation that a store records. mask: brain mask on the image's grid; without one
    the brain is where the image is above 0. assume_orientation: where the axes of a file run to
    whose header does not say, such as "LAS". Raises InputError, in one line, for all that is wrong
    with the files, and for a store that was not cut from volumes.
    """
    from data_prep import load_volume  # MONAI's import takes seconds

    config = _config(keys, assume_orientation)
    stored = _header_of(path)
    try:
        volume = load_volume(path, mask, config)
        slices = volume.slices(config)
    except VolumeError as error:
        raise InputError(str(error)) from error
    if stored is None:
        raise InputError(f"{path.name} has a header that nibabel can't read: convert it again")
    areas = volume.mask.transpose(PLANES[config.plane]).sum(axis=(1, 2))
    prepared = PreparedVolume(
        path,
        volume.scan.shape,
        volume.scan.affine,
        volume.data,
        # Ventricles can hold values of 0 or, after resampling, below: they are inside the head.
        ndimage.binary_fill_holes(volume.mask),
        volume.affine,
        slices,
        config.plane,
        areas[list(slices.indices)] >= float(keys["min_brain_area"]) * areas.max(),
        volume.scan.sha256,
        volume.scan.intensity["low"],
        volume.scan.intensity["high"],
        stored,
        tuple(map(words_of, volume.scan.flags)),
    )
    covered = float(seen(prepared)[prepared.brain].mean())
    if covered < LEAST_COVERED:
        raise InputError(
            f"{path.name}: only {covered:.0%} of the brain fits the model's field of view of "
            f"{config.size * config.spacing_mm:g} mm: is the voxel size in the header right?"
        )
    return prepared


def _config(keys: Mapping[str, Any], assume_orientation: str) -> PrepareConfig:
    if not {*PIXEL_KEYS, "min_brain_area"} <= keys.keys():
        raise InputError("the decoder package was not trained on slices of volumes")
    if keys.get(VERSION) != TRANSFORM_VERSION:
        raise InputError(
            f"the decoder package's images were prepared by transform version "
            f"{keys.get(VERSION)}, this program has {TRANSFORM_VERSION}: train again"
        )
    tiny = 1e-9  # every slice, and each that shows any brain
    try:
        return PrepareConfig(
            **{key: keys[key] for key in PIXEL_KEYS},
            source="hcp",
            assume_orientation=assume_orientation,
            slice_spacing_mm=tiny,
            min_brain_area=tiny,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def read_values(path: Path, *, affine_needed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Values (X, Y, Z) float32 and affine (4, 4) of a volume or a single slice, read to the end.

    Args:
        path: of a NIfTI or MGH file.
        affine_needed: whether a header without an affine is refused.

    Raises:
        InputError: the file is damaged, or gives no orientation.
    """
    assumed = "" if affine_needed else ANYWHERE
    try:
        found = read_verified(
            path, constant_allowed=True, flat_allowed=True, assume_orientation=assumed
        )
    except VolumeError as error:
        raise InputError(str(error)) from error
    return found.data, found.affine


def read_on_grid_of(path: Path, other: Path) -> np.ndarray:
    """Values (X, Y, Z) of a volume, its axes swapped and flipped to run as those of another file.

    Raises InputError as `read_values`, and where the two lie more than 0.01 mm apart.
    """
    (values, affine), (_, there) = (read_values(p, affine_needed=False) for p in (path, other))
    turned, place = on_axes_of(values, affine, there)
    if not np.allclose(place, there, atol=1e-2):
        raise InputError(
            f"{path} does not lie where {other} does, by their affines: resample it to that grid, "
            "or give it that affine"
        )
    return turned


def _header_of(path: Path) -> Any:
    """The file as nibabel has it, no voxel read; None where nibabel can't read its header."""
    try:
        return nib.load(path)
    except Exception:  # `read_verified` has the best message for what is wrong with the file
        return None


def read_labels(path: Path, image: PreparedVolume, assume_orientation: str = "") -> np.ndarray:
    """A mask on the image's own grid -> (X, Y, Z) bool on its canonical one.

    True where a mask with one value above 0 has it; from 0.5 on in one with several. Raises
    InputError, in one line, for a damaged file and a mask of another shape or place.
    """
    from data_prep import read_mask  # MONAI's import takes seconds

    try:
        return read_mask(path, image.shape, image.storage, assume_orientation=assume_orientation)
    except VolumeError as error:
        raise InputError(str(error)) from error


def put_back(fields: np.ndarray, volume: PreparedVolume) -> np.ndarray:
    """Values on the slices' pixels -> the canonical voxel grid, linearly, 0 where none are.

    fields (n, H, W) -> (X, Y, Z) float32. Slices are native ones: nothing is interpolated between
    them. Raises ValueError where the fields are not of the slices' shape.
    """
    images = volume.slices.images
    if fields.shape != (images.shape[0], *images.shape[2:]):
        raise ValueError(f"fields {fields.shape} for slices {images.shape}")
    slice_axis, row_axis, column_axis = PLANES[volume.plane]
    to_pixel = np.linalg.inv(volume.slices.affine) @ volume.affine
    step = np.array([to_pixel[0, row_axis], to_pixel[1, column_axis]])
    found = np.zeros(volume.data.shape, np.float32)
    planes = found.transpose(slice_axis, row_axis, column_axis)  # a view: filling it fills found
    for index, field in zip(volume.slices.indices, fields, strict=True):
        planes[index] = ndimage.affine_transform(
            field.astype(np.float32),
            step,
            to_pixel[:2, 3],
            planes.shape[1:],
            order=1,
            mode="grid-constant",
        )
    return found


def seen(volume: PreparedVolume) -> np.ndarray:
    """Which voxels of the canonical grid the slices show: (X, Y, Z) bool."""
    return put_back(np.ones_like(volume.slices.images[:, 0]), volume) > 0.5


def in_storage_order(data: np.ndarray, storage: np.ndarray) -> np.ndarray:
    """Undo the canonical reorientation: (X, Y, Z) right, front, up -> axes of affine `storage`."""
    canonical = np.array([[0, 1], [1, 1], [2, 1]])
    back = nib.orientations.ornt_transform(canonical, nib.io_orientation(storage))
    return np.asarray(nib.orientations.apply_orientation(data, back))


def write_like(path: Path, data: np.ndarray, image: PreparedVolume, description: str) -> None:
    """Write values on the canonical grid as a .nii.gz that overlays the image in its own space.

    data (X, Y, Z), written as float32 in the image's own shape, axis order and header. The same
    values give the same bytes, and the file is there whole or not at all. The description of a
    simulated person's begins with SIMULATED, as that of the image does.
    """
    like = image.stored
    description = f"{MARK}: {description}" if image.simulated else description
    single = isinstance(like, nib.Nifti1Image)  # an MGH file's header has no such fields
    bare = single and int(like.header["sform_code"]) == int(like.header["qform_code"]) == 0
    if not single or bare:  # of an assumed orientation the result says what was assumed
        like = nib.Nifti1Image(np.empty(like.shape, np.float32), image.storage)
        like.header.set_xyzt_units("mm")
    header = like.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, float(np.quantile(data[image.brain], 0.999))
    header["descrip"] = description.encode()[:79]
    stored = in_storage_order(data.astype(np.float32), image.storage).reshape(like.shape)
    write_nifti(path, type(like)(stored, like.affine, header))
