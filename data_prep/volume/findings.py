"""Measures of a brain that plausibility.py has expectations of."""

from collections.abc import Mapping

import nibabel as nib
import numpy as np

from data_prep.volume.mask_shape import MaskShape

# Rounded to this many digits: what is recorded must not depend on a processor's last bits.
DIGITS = 4


def findings(
    shape: MaskShape, affine: np.ndarray, native: np.ndarray, intensity: Mapping[str, float]
) -> dict[str, float]:
    """What the table's rows are about, by their names.

    shape: of the brain on the canonical grid, and its affine (4, 4), to RAS mm. native: (4, 4) of
    the axes as stored. intensity: low, high, mean and saturated (a share) in the brain.
    """
    counts = [len(area) for area in shape.areas]
    brain = int(shape.areas[0].sum())
    sides = nib.affines.voxel_sizes(affine)
    voxels = np.array([last - first + 1 for first, last in shape.bounds])
    width, length, height = voxels * sides
    axes = native[:3, :3] / np.linalg.norm(native[:3, :3], axis=0)
    between = [abs(float(axes[:, i] @ axes[:, j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    low, high = intensity["low"], intensity["high"]
    found = {
        "brain_ml": brain * abs(float(np.linalg.det(affine[:3, :3]))) / 1000,
        "width_mm": width,
        "length_mm": length,
        "height_mm": height,
        "cut_off_percent": 100 * max(max(a[0], a[-1]) / a.max() for a in shape.areas),
        "largest_piece_percent": 100 * shape.largest / brain,
        "filled_percent": 100 * shape.largest / float(np.prod(voxels)),
        "box_percent": 100 * brain / float(np.prod(counts)),
        "mean_percent": 100 * (intensity["mean"] - low) / (high - low),
        "saturated_percent": 100 * intensity["saturated"],
        "oblique_degrees": _degrees(nib.affines.obliquity(native).max()),
        "shear_degrees": _degrees(np.arcsin(min(1.0, max(between)))),
    }
    return {name: _rounded(float(value)) for name, value in found.items()}


def _degrees(radians: float) -> float:
    """To a hundredth: an affine in float32 is off by less."""
    return round(float(np.degrees(radians)), 2)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
