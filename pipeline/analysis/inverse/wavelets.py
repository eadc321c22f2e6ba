"""Reconstruction by sparse wavelets, the other classical prior that the decoder has to beat.

minimise over 0 ≤ x ≤ 1   ½‖A x − y‖² + w · ‖Ψ x‖₁,   Ψ the details of an orthonormal transform

by FISTA (Beck & Teboulle, SIAM J. Imaging Sciences 2009) with a random shift of the grid in each
step (cycle spinning, Coifman & Donoho 1995; Figueiredo & Nowak 2003), as compressed sensing MRI
does (Lustig, Donoho, Pauly 2007). The transform is PyWavelets'.
"""

import numpy as np
import pywt
import torch
from torch import Tensor

from pipeline.analysis.inverse.operators import Operator
from pipeline.analysis.inverse.total_variation import squared_norm

WAVELET = "db4"
LEVELS = 3


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
    """The minimiser of details and misfit, see the module, but for the random shifts.

    Args:
        operator: A.
        measurement: y, what A gives.
        weight: w, intensity units, not negative.
        start: (B,C,H,W), any image.
        iterations: all of them are done; their shifts are the same every time.

    Returns:
        (B,C,H,W) in [0,1].

    Raises:
        ValueError: the weight is negative.
    """
    if weight < 0:
        raise ValueError(f"the weight of the wavelets must not be negative: {weight}")
    random = np.random.default_rng(0)
    step = 1.0 / max(squared_norm(operator, start), 1e-12)
    image = ahead = start.clamp(0, 1)
    momentum = 1.0
    for _ in range(iterations):
        slope = operator.adjoint(operator.forward(ahead) - measurement)
        shift = tuple(int(v) for v in random.integers(0, 2**LEVELS, 2))
        new = shrink(ahead - step * slope, step * weight, (shift[0], shift[1])).clamp(0, 1)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / following * (new - image)
        image, momentum = new, following
    return image
