"""The Gaussian whose residuals have a deviation of their own at every pixel, and a common spectrum.

p(x|z) = N(x̂, S C S): S = diag(s), s > 0 a standard deviation for each pixel, C stationary, its
inverse circulant with eigenvalues λ (see `likelihood`). The residual in units of s, e/s, is what a
stationary law with σ = 1 judges, so that

    −log p = ½ Σ λ|F(e/s)|² + Σ log s − ½ Σ log λ + (D/2) log 2π       exact: two FFTs, no solver

A constant s = σ gives `likelihood.gaussian_nll` back. Where the mean of 1/λ is 1, C has a diagonal
of ones, and s is the standard deviation of a pixel's residual (`marginal_deviation`).

Residual e and deviation s are intensities, the precision λ has no unit. ValueError where a
precision does not fit.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.blur.likelihood import gaussian_nll, sample_residual
from pipeline.blur.whitening import marginal_variance, whiten

# One number, or what else broadcasts to (B,C,H,W).
Deviation = Float[Tensor, ""] | Float[Tensor, "#B #C #H #W"]


def scaled_nll(
    residual: Float[Tensor, "B C H W"],
    deviation: Deviation,
    precision: Float[Tensor, "#B 1 H W//2+1"],
) -> Float[Tensor, " B"]:
    """Negative log-likelihood of each image in nats, every constant included."""
    every = deviation.expand_as(residual)
    return gaussian_nll(residual / every, precision, 1.0) + every.log().sum(dim=(1, 2, 3))


def scaled_whitening(
    residual: Float[Tensor, "B C H W"],
    deviation: Deviation,
    precision: Float[Tensor, "#B 1 H W//2+1"],
) -> Float[Tensor, "B C H W"]:
    """C^(-1/2) S⁻¹ e, white noise of variance 1 where the law holds; every value at its pixel."""
    return whiten(residual / deviation, precision, 1.0)


def scaled_sample(
    deviation: Float[Tensor, "B C H W"],
    precision: Float[Tensor, "#B 1 H W//2+1"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B C H W"]:
    """Residuals drawn from N(0, S C S), intensity."""
    batch, channels, _, width = deviation.shape
    every = precision.expand(batch, -1, -1, -1)
    return deviation * sample_residual(every, 1.0, channels, width, generator)


def marginal_deviation(
    deviation: Deviation, precision: Float[Tensor, "B 1 H half_W"], width: int
) -> Float[Tensor, "#B #C #H #W"]:
    """Standard deviation of each pixel's residual, s · √((1/HW) Σ 1/λ), intensity; W = width."""
    return deviation * marginal_variance(precision, 1.0, width).sqrt().reshape(-1, 1, 1, 1)
