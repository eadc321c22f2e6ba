"""From a blur kernel to the precision spectrum of its likelihood.

Symbols: kernel k, its side s odd, its centre at (s//2, s//2); transfer function K = F(k) on the
half spectrum of an image (H,W), so K(0) = sum(k); precision spectrum λ, the eigenvalues of the
circulant inverse covariance. All are dimensionless. FFTs follow torch's `rfft2` layout: a half
spectrum has W//2+1 columns, half_W in the signatures.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from pipeline.blur import Form

# |K|² below this counts as this, in the quadratic term and the log-determinant alike: the literal
# Wiener precision falls to 0 with K, and a density needs λ > 0.
POWER_FLOOR = 1e-8


def transfer_function(
    kernel: Float[Tensor, "B 1 s s"], shape: tuple[int, int]
) -> Complex[Tensor, "B 1 H half_W"]:
    """Unnormalised half-spectrum DFT of a kernel centred on the origin of a periodic image.

    Args:
        kernel: k, s odd and at most min(shape).
        shape: (H,W) of the images, pixels.

    Returns:
        K.

    Raises:
        ValueError: another kernel shape.

    Example:
        >>> kernel = torch.full((1, 1, 3, 3), 1 / 9)
        >>> transfer = transfer_function(kernel, (8, 8))
        >>> transfer.shape, round(transfer[0, 0, 0, 0].real.item(), 4)
        (torch.Size([1, 1, 8, 5]), 1.0)
    """
    height, width = shape
    side = kernel.shape[-1]
    if kernel.ndim != 4 or kernel.shape[1] != 1 or kernel.shape[-2] != side:
        raise ValueError(f"kernel must be (B,1,s,s), not {tuple(kernel.shape)}")
    if side % 2 == 0 or side > min(shape):
        raise ValueError(f"kernel side must be odd and at most {min(shape)}, not {side}")
    padded = torch.nn.functional.pad(kernel, (0, width - side, 0, height - side))
    centred = torch.roll(padded, shifts=(-(side // 2), -(side // 2)), dims=(-2, -1))
    return _half_fft(centred)


def transfer_of(
    kernel: Float[Tensor, "B 1 s s"] | None, shape: Sequence[int]
) -> Complex[Tensor, "B 1 H half_W"] | None:
    """`transfer_function` for images (...,H,W) of this shape; None where there is no kernel."""
    return None if kernel is None else transfer_function(kernel, (shape[-2], shape[-1]))


def precision(
    transfer: Complex[Tensor, "B 1 H half_W"], constant: float, form: Form = "wiener"
) -> Float[Tensor, "B 1 H half_W"]:
    """Precision spectrum λ of the residual, before the scale σ.

    Args:
        transfer: K.
        constant: C > 0.
        form: wiener is λ = |K|²/(|K|²+C)², the squared modulus of the Wiener weight K*/(|K|²+C);
            positive_definite is λ = 1/(|K|²+C), the covariance K Kᵀ + C·I.

    Raises:
        ValueError: another form, or C <= 0.

    Example:
        >>> passes_all = torch.ones(1, 1, 2, 2, dtype=torch.complex64)
        >>> precision(passes_all, 1.0).unique().tolist()
        [0.25]
        >>> precision(passes_all, 1.0, "positive_definite").unique().tolist()
        [0.5]
    """
    if constant <= 0:
        raise ValueError(f"constant must be positive, not {constant}")
    kept = power(transfer).clamp_min(POWER_FLOOR)
    if form == "wiener":
        return kept / (kept + constant).square()
    if form == "positive_definite":
        return 1.0 / (kept + constant)
    raise ValueError(f"form must be wiener or positive_definite, not {form!r}")


def half_spectrum_weights(width: int, like: Float[Tensor, "..."]) -> Float[Tensor, " half_W"]:
    """How often each column of an rfft2 half spectrum stands in the full one; type of `like`.

    Column 0, and column width/2 of an even width, stand once, all others twice.
    """
    weights = torch.full((width // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    weights[:1].fill_(1.0)  # an assignment would copy from the CPU, which a CUDA graph refuses
    if width % 2 == 0:
        weights[-1:].fill_(1.0)
    return weights


def half_spectrum_sum(
    values: Float[Tensor, "*batch H half_W"], width: int
) -> Float[Tensor, "*batch"]:
    """Sum over the full spectrum of a quantity even in frequency."""
    return (values.sum(dim=-2) * half_spectrum_weights(width, values)).sum(dim=-1)


def half_spectrum(image: Float[Tensor, "B C H W"]) -> Complex[Tensor, "B C H W//2+1"]:
    """Orthonormal half spectrum of a real image.

    Never below float32, and outside autocast: half precision loses the weak high frequencies that
    the likelihood exists for.
    """
    return _half_fft(image, norm="ortho")


def _half_fft(values: Tensor, norm: str = "backward") -> Tensor:
    with torch.autocast(values.device.type, enabled=False):
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        return torch.fft.rfft2(wide, norm=norm)


def power(spectrum: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """|E|² of a complex spectrum."""
    return spectrum.real.square() + spectrum.imag.square()


class RadialBins(nn.Module):
    """Bins by the distance from the origin, rounded, in steps of 1/max(H,W) cycles/pixel.

    Attributes:
        index: the bin of each frequency.
        counts: frequencies of the full spectrum in each bin, float64.
    """

    index: Int[Tensor, "H half_W"]
    counts: Float[Tensor, " bins"]

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        # In numpy: torch's meta device builds a model without values, and these are needed.
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
        _, bins = np.unique((frequency * max(height, width)).round(), return_inverse=True)
        index = torch.from_numpy(bins.reshape(frequency.shape))
        weights = half_spectrum_weights(width, torch.from_numpy(frequency)).expand(height, -1)
        counts = torch.bincount(index.flatten(), weights.flatten())
        self.width = width
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("counts", counts, persistent=False)

    def __len__(self) -> int:
        return len(self.counts)

    def mean(self, power: Float[Tensor, "B C H half_W"]) -> Float[Tensor, " bins"]:
        """The mean over batch, channels and bin."""
        counts = self.counts.to(power.dtype)
        shared = power.mean(dim=(0, 1)) * half_spectrum_weights(self.width, power)
        summed = torch.zeros_like(counts).index_add(0, self.index.flatten(), shared.flatten())
        return summed / counts

    def average(self, values: Float[Tensor, " bins"]) -> Float[Tensor, ""]:
        """The mean over all frequencies of one value a bin."""
        counts = self.counts.to(values.dtype)
        return (values * counts).sum() / counts.sum()

    def spread(self, values: Float[Tensor, " bins"]) -> Float[Tensor, "1 1 H half_W"]:
        """Each bin's value at every frequency of the bin."""
        return values[self.index][None, None]
