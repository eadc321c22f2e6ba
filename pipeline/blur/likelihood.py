"""The exact Gaussian likelihood with a circulant precision: its value, its scale, its samples.

p(x|z) = N(x̂, σ²Σ) with Σ⁻¹ circulant, eigenvalues λ (see `spectrum.precision`); residual
e = x − x̂ in intensity units, D = C·H·W its number of values.
"""

import math

import torch
from torch import Tensor

from pipeline.blur.spectrum import half_spectrum, half_spectrum_sum, power


def check_precision(height: int, width: int, precision: Tensor) -> None:
    """Raise ValueError where a precision is not (B,1,height,width//2+1)."""
    if precision.ndim != 4 or precision.shape[1:] != (1, height, width // 2 + 1):
        raise ValueError(
            f"precision must be (B,1,{height},{width // 2 + 1}) for residuals of "
            f"{height}x{width}, not {tuple(precision.shape)}"
        )


def quadratic_form(spectrum: Tensor, precision: Tensor, width: int) -> Tensor:
    """Σ λ|E|² of each image: E (B,C,H,width//2+1), λ (B or 1,1,H,width//2+1) -> (B,).

    Raises ValueError where the precision does not fit the spectrum.
    """
    check_precision(spectrum.shape[-2], width, precision)
    return half_spectrum_sum(power(spectrum) * precision, width).sum(dim=1)


def log_determinant(precision: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """log |Σ⁻¹| of images of shape (C,H,W): precision (B,1,H,W//2+1) -> (B,), nats."""
    channels, _, width = shape
    return channels * half_spectrum_sum(precision.log(), width)[:, 0]


def nll(
    quadratic: Tensor, log_determinant: Tensor | float, values: int, scale: Tensor | float
) -> Tensor:
    """Negative log-likelihood in nats from its parts: (B,) each -> (B,).

    (1/2σ²) · quadratic − ½ · log_determinant + D log σ + (D/2) log 2π, with D = values.
    """
    sigma = torch.as_tensor(scale, dtype=quadratic.dtype, device=quadratic.device)
    return (
        quadratic / (2 * sigma.square())
        - 0.5 * log_determinant
        + values * sigma.log()
        + values / 2 * math.log(2 * math.pi)
    )


def gaussian_nll(residual: Tensor, precision: Tensor, scale: Tensor | float) -> Tensor:
    """Negative log-likelihood of each image in nats, every constant included.

    residual (B,C,H,W); precision λ (B or 1,1,H,W//2+1), positive; scale σ a number, () or (B,).
    Returns (B,): (1/2σ²) Σ λ|E|² − (C/2) Σ log λ + D log σ + (D/2) log 2π.
    Raises ValueError where the precision does not fit the residual.
    """
    channels, height, width = residual.shape[1:]
    return nll(
        quadratic_form(half_spectrum(residual), precision, width),
        log_determinant(precision, (channels, height, width)),
        residual[0].numel(),
        scale,
    )


def optimal_scale(quadratic: Tensor, values: int) -> Tensor:
    """The σ that maximises the likelihood of a batch: () in intensity units, without gradient.

    σ̂² = mean over the batch and all values of λ|E|² (σ-VAE, Rybkin et al. 2021); quadratic (B,).
    """
    return (quadratic.detach().mean() / values).clamp_min(1e-12).sqrt()


def sample_residual(
    precision: Tensor,
    scale: Tensor | float,
    channels: int,
    width: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw residuals from N(0, σ²Σ): white noise coloured by σ/√λ.

    precision λ (B,1,H,width//2+1); scale σ a number, () or (B,). Returns (B,channels,H,width).
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
