"""Reconstruction by total variation, the classical prior that the decoder has to beat.

minimise over 0 ≤ x ≤ 1   ½‖A x − y‖² + w · Σ |∇x|,   |∇x| the length of both differences,

by the primal–dual algorithm of Chambolle & Pock (A First-Order Primal-Dual Algorithm for Convex
Problems, JMIV 2011), algorithm 1. Rudin, Osher, Fatemi 1992; for MRI Lustig et al. 2007.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.analysis.inverse.operators import Operator

# Weights, in intensity units, from next to no effect to cartoons, are LEAST · 4^(place/8). The
# search starts with steps of a factor of 4 and halves them, down to a factor of 4^(1/8) = 1.19.
LEAST = 0.000125
PLACES = range(49)  # to 0.512
START, COARSE = 16, 8  # 0.002
# A search ends when the best's neighbours are less than FLAT below it, and the parabola through the
# three promises a gain below TOLERANCE: of SSIM. A steep curve is no parabola, its promise is none.
TOLERANCE, FLAT = 5e-4, 0.01
# Weights that a search tries, as a rule.
USUAL = 6


def gradient(image: Tensor) -> Tensor:
    """Forward differences along rows and columns, 0 at the far border: (...) -> (2,...)."""
    down = torch.diff(image, dim=-2, append=image[..., -1:, :])
    right = torch.diff(image, dim=-1, append=image[..., :, -1:])
    return torch.stack([down, right])


def divergence(field: Tensor) -> Tensor:
    """Minus the adjoint of `gradient`: (2,...,H,W) -> (...,H,W)."""
    down, right = field[0][..., :-1, :], field[1][..., :, :-1]
    pad = torch.nn.functional.pad
    rows = pad(down, (0, 0, 0, 1)) - pad(down, (0, 0, 1, 0))
    columns = pad(right, (0, 1)) - pad(right, (1, 0))
    return rows + columns


def squared_norm(operator: Operator, like: Tensor, iterations: int = 20) -> float:
    """‖A‖² by power iteration from a fixed start; like: images (B,C,H,W)."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    size = 1.0
    for _ in range(iterations):
        vector = operator.adjoint(operator.forward(vector / vector.norm()))
        size = float(vector.norm())
        if not size > 0:
            return 0.0
    return 1.05 * size  # from below: a little more keeps the steps safe


@torch.no_grad()
def solve_total_variation(
    operator: Operator,
    measurement: Tensor,
    weight: float,
    start: Tensor,
    iterations: int = 600,
    tolerance: float = 2e-7,
) -> Tensor:
    """The minimiser of total variation and misfit, see the module.

    Args:
        operator: A.
        measurement: y, what A gives.
        weight: w, intensity units, not negative.
        start: (B,C,H,W), any image.
        iterations: at most.
        tolerance: intensity; it stops when no image moves by more, root mean square, in a step.

    Returns:
        (B,C,H,W) in [0,1].

    Raises:
        ValueError: the weight is negative.
    """
    if weight < 0:
        raise ValueError(f"the weight of total variation must not be negative: {weight}")
    step = 1.0 / (squared_norm(operator, start) + 8.0) ** 0.5
    # The duals' sizes are those of noise and weight: equal steps would take them there too slowly.
    balance = min(max(0.02 / max(weight, 1e-6), 0.2), 4.0)
    rise, fall = step / balance, step * balance
    image = start.clamp(0, 1)
    extrapolated = image
    data = torch.zeros_like(measurement)
    slopes = torch.zeros_like(gradient(image))
    for _ in range(iterations):
        data = (data + rise * (operator.forward(extrapolated) - measurement)) / (1 + rise)
        slopes = slopes + rise * gradient(extrapolated)
        if weight:
            slopes = slopes / (slopes.norm(dim=0) / weight).clamp_min(1.0)
        else:
            slopes = torch.zeros_like(slopes)
        moved = (image - fall * (operator.adjoint(data) - divergence(slopes))).clamp(0, 1)
        extrapolated = 2 * moved - image
        change = (moved - image).square().mean(dim=(1, 2, 3)).max()
        image = moved
        if float(change) < tolerance**2:
            break
    return image


def objective(operator: Operator, measurement: Tensor, weight: float, image: Tensor) -> Tensor:
    """What `solve_total_variation` minimises, of each image: (B,)."""
    misfit = (operator.forward(image) - measurement).abs().square().flatten(1).sum(dim=1)
    return 0.5 * misfit + weight * gradient(image).norm(dim=0).flatten(1).sum(dim=1)


def best_weight(score: Callable[[float], float], progress: Callable[[float], None]) -> float:
    """The weight of the highest score, where that has one maximum over the logarithm of the weight.

    The best weight's neighbours are tried, the likelier first, and one that is better is the next
    best; between neighbours that are not, the step is halved. It ends at the least step, or where
    the score is flat, see TOLERANCE.

    Args:
        score: of a weight; larger is better.
        progress: gets the share that is done, about.
    """
    found: dict[int, float] = {}

    def look(place: int) -> float:
        if place not in PLACES:
            return -math.inf
        if place not in found:
            found[place] = score(LEAST * 4 ** (place / COARSE))
            progress(min(len(found) / USUAL, 0.99))
        return found[place]

    best, step, likelier = START, COARSE, 1
    while True:
        for side in (likelier, -likelier):
            if look(best + side * step) > look(best):
                best += side * step
                likelier = side
                break
        else:
            low, high = look(best - step), look(best + step)
            flat = look(best) - min(low, high) < FLAT
            if step == 1 or (flat and _promised(low, look(best), high) < TOLERANCE):
                return LEAST * 4 ** (best / COARSE)
            step //= 2
            likelier = 1 if high > low else -1


def _promised(low: float, middle: float, high: float) -> float:
    """How far the parabola through three values, evenly spaced, rises above the middle one."""
    bend = 2 * middle - low - high
    return (high - low) ** 2 / (8 * bend) if bend else 0.0
