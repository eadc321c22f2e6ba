"""Volume -> slices on a square pixel grid of known physical size.

Slices are shown in neurological convention: the patient's left is at the left of the picture.

| plane    | rows, top to bottom    | columns, left to right |
|----------|------------------------|------------------------|
| axial    | anterior to posterior  | left to right          |
| coronal  | superior to inferior   | left to right          |
| sagittal | superior to inferior   | posterior to anterior  |
"""

from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from scipy import ndimage

from data_prep.common.errors import VolumeError
from data_prep.config import PrepareConfig
from data_prep.volume.brain import MaskShape, mask_shape
from data_prep.volume.plausibility import BLACK_SLICES

# Per plane: the RAS axis of slices, of rows and of columns. Rows run against their axis.
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}

# The same in words, for the manifest.
ORIENTATIONS = {
    "axial": "rows A>P, columns L>R",
    "coronal": "rows S>I, columns L>R",
    "sagittal": "rows S>I, columns P>A",
}

# A brain smaller than this share of the grid's side is another field of view than a brain's: mostly
# a header in other units.
LEAST_EXTENT = 0.25

# The smallest intensity that the store's 16 bits tell from 0.
LEAST_INTENSITY = 0.5 / 65535


@dataclass(frozen=True)
class Slices:
    """Slices of one subject.

    images: (n, 1, size, size) float32 in [0, 1].
    indices: n slice numbers along the canonical volume's slice axis, ascending.
    affine: (4, 4) float64, (row, column, slice number, 1) to RAS mm.
    cropped: whether part of the brain lies outside the pixel grid.
    flags: BLACK_SLICES where some show nothing.
    """

    images: np.ndarray
    indices: tuple[int, ...]
    affine: np.ndarray
    cropped: bool
    flags: tuple[str, ...] = ()


def choose_slices(
    areas: np.ndarray, voxel_mm: float, slice_spacing_mm: float, min_area: float, limit: int
) -> tuple[int, ...]:
    """Slice numbers, ascending, that show enough brain, about `slice_spacing_mm` apart.

    areas: (S,) brain area per slice in any unit; a slice counts from `min_area` times the largest.
    limit: most slices, evenly thinned; 0 means all. Native slices are taken, never interpolated.
    """
    eligible = np.flatnonzero(areas >= min_area * areas.max())
    step = max(1, round(slice_spacing_mm / voxel_mm))
    # Counted from the middle, so that both ends are treated alike.
    chosen = eligible[(eligible - eligible[len(eligible) // 2]) % step == 0]
    if limit and len(chosen) > limit:
        positions = (np.arange(limit) + 0.5) * len(chosen) / limit
        chosen = chosen[positions.astype(int)]
    return tuple(int(i) for i in chosen)


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Voxel size along each axis, (3,) mm.

    The header holds float32: rounding keeps the last bits from telling orientations apart.
    """
    return np.round(nib.affines.voxel_sizes(affine), 5)


def checked_slices(
    data: np.ndarray, shape: MaskShape, affine: np.ndarray, config: PrepareConfig, name: str
) -> Slices:
    """`cut_slices` of the volume `name`, and something to be seen in them.

    Raises:
        VolumeError: too_small, a brain under a quarter of the grid's side; black, no slice with
            anything above 0.
    """
    bounds = zip(shape.bounds, voxel_sizes(affine), strict=True)
    size = max((last - first + 1) * side for (first, last), side in bounds)
    side = config.size * config.spacing_mm
    if size < LEAST_EXTENT * side:
        raise VolumeError(
            "too_small",
            f"{name}: the brain is only {size:.3g} mm long, in a field of view of {side:g} "
            "mm: is this an image of a brain, and the voxel size in the header right?",
        )
    cut = cut_slices(data, shape, affine, config)
    shown = cut.images.max(axis=(1, 2, 3)) > LEAST_INTENSITY
    if not shown.any():
        raise VolumeError("black", f"{name}: not one slice shows anything: is its mask right?")
    if shown.all():
        return cut
    black = [index for index, seen in zip(cut.indices, shown, strict=True) if not seen]
    words = f"{len(black)} of its {len(shown)} slices are black, the first {black[0]}"
    return replace(cut, flags=(f"{BLACK_SLICES}: {words}",))


def cut_slices(
    data: np.ndarray, mask: np.ndarray | MaskShape, affine: np.ndarray, config: PrepareConfig
) -> Slices:
    """Cut, crop or pad, and resample slices of `config.size` pixels of `config.spacing_mm`.

    data: (X, Y, Z) float32 in [0, 1], 0 outside the brain, with axes to the right, to the front and
    up. mask: (X, Y, Z) bool, the brain, or its shape. affine: (4, 4), voxel indices to RAS mm.

    The grid is centred on the bounding box of the brain's largest piece, and its extent is
    size x spacing in mm, so a voxel's size decides where it lands and the array's shape never
    does. Before pixels grow, a Gaussian of (factor - 1) / 2 voxels takes away what they cannot
    carry (the choice of skimage.transform.resize); then linear interpolation, with zeros beyond
    the volume.
    """
    shape = mask if isinstance(mask, MaskShape) else mask_shape(mask)
    slice_axis, row_axis, column_axis = PLANES[config.plane]
    spacing = voxel_sizes(affine)
    indices = choose_slices(
        shape.areas[slice_axis],
        float(spacing[slice_axis]),
        config.slice_spacing_mm,
        config.min_brain_area,
        config.max_slices,
    )
    # Of the largest piece: specks that skull stripping left must not shift the picture.
    bounds = [shape.bounds[axis] for axis in (row_axis, column_axis)]
    centre = np.array([(low + high) / 2 for low, high in bounds])
    extent = np.array([high - low + 1 for low, high in bounds])
    factor = config.spacing_mm / spacing[[row_axis, column_axis]]

    # Pixel (i, j) lies at voxel  start + step * (i, j): rows run against their axis.
    step = factor * [-1, 1]
    start = centre - step * (config.size - 1) / 2
    sigma = np.maximum(0, (factor - 1) / 2)
    images = np.empty((len(indices), 1, config.size, config.size), np.float32)
    for image, number in zip(images, indices, strict=True):
        plane = data[(slice(None),) * slice_axis + (number,)]
        plane = np.ascontiguousarray(plane.T if row_axis > column_axis else plane)
        smooth = ndimage.gaussian_filter(plane, sigma, mode="constant")
        ndimage.affine_transform(
            smooth, step, start, image.shape[1:], output=image[0], order=1, mode="grid-constant"
        )

    to_voxel = np.zeros((4, 4))
    to_voxel[row_axis, [0, 3]] = step[0], start[0]
    to_voxel[column_axis, [1, 3]] = step[1], start[1]
    to_voxel[slice_axis, 2] = to_voxel[3, 3] = 1
    return Slices(
        np.clip(images, 0, 1),
        indices,
        affine @ to_voxel,
        bool((extent > config.size * factor + 1e-6).any()),
    )
