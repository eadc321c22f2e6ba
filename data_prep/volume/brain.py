"""Which voxels are brain: of an image without a mask, and of a mask that may hold probabilities."""

import torch
from torch import Tensor

from data_prep.flags import BACKGROUND, MASK_VALUES, flag

# A background is a value that so many of the eight corners and this share of the six faces have.
CORNERS, FACES = 4, 0.5

# With this share of the values other than the background's below it, intensities lie around it:
# standardised ones have 40 to 60%; what resampling leaves below 0 is under 1% (measured: 0.4%).
BELOW = 1 / 3

# With this share of zeros, 0 is a background, too, beside a rim of another value.
ZEROS = 0.25


def brain_of_image(image: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Where a skull-stripped image (X, Y, Z) shows brain, bool, and flags that say what is odd.

    That is where it is above 0. Where its background is another constant, above that; and
    where intensities lie on both sides of the background, where they differ from it.
    """
    ground = background(image)
    if ground is None or (ground == 0 and float(image.min()) >= 0):
        return image > 0, ()
    below, above = int((image < ground).sum()), int((image > ground).sum())
    around = below >= BELOW * max(below + above, 1)
    if ground == 0 and not around:
        return image > 0, ()
    if ground < 0 and int((image == 0).sum()) >= ZEROS * max(below + above, 1):
        return image > 0, ()
    if around:
        words = (
            f"{below / (below + above):.0%} of its values lie below the background's {ground:g}"
            " (standardised?): brain is where they differ from it"
        )
        return image != ground, (flag(BACKGROUND, words),)
    words = f"its background is {ground:g}, not 0: brain is what lies above it"
    return image > ground, (flag(BACKGROUND, words),)


def background(image: Tensor) -> float | None:
    """The value that most of the outer faces of an image (X, Y, Z) have, or None."""
    values, counts = torch.unique(
        torch.stack([image[x, y, z] for x in (0, -1) for y in (0, -1) for z in (0, -1)]),
        return_counts=True,
    )
    faces = [image.select(axis, place) for axis in range(3) for place in (0, -1)]
    size = sum(face.numel() for face in faces)
    shares = {
        float(value): sum(int((face == value).sum()) for face in faces) / size
        for value, count in zip(values, counts, strict=True)
        if count >= CORNERS
    }
    best = max(shares, key=lambda value: shares[value], default=None)
    return best if best is not None and shares[best] >= FACES else None


def brain_of_mask(mask: Tensor, threshold: float) -> tuple[Tensor, tuple[str, ...]]:
    """Where a mask (X, Y, Z) says that brain is, bool, and flags that say what is odd.

    A mask with one value above 0 means that value, whatever it is. One with several may hold
    probabilities: brain is from `threshold` on.
    """
    largest = float(mask.max())
    inside = mask > 0
    if not bool((inside & (mask != largest)).any()):
        return inside, ()
    words = (
        f"its mask holds several values, up to {largest:g}: brain is from {threshold:g} on"
        " (prepare.mask_threshold)"
    )
    if threshold < 1 < largest:
        words += f"; if they are no labels but probabilities, set it to {largest / 2:g}"
    return mask >= threshold, (flag(MASK_VALUES, words),)
