"""The Gaussian whose residuals have a deviation of their own at every pixel, and a common spectrum.

p(x|z) = N(x̂, S C S): S = diag(s), s > 0 a standard deviation for each pixel, C stationary, its
inverse circulant with eigenvalues λ (see `likelihood`). The residual in units of s, e/s, is what a
stationary law with σ = 1 judges, so that

    −log p = ½ Σ λ|F(e/s)|² + Σ log s − ½ Σ log λ + (D/2) log 2π       exact: two FFTs, no solver

A constant s = σ gives `likelihood.gaussian_nll` back. Where the mean of 1/λ is 1, C has a diagonal
of ones, and s is the standard deviation of a pixel's residual (`marginal_deviation`).

Shapes: residual e (B,C,H,W), intensity; deviation s what broadcasts to it; precision λ
(B or 1,1,H,W//2+1), without unit. ValueError where a precision does not fit.
"""

import torch
from torch import Tensor

from pipeline.blur.likelihood import gaussian_nll, sample_residual
from pipeline.blur.whitening import marginal_variance, whiten


def scaled_nll(residual: Tensor, deviation: Tensor, precision: Tensor) -> Tensor:
    """Negative log-likelihood of each image in nats, every constant included: (B,)."""
    every = deviation.expand_as(residual)
    return gaussian_nll(residual / every, precision, 1.0) + every.log().sum(dim=(1, 2, 3))


def scaled_whitening(residual: Tensor, deviation: Tensor, precision: Tensor) -> Tensor:
    """C^(-1/2) S⁻¹ e, white noise of variance 1 where the law holds; every value at its pixel."""
    return whiten(residual / deviation, precision, 1.0)


def scaled_sample(
    deviation: Tensor, precision: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Residuals drawn from N(0, S C S): deviation (B,C,H,W) -> its shape, intensity."""
    batch, channels, _, width = deviation.shape
    every = precision.expand(batch, -1, -1, -1)
    return deviation * sample_residual(every, 1.0, channels, width, generator)


def marginal_deviation(deviation: Tensor, precision: Tensor, width: int) -> Tensor:
    """Standard deviation of each pixel's residual, s · √((1/HW) Σ 1/λ): as `deviation`, intensity.

    width: W of the images.
    """
    return deviation * marginal_variance(precision, 1.0, width).sqrt().reshape(-1, 1, 1, 1)
