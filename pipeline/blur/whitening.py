"""A residual in units of its own likelihood: white noise of variance 1 where the model is right.

The inverse of `likelihood.sample_residual`: p(x|z) = N(x̂, σ²Σ), Σ⁻¹ circulant, eigenvalues λ.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.blur.likelihood import Sigma, check_precision
from pipeline.blur.spectrum import half_spectrum, half_spectrum_sum


def whiten(
    residual: Float[Tensor, "B C H W"], precision: Float[Tensor, "#B 1 H W//2+1"], scale: Sigma
) -> Float[Tensor, "B C H W"]:
    """Σ^(-1/2) e / σ, by the symmetric root, so that every value stays at its pixel.

    Returns:
        Standard deviations; their squares sum to Σ λ|E|²/σ².

    Raises:
        ValueError: the precision does not fit the residual.
    """
    height, width = residual.shape[-2:]
    check_precision(height, width, precision)
    spectrum = half_spectrum(residual) * precision.sqrt()
    white = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
    sigma = torch.as_tensor(scale, dtype=white.dtype, device=white.device)
    return white / sigma.reshape(-1, 1, 1, 1)


def marginal_variance(
    precision: Float[Tensor, "B 1 H half_W"], scale: Sigma, width: int
) -> Float[Tensor, " B"]:
    """Variance of one pixel's residual, (σ²/HW) Σ 1/λ, intensity²; W = width.

    It is the same all over a stationary image.
    """
    total = half_spectrum_sum(precision.reciprocal(), width)[:, 0]
    sigma = torch.as_tensor(scale, dtype=total.dtype, device=total.device)
    return sigma.square() * total / (precision.shape[-2] * width)
