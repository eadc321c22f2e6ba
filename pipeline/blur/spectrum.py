"""From a blur kernel to the precision spectrum of its likelihood.

Symbols: kernel k (B,1,s,s), s odd, centre at (s//2, s//2); transfer function K = F(k) on the
half spectrum of an image (H,W), so K(0) = sum(k); precision spectrum λ, the eigenvalues of the
circulant inverse covariance. All are dimensionless. FFTs follow torch's `rfft2` layout.
"""

from typing import Literal

import torch
from torch import Tensor

Form = Literal["wiener", "positive_definite"]

# |K|² below this counts as this, in the quadratic term and the log-determinant alike: the literal
# Wiener precision falls to 0 with K, and a density needs λ > 0.
POWER_FLOOR = 1e-8


def transfer_function(kernel: Tensor, shape: tuple[int, int]) -> Tensor:
    """Unnormalised half-spectrum DFT of a kernel centred on the origin of a periodic image.

    kernel (B,1,s,s) real, s odd and at most min(shape); shape (H,W) pixels.
    Returns complex (B,1,H,W//2+1). Raises ValueError on another kernel shape.
    """
    height, width = shape
    side = kernel.shape[-1]
    if kernel.ndim != 4 or kernel.shape[1] != 1 or kernel.shape[-2] != side:
        raise ValueError(f"kernel must be (B,1,s,s), not {tuple(kernel.shape)}")
    if side % 2 == 0 or side > min(shape):
        raise ValueError(f"kernel side must be odd and at most {min(shape)}, not {side}")
    padded = torch.nn.functional.pad(kernel, (0, width - side, 0, height - side))
    centred = torch.roll(padded, shifts=(-(side // 2), -(side // 2)), dims=(-2, -1))
    return torch.fft.rfft2(centred)


def precision(transfer: Tensor, constant: float, form: Form = "wiener") -> Tensor:
    """Precision spectrum λ of the residual, before the scale σ.

    transfer K (B,1,H,W//2+1); constant C > 0.
    wiener: λ = |K|²/(|K|²+C)², the squared modulus of the Wiener weight K*/(|K|²+C).
    positive_definite: λ = 1/(|K|²+C), the covariance K Kᵀ + C·I.
    Returns real, shape of transfer. Raises ValueError on another form or C <= 0.
    """
    if constant <= 0:
        raise ValueError(f"constant must be positive, not {constant}")
    kept = power(transfer).clamp_min(POWER_FLOOR)
    if form == "wiener":
        return kept / (kept + constant).square()
    if form == "positive_definite":
        return 1.0 / (kept + constant)
    raise ValueError(f"form must be wiener or positive_definite, not {form!r}")


def half_spectrum_weights(width: int, like: Tensor) -> Tensor:
    """How often each column of an rfft2 half spectrum stands in the full one: (width//2+1,).

    Column 0, and column width/2 of an even width, stand once, all others twice.
    """
    weights = torch.full((width // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    weights[0] = 1.0
    if width % 2 == 0:
        weights[-1] = 1.0
    return weights


def half_spectrum_sum(values: Tensor, width: int) -> Tensor:
    """Sum over the full spectrum of a quantity even in frequency: (..., H, width//2+1) -> (...)."""
    return (values.sum(dim=-2) * half_spectrum_weights(width, values)).sum(dim=-1)


def half_spectrum(image: Tensor) -> Tensor:
    """Orthonormal half spectrum of a real image: (B,C,H,W) -> complex (B,C,H,W//2+1).

    Never below float32, and outside autocast: half precision loses the weak high frequencies that
    the likelihood exists for.
    """
    with torch.autocast(image.device.type, enabled=False):
        wide = image.to(torch.promote_types(image.dtype, torch.float32))
        return torch.fft.rfft2(wide, norm="ortho")


def power(spectrum: Tensor) -> Tensor:
    """|E|² of a complex spectrum, real and of its shape."""
    return spectrum.real.square() + spectrum.imag.square()
