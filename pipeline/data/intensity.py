"""From intensities in [0,1] back to the unit of the file they came from."""

from typing import TypeVar

import numpy as np
import torch

Values = TypeVar("Values", torch.Tensor, np.ndarray)

# Below half a level of 256 an image is dark and its file holds 0, as the preparation has it outside
# the brain. `low` is the intensity of the brain's darkest voxels.
DARK = 1 / 510


def to_scanner(image: Values, low: float, high: float) -> Values:
    """Intensities of [0,1] in the file's unit: 0 where it is dark, else low + x · (high − low).

    (x − low) / (high − low), clipped to [0,1], is the inverse, to within DARK.

    Args:
        image: intensity in [0,1], any shape.
        low: the file's intensity that became 0 in the preparation (`volume` of a store's entries).
        high: that which became 1.

    Raises:
        ValueError: low and high are not finite, or high is not above low.
    """
    if not (np.isfinite([low, high]).all() and high > low):
        raise ValueError(f"low and high must be intensities, low the lower: {low}, {high}")
    scaled = low + image * (high - low)
    if isinstance(image, torch.Tensor):
        return torch.where(image > DARK, scaled, torch.zeros_like(scaled))
    return np.where(image > DARK, scaled, np.zeros_like(scaled))
