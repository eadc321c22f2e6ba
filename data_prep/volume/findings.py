"""Measures of a brain: its shape, and what plausibility.py has expectations of."""

from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class MaskShape:
    """areas: per axis the voxels of each slice across it, int64.

    bounds: per axis the first and last slice of the largest face-connected piece; of pieces of one
    size the one that comes first in C order. largest: voxels of that piece.
    """

    areas: tuple[np.ndarray, ...]
    bounds: tuple[tuple[int, int], ...]
    largest: int


def mask_shape(mask: np.ndarray) -> MaskShape:
    """Areas and bounds of a non-empty (X, Y, Z) bool mask."""
    rows = mask.sum(axis=2)  # (X, Y)
    areas = (rows.sum(axis=1), rows.sum(axis=0), mask.sum(axis=(0, 1)))
    box = tuple(slice(n.min(), n.max() + 1) for n in map(np.flatnonzero, areas))
    labels, _ = ndimage.label(mask[box])
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    pieces = ndimage.find_objects(labels)[sizes.argmax() - 1]
    bounds = tuple(
        (whole.start + part.start, whole.start + part.stop - 1)
        for whole, part in zip(box, pieces, strict=True)
    )
    return MaskShape(areas, bounds, int(sizes.max()))


def findings(
    shape: MaskShape, affine: np.ndarray, native: np.ndarray, intensity: Mapping[str, float]
) -> dict[str, float]:
    """What the table's rows are about, by their names, to four digits: what is recorded must not
    depend on a processor's last bits.

    shape: of the brain on the canonical grid, and its affine (4, 4), to RAS mm. native: (4, 4) of
    the axes as stored. intensity: low, high, mean and saturated (a share) in the brain.
    """
    brain = int(shape.areas[0].sum())
    voxels = np.array([last - first + 1 for first, last in shape.bounds])
    width, length, height = voxels * nib.affines.voxel_sizes(affine)
    axes = native[:3, :3] / np.linalg.norm(native[:3, :3], axis=0)
    between = max(abs(float(axes[:, i] @ axes[:, j])) for i, j in ((0, 1), (0, 2), (1, 2)))
    low, high = intensity["low"], intensity["high"]
    found = {
        "brain_ml": brain * abs(float(np.linalg.det(affine[:3, :3]))) / 1000,
        "width_mm": width,
        "length_mm": length,
        "height_mm": height,
        "cut_off_percent": 100 * max(max(a[0], a[-1]) / a.max() for a in shape.areas),
        "largest_piece_percent": 100 * shape.largest / brain,
        "filled_percent": 100 * shape.largest / float(np.prod(voxels)),
        "box_percent": 100 * brain / float(np.prod([len(area) for area in shape.areas])),
        "mean_percent": 100 * (intensity["mean"] - low) / (high - low),
        "saturated_percent": 100 * intensity["saturated"],
        # To a hundredth: an affine in float32 is off by less.
        "oblique_degrees": round(float(np.degrees(nib.affines.obliquity(native).max())), 2),
        "shear_degrees": round(float(np.degrees(np.arcsin(min(1.0, between)))), 2),
    }
    return {name: float(f"{value:.4g}") for name, value in found.items()}
