"""The exact Gaussian likelihood with a circulant precision: value, scale, samples, whitening.

p(x|z) = N(x̂, σ²Σ) with Σ⁻¹ circulant, eigenvalues λ (see `spectrum.precision`); residual
e = x − x̂ in intensity units, D = C·H·W its number of values.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from pipeline.blur.spectrum import half_spectrum, half_spectrum_sum, power

# σ of all images, or one for each, intensity.
Sigma = float | Float[Tensor, ""] | Float[Tensor, " B"]


def check_precision(height: int, width: int, precision: Float[Tensor, "B 1 H half_W"]) -> None:
    """Raise ValueError where a precision is not (B,1,height,width//2+1)."""
    if precision.ndim != 4 or precision.shape[1:] != (1, height, width // 2 + 1):
        raise ValueError(
            f"precision must be (B,1,{height},{width // 2 + 1}) for residuals of "
            f"{height}x{width}, not {tuple(precision.shape)}"
        )


def quadratic_form(
    spectrum: Complex[Tensor, "B C H half_W"], precision: Float[Tensor, "#B 1 H half_W"], width: int
) -> Float[Tensor, " B"]:
    """Σ λ|E|² of each image, W = width. ValueError: the precision does not fit the spectrum."""
    check_precision(spectrum.shape[-2], width, precision)
    return half_spectrum_sum(power(spectrum) * precision, width).sum(dim=1)


def log_determinant(
    precision: Float[Tensor, "B 1 H half_W"], shape: tuple[int, int, int]
) -> Float[Tensor, " B"]:
    """log |Σ⁻¹| of images of shape (C,H,W), nats."""
    channels, _, width = shape
    return channels * half_spectrum_sum(precision.log(), width)[:, 0]


def nll(
    quadratic: Float[Tensor, " B"],
    log_determinant: float | Float[Tensor, " #B"],
    values: int,
    scale: Sigma,
) -> Float[Tensor, " B"]:
    """Negative log-likelihood in nats from its parts.

    (1/2σ²) · quadratic − ½ · log_determinant + D log σ + (D/2) log 2π, with D = values.
    """
    sigma = torch.as_tensor(scale, dtype=quadratic.dtype, device=quadratic.device)
    return (
        quadratic / (2 * sigma.square())
        - 0.5 * log_determinant
        + values * sigma.log()
        + values / 2 * math.log(2 * math.pi)
    )


def gaussian_nll(
    residual: Float[Tensor, "B C H W"], precision: Float[Tensor, "#B 1 H W//2+1"], scale: Sigma
) -> Float[Tensor, " B"]:
    """Negative log-likelihood of each image, every constant included.

    Args:
        residual: e = x − x̂, intensity.
        precision: λ > 0, without unit.
        scale: σ, intensity.

    Returns:
        (1/2σ²) Σ λ|E|² − (C/2) Σ log λ + D log σ + (D/2) log 2π, nats.

    Raises:
        ValueError: the precision does not fit the residual.

    Example:
        >>> white = torch.ones(1, 1, 8, 5)  # λ = 1: independent pixels
        >>> nats = gaussian_nll(torch.zeros(2, 1, 8, 8), white, 0.1)
        >>> [round(value, 2) for value in nats.tolist()]  # 64 · log(0.1 · √2π)
        [-88.55, -88.55]
    """
    channels, height, width = residual.shape[1:]
    return nll(
        quadratic_form(half_spectrum(residual), precision, width),
        log_determinant(precision, (channels, height, width)),
        residual[0].numel(),
        scale,
    )


def optimal_scale(quadratic: Float[Tensor, " B"], values: int) -> Float[Tensor, ""]:
    """The σ that maximises the likelihood of a batch, intensity, without gradient.

    σ̂² = mean over the batch and all values of λ|E|² (σ-VAE, Rybkin et al. 2021).
    """
    return (quadratic.detach().mean() / values).clamp_min(1e-12).sqrt()


def sample_residual(
    precision: Float[Tensor, "B 1 H half_W"],
    scale: Sigma,
    channels: int,
    width: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B C H W"]:
    """Draw residuals from N(0, σ²Σ): white noise coloured by σ/√λ.

    precision λ; scale σ, intensity; the generator is on their device. ValueError: the precision has
    another width.
    """
    batch, height = precision.shape[0], precision.shape[-2]
    if precision.shape[-1] != width // 2 + 1:
        raise ValueError(f"precision of {precision.shape[-1]} columns does not fit width {width}")
    noise = torch.randn(
        (batch, channels, height, width),
        dtype=precision.dtype,
        device=precision.device,
        generator=generator,
    )
    sigma = torch.as_tensor(scale, dtype=precision.dtype, device=precision.device)
    coloured = torch.fft.rfft2(noise, norm="ortho") * precision.rsqrt()
    return torch.fft.irfft2(coloured, s=(height, width), norm="ortho") * sigma.reshape(-1, 1, 1, 1)


def whiten(
    residual: Float[Tensor, "B C H W"], precision: Float[Tensor, "#B 1 H W//2+1"], scale: Sigma
) -> Float[Tensor, "B C H W"]:
    """Σ^(-1/2) e / σ: white noise of variance 1 where the law holds, the inverse of a draw.

    By the symmetric root, so that every value stays at its pixel. Squares sum to Σ λ|E|²/σ².
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
    """Variance of any one pixel's residual, (σ²/HW) Σ 1/λ, intensity²; W = width."""
    total = half_spectrum_sum(precision.reciprocal(), width)[:, 0]
    sigma = torch.as_tensor(scale, dtype=total.dtype, device=total.device)
    return sigma.square() * total / (precision.shape[-2] * width)
