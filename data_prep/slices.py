"""Volume -> slices on a square pixel grid of known physical size.

Slices are shown in neurological convention: the patient's left is at the left of the picture.

| plane    | rows, top to bottom    | columns, left to right |
|----------|------------------------|------------------------|
| axial    | anterior to posterior  | left to right          |
| coronal  | superior to inferior   | left to right          |
| sagittal | superior to inferior   | posterior to anterior  |
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data_prep.config import PrepareConfig
from data_prep.mask_shape import mask_shape
from data_prep.volume import Volume

# Per plane: the RAS axis of slices, of rows and of columns. Rows run against their axis.
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}

# What the manifest says about the direction of rows and columns.
ORIENTATIONS = {
    "axial": "rows A>P, columns L>R",
    "coronal": "rows S>I, columns L>R",
    "sagittal": "rows S>I, columns P>A",
}


@dataclass(frozen=True)
class Slices:
    """Slices of one subject.

    images: (n, 1, size, size) float32 in [0, 1].
    indices: n slice numbers along the canonical volume's slice axis, ascending.
    affine: (4, 4) float64, (row, column, slice number, 1) to RAS mm.
    cropped: whether part of the brain lies outside the pixel grid.
    """

    images: np.ndarray
    indices: tuple[int, ...]
    affine: np.ndarray
    cropped: bool


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


def cut_slices(volume: Volume, config: PrepareConfig) -> Slices:
    """Cut, crop or pad, and resample slices of `config.size` pixels of `config.spacing_mm`.

    The grid is centred on the bounding box of the brain's largest piece, and its extent is
    size x spacing in mm, so a voxel's size decides where it lands and the array's shape never
    does. Before pixels grow, a Gaussian of (factor - 1) / 2 voxels takes away what they cannot
    carry (the choice of skimage.transform.resize); then linear interpolation, with zeros beyond
    the volume.
    """
    slice_axis, row_axis, column_axis = PLANES[config.plane]
    shape = mask_shape(volume.mask)
    indices = choose_slices(
        shape.areas[slice_axis],
        float(volume.spacing[slice_axis]),
        config.slice_spacing_mm,
        config.min_brain_area,
        config.max_slices,
    )
    # Of the largest piece: specks that skull stripping left must not shift the picture.
    bounds = [shape.bounds[axis] for axis in (row_axis, column_axis)]
    centre = np.array([(low + high) / 2 for low, high in bounds])
    extent = np.array([high - low + 1 for low, high in bounds])
    factor = config.spacing_mm / volume.spacing[[row_axis, column_axis]]

    # Pixel (i, j) lies at voxel  start + step * (i, j): rows run against their axis.
    step = factor * [-1, 1]
    start = centre - step * (config.size - 1) / 2
    sigma = np.maximum(0, (factor - 1) / 2)
    images = np.empty((len(indices), 1, config.size, config.size), np.float32)
    for image, number in zip(images, indices, strict=True):
        plane = volume.normalised(slice_axis, number)
        if row_axis > column_axis:
            plane = np.ascontiguousarray(plane.T)
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
        volume.affine @ to_voxel,
        bool((extent > config.size * factor + 1e-6).any()),
    )
