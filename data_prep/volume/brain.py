"""Which voxels are brain, of an image without a mask or of a mask, and the brain's measures."""

from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from data_prep.volume.plausibility import BACKGROUND, MASK_VALUES

# A background is a value that so many of the eight corners and this share of the six faces have.
CORNERS, FACES = 4, 0.5

# With this share of the values other than the background's below it, intensities lie around it:
# standardised ones have 40 to 60%; what resampling leaves below 0 is under 1% (measured: 0.4%).
BELOW = 1 / 3

# With this share of zeros, 0 is a background, too, beside a rim of another value.
ZEROS = 0.25


def brain_of_image(image: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The brain in a skull-stripped image (X, Y, Z), bool, and flags that say what is odd.

    That is where it is above 0. Where its background is another constant, above that; and
    where intensities lie on both sides of the background, where they differ from it.
    """
    ground = background(image)
    if ground is None or (ground == 0 and image.min() >= 0):
        return image > 0, ()
    below, above = int((image < ground).sum()), int((image > ground).sum())
    zeros = int((image == 0).sum()) >= ZEROS * max(below + above, 1)
    around = below >= BELOW * max(below + above, 1)
    if (ground == 0 and not around) or (ground < 0 and zeros):
        return image > 0, ()
    if around:
        words = (
            f"{below / (below + above):.0%} of its values lie below the background's {ground:g}"
            " (standardised?): brain is where they differ from it"
        )
        return image != ground, (f"{BACKGROUND}: {words}",)
    words = f"its background is {ground:g}, not 0: brain is what lies above it"
    return image > ground, (f"{BACKGROUND}: {words}",)


def background(image: np.ndarray) -> float | None:
    """The value that most of the outer faces of an image (X, Y, Z) have, or None."""
    values, counts = np.unique(image[np.ix_(*[(0, -1)] * 3)], return_counts=True)
    sides = [np.moveaxis(image, axis, 0) for axis in range(3)]
    rim = np.concatenate([side[end].ravel() for side in sides for end in (0, -1)])
    shares = {float(value): (rim == value).mean() for value in values[counts >= CORNERS]}
    best = max(shares, key=lambda value: shares[value], default=None)
    return best if best is not None and shares[best] >= FACES else None


def brain_of_mask(mask: np.ndarray, threshold: float) -> tuple[np.ndarray, tuple[str, ...]]:
    """The brain by a mask (X, Y, Z), bool, and flags that say what is odd.

    A mask with one value above 0 means that value, whatever it is. One with several may hold
    probabilities: brain is from `threshold` on.
    """
    largest, inside = float(mask.max()), mask > 0
    if not (inside & (mask != largest)).any():
        return inside, ()
    words = (
        f"{MASK_VALUES}: its mask holds several values, up to {largest:g}: brain is from"
        f" {threshold:g} on (prepare.mask_threshold)"
    )
    if threshold < 1 < largest:
        words += f"; if they are no labels but probabilities, set it to {largest / 2:g}"
    return mask >= threshold, (words,)


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
    """The measures that plausibility.py has expectations of, by its rows, to four digits: what is
    recorded must not depend on a processor's last bits.

    shape: of the brain on the canonical grid, and its affine (4, 4), to RAS mm. native: (4, 4) of
    the axes as stored. intensity: low, high, mean and saturated (a share) in the brain.
    """
    brain = int(shape.areas[0].sum())
    voxels = np.array([last - first + 1 for first, last in shape.bounds])
    width, length, height = voxels * nib.affines.voxel_sizes(affine)
    axes = native[:3, :3] / np.linalg.norm(native[:3, :3], axis=0)
    between = max(abs(float(axes[:, i] @ axes[:, j])) for i, j in ((0, 1), (0, 2), (1, 2)))
    low, high = intensity["low"], intensity["high"]
    measured = {
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
    return {name: float(f"{value:.4g}") for name, value in measured.items()}
