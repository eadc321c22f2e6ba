"""Image file -> a volume on a canonical RAS grid, the brain mask, and the range of intensities."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from data_prep.config import PrepareConfig
from data_prep.errors import InputError, VolumeError
from data_prep.percentiles import percentiles
from data_prep.store import NativeVolume
from data_prep.verify import VerifiedVolume, read_verified


@dataclass(frozen=True)
class Volume:
    """A volume whose axes run to the right, to the front and up.

    data: (X, Y, Z) float32, intensities as they are in the file, or corrected by N4.
    mask: (X, Y, Z) bool, the brain. Both are views of what was read: nothing is moved in memory.
    affine: (4, 4) float64, voxel indices to RAS mm.
    spacing: (3,) float64, voxel size in mm.
    source_sha256: of the file's bytes.
    low, high: the intensities that become 0 and 1.
    flags: as VerifiedVolume.flags.
    native: what it was like on disk; None for one that never was.
    """

    data: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    spacing: np.ndarray
    source_sha256: str
    low: float = 0.0
    high: float = 1.0
    flags: tuple[str, ...] = ()
    native: NativeVolume | None = None

    def normalised(self, axis: int, number: int) -> np.ndarray:
        """Slice `number` across `axis`: float32 in [0, 1], exactly 0 outside the brain, C order."""
        place = (slice(None),) * axis + (number,)  # np.take would copy the whole volume
        return normalised(
            np.ascontiguousarray(self.data[place]), self.mask[place], self.low, self.high
        )


def load_volume(path: Path, mask_path: Path | None, config: PrepareConfig) -> Volume:
    """Read, check and reorient one subject's image, and find its range of intensities.

    The brain is where the mask file is above 0, or without one where the image is above 0, as in
    skull-stripped images. Reorientation swaps and flips axes only: no voxel is interpolated.

    Raises:
        VolumeError: as `read_verified`, and mask_shape, mask_position, no_brain, no_contrast.
        InputError: N4 is asked for and SimpleITK is absent.
    """
    verified = read_verified(path)
    data, affine = canonical(verified)
    mask = data > 0 if mask_path is None else read_mask(mask_path, verified)
    if not mask.any():
        raise VolumeError("no_brain", f"{path.name} has no voxel inside the brain")
    # The header holds float32: rounding keeps the last bits from telling orientations apart.
    spacing = np.round(nib.affines.voxel_sizes(affine), 5)
    if config.n4:
        data = n4_corrected(data, mask, spacing)
    low, high = percentiles(data, mask, [config.lower_percentile, config.upper_percentile])
    if not high > low:
        raise VolumeError(
            "no_contrast", f"{path.name} has one intensity, {low:g}, all over the brain"
        )
    return Volume(
        data,
        mask,
        affine,
        spacing,
        verified.sha256,
        low,
        high,
        verified.flags,
        _native(verified, low, high),
    )


def _native(volume: VerifiedVolume, low: float, high: float) -> NativeVolume:
    x, y, z = volume.data.shape
    dx, dy, dz = (round(float(s), 5) for s in nib.affines.voxel_sizes(volume.affine))
    code = "".join(nib.aff2axcodes(volume.affine))
    return NativeVolume((x, y, z), (dx, dy, dz), code, low, high)


def canonical(volume: VerifiedVolume) -> tuple[np.ndarray, np.ndarray]:
    """The data (X, Y, Z) with axes to the right, front and up, as a view, and its affine."""
    orientation = nib.io_orientation(volume.affine)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.data.shape)
    return nib.apply_orientation(volume.data, orientation), affine


def read_mask(path: Path, image: VerifiedVolume) -> np.ndarray:
    """The canonical bool mask (X, Y, Z) in `path`, true above 0, on the image's own grid.

    Raises:
        VolumeError: as `read_verified`, and mask_shape, mask_position where the grids differ.
    """
    mask = read_verified(path, constant_allowed=True)
    if mask.data.shape != image.data.shape:
        shapes = ["x".join(map(str, v.data.shape)) for v in (mask, image)]
        raise VolumeError(
            "mask_shape", f"{path.name} has the shape {shapes[0]}, its image {shapes[1]}"
        )
    if not np.allclose(mask.affine, image.affine, atol=1e-2):
        raise VolumeError("mask_position", f"{path.name} does not lie where its image does")
    return canonical(mask)[0] > 0


def normalised(data: np.ndarray, mask: np.ndarray, low: float, high: float) -> np.ndarray:
    """float32 intensities with `low` at 0 and `high` at 1, clipped, exactly 0 outside `mask`.

    The same numbers as MONAI's ScaleIntensityRange, whose import takes longer and more memory than
    an HCP volume does.
    """
    scaled = (data - np.float32(low)) / np.float32(high - low)
    return np.where(mask, np.clip(scaled, 0, 1, out=scaled), np.float32(0))


def require_n4() -> None:
    """Raise InputError where the optional package that does N4 is not installed."""
    if importlib.util.find_spec("SimpleITK") is None:
        raise InputError(
            "prepare.n4 needs the package SimpleITK: install the extra 'n4' or set prepare.n4 false"
        )


def n4_corrected(data: np.ndarray, mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The volume divided by its N4 bias field (Tustison 2010, doi 10.1109/TMI.2010.2046908).

    data (X, Y, Z) float32, mask (X, Y, Z) bool, spacing (3,) mm -> (X, Y, Z) float32. The field is
    smooth, so it is fitted on voxels of about 4 mm and evaluated on all.
    """
    require_n4()
    import SimpleITK as sitk

    def image_of(array: np.ndarray) -> "sitk.Image":
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetSpacing([float(s) for s in spacing])
        return image

    # N4 works on logarithms: what is not above zero cannot take part.
    whole, inside = image_of(data), image_of((mask & (data > 0)).astype(np.uint8))
    factors = [max(1, min(round(4 / s), n // 8)) for s, n in zip(spacing, data.shape, strict=True)]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(sitk.Shrink(whole, factors), sitk.Shrink(inside, factors))
    field = sitk.GetArrayFromImage(sitk.Exp(n4.GetLogBiasFieldAsImage(whole)))
    return (data / np.maximum(field.transpose(2, 1, 0), 1e-3)).astype(np.float32)
