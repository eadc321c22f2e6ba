"""From intensities in [0,1] back to the unit of the file they came from."""

from typing import TypeVar

import numpy as np
import torch

Values = TypeVar("Values", torch.Tensor, np.ndarray)

# Below half a level of 256 an image is dark, and its file 0: what the preparation puts outside the
# brain. `low` belongs to the brain's darkest.
DARK = 1 / 510


def to_scanner(image: Values, low: float, high: float) -> Values:
    """Intensities of [0,1] in the file's unit: 0 where it is dark, else low + x · (high − low).

    low, high: what became 0 and 1 in the preparation (`volume` of a store's entries). Back with
    (x − low) / (high − low), clipped to [0,1], to within DARK. Raises ValueError unless high > low.
    """
    if not (np.isfinite([low, high]).all() and high > low):
        raise ValueError(f"low and high must be intensities, low the lower: {low}, {high}")
    scaled = low + image * (high - low)
    if isinstance(image, torch.Tensor):
        return torch.where(image > DARK, scaled, torch.zeros_like(scaled))
    return np.where(image > DARK, scaled, np.zeros_like(scaled))
