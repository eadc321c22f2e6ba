"""Reconstruction without a decoder: total variation and sparse wavelets, which it has to beat.

minimise over 0 ≤ x ≤ 1   ½‖A x − y‖² + w · Σ |∇x|     |∇x| the length of both differences
                          ½‖A x − y‖² + w · ‖Ψ x‖₁     Ψ the details of an orthonormal transform

Total variation (Rudin, Osher, Fatemi 1992) by the primal–dual algorithm of Chambolle & Pock (JMIV
2011), algorithm 1. Wavelets by FISTA (Beck & Teboulle, SIAM J. Imaging Sciences 2009) with a random
shift of the grid in each step (cycle spinning, Coifman & Donoho 1995; Figueiredo & Nowak 2003); the
transform is PyWavelets'. Both serve MRI in Lustig, Donoho, Pauly 2007.
"""

import math
from collections.abc import Callable

import numpy as np
import pywt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from pipeline.analysis.operators import Operator, squared_norm

WAVELET = "db4"
LEVELS = 3
# Weights, intensity units: next to no effect, and a cartoon. A search tries so many between them.
LEAST, MOST, TRIES = 0.0005, 0.5, 8


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
    return rows + (pad(right, (0, 1)) - pad(right, (1, 0)))


@torch.no_grad()
def solve_total_variation(
    operator: Operator,
    measurement: Tensor,
    weight: float,
    start: Tensor,
    iterations: int = 600,
    tolerance: float = 2e-7,
) -> Tensor:
    """The minimiser of total variation and misfit, see the module: (B,C,H,W) in [0,1].

    operator A; measurement y; weight w, intensity units, not negative; start: any image; tolerance,
    intensity: it stops when no image moves by more, root mean square, in a step.
    """
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
        slopes = slopes * (weight / slopes.norm(dim=0).clamp_min(max(weight, 1e-30)))
        moved = (image - fall * (operator.adjoint(data) - divergence(slopes))).clamp(0, 1)
        extrapolated = 2 * moved - image
        change = (moved - image).square().mean(dim=(1, 2, 3)).max()
        image = moved
        if float(change) < tolerance**2:
            break
    return image


def shrink(image: Tensor, weight: float, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """The minimiser of ½‖x − image‖² + w‖Ψx‖₁ on a shifted grid: (B,C,H,W), intensity.

    shift: rows and columns by which the grid is moved. Periodic; sides even.
    """
    moved = torch.roll(image, shift, dims=(-2, -1)).numpy()
    levels = min(LEVELS, pywt.dwt_max_level(min(image.shape[-2:]), WAVELET))
    coarse, *details = pywt.wavedec2(
        moved, WAVELET, mode="periodization", level=max(levels, 1), axes=(-2, -1)
    )
    soft = [tuple(pywt.threshold(d, weight, "soft") for d in level) for level in details]
    back = pywt.waverec2([coarse, *soft], WAVELET, mode="periodization", axes=(-2, -1))
    back = torch.from_numpy(np.ascontiguousarray(back)).to(image.dtype)
    return torch.roll(back, (-shift[0], -shift[1]), dims=(-2, -1))


@torch.no_grad()
def solve_wavelets(
    operator: Operator, measurement: Tensor, weight: float, start: Tensor, iterations: int = 200
) -> Tensor:
    """The minimiser of details and misfit but for the random shifts, which are always the same.

    As `solve_total_variation`; all iterations are done.
    """
    random = np.random.default_rng(0)
    step = 1.0 / max(squared_norm(operator, start), 1e-12)
    image = ahead = start.clamp(0, 1)
    momentum = 1.0
    for _ in range(iterations):
        slope = operator.adjoint(operator.forward(ahead) - measurement)
        down, right = (int(v) for v in random.integers(0, 2**LEVELS, 2))
        new = shrink(ahead - step * slope, step * weight, (down, right)).clamp(0, 1)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / following * (new - image)
        image, momentum = new, following
    return image


def best_weight(score: Callable[[float], float]) -> float:
    """The weight of about the highest score, by Brent's search over its logarithm, bounded.

    score: of a weight; larger is better, with one maximum.
    """
    search = minimize_scalar(
        lambda logarithm: -score(math.exp(logarithm)),
        bounds=(math.log(LEAST), math.log(MOST)),
        method="bounded",
        options={"maxiter": TRIES, "xatol": 0.1},
    )
    return math.exp(search.x)
