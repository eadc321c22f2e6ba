"""Cartesian sampling masks of k-space: which columns (phase encodings) were measured.

Columns are counted in the centred convention of `fourier`: the lowest frequency is W//2.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["variable_density", "equispaced"]


def centre_columns(width: int, fraction: float) -> range:
    """The fully sampled columns about the lowest frequency: at least one."""
    count = min(width, max(1, round(width * fraction)))
    start = width // 2 - count // 2
    return range(start, start + count)


def cartesian_mask(
    shape: tuple[int, int],
    acceleration: float,
    centre_fraction: float = 0.08,
    kind: Kind = "variable_density",
    seed: int | tuple[int, ...] = 0,
) -> Float[Tensor, "H W"]:
    """A mask of 0 and 1 with round(W / acceleration) whole columns.

    The columns of `centre_columns` are always in it. variable_density draws the others with a
    probability that falls as (1 − |f|/f_max)², as in compressed sensing (Lustig, Donoho, Pauly,
    Sparse MRI, MRM 2007); equispaced spreads them evenly, from a seeded offset (fastMRI).

    Raises:
        ValueError: the acceleration is below 1, the fraction is not in (0,1], or the centre alone
            holds more columns than the acceleration allows.

    Example:
        >>> cartesian_mask((32, 32), acceleration=4).mean().item()
        0.25
    """
    height, width = shape
    if not acceleration >= 1:
        raise ValueError(f"acceleration must be at least 1, not {acceleration}")
    if not 0 < centre_fraction <= 1:
        raise ValueError(f"centre_fraction must lie in (0,1], not {centre_fraction}")
    total, centre = round(width / acceleration), centre_columns(width, centre_fraction)
    if acceleration == 1:
        return torch.ones(height, width)
    if len(centre) > total:
        raise ValueError(
            f"acceleration {acceleration:g} leaves {total} of {width} columns, and "
            f"centre_fraction {centre_fraction:g} alone takes {len(centre)}: lower one of them"
        )
    generator = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(width), list(centre))
    missing = total - len(centre)
    if kind == "equispaced":
        # Places spread evenly over the columns outside the centre, from an offset below one step.
        places = (np.arange(missing) + generator.random()) * len(others) / max(missing, 1)
        chosen = others[places.astype(int)]
    elif kind == "variable_density":
        distance = np.abs(others - width // 2) / (width / 2 + 1)
        density = (1 - distance) ** 2
        chosen = generator.choice(others, missing, replace=False, p=density / density.sum())
    else:
        raise ValueError(f"kind must be variable_density or equispaced, not {kind!r}")
    columns = torch.zeros(width)
    columns[[*centre, *chosen.tolist()]] = 1.0
    return columns.expand(height, width).clone()


def sampled_centre(mask: Tensor) -> int:
    """Width of the band of whole columns about the lowest frequency that (H,W) holds, pixels."""
    full = mask.bool().all(dim=0)
    middle = len(full) // 2
    reach = 0
    while (
        middle - reach >= 0
        and middle + reach < len(full)
        and bool(full[middle - reach] and full[middle + reach])
    ):
        reach += 1
    return max(0, 2 * reach - 1)
