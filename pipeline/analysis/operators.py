"""Forward operators: how a scanner or a degradation turns an image into a measurement.

Images are real, (B,C,H,W); measurements real or complex. The inner product of two measurements is
Re Σ u* v, so that `adjoint` is that of a map between real vector spaces: ⟨Ax, y⟩ = ⟨x, A*y⟩.
Image and k-space are centred, their origin is pixel (H//2, W//2), and the transform is orthonormal,
as in fastMRI's fftc.py (Zbontar et al. 2018, arXiv 1811.08839).
"""

from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

_DIMS = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """Image -> k-space over the last two dimensions: (...,H,W) real or complex -> complex."""
    shifted = torch.fft.ifftshift(image, dim=_DIMS)
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=_DIMS)


def ifft2c(kspace: Tensor) -> Tensor:
    """k-space -> image, the inverse and the adjoint of `fft2c`: (...,H,W) -> complex (...,H,W)."""
    shifted = torch.fft.ifftshift(kspace, dim=_DIMS)
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=_DIMS)


def centre_columns(width: int, fraction: float) -> range:
    """The fully sampled columns about the lowest frequency, W//2: at least one."""
    count = min(width, max(1, round(width * fraction)))
    start = width // 2 - count // 2
    return range(start, start + count)


def cartesian_mask(
    shape: tuple[int, int],
    acceleration: float,
    centre_fraction: float = 0.08,
    kind: Literal["variable_density", "equispaced"] = "variable_density",
    seed: int | tuple[int, ...] = 0,
) -> Float[Tensor, "H W"]:
    """A mask of 0 and 1 with round(W / acceleration) whole columns, the phase encodings.

    The columns of `centre_columns` are always in it. variable_density draws the others with a
    probability that falls as (1 − |f|/f_max)², as in compressed sensing (Lustig, Donoho, Pauly,
    Sparse MRI, MRM 2007); equispaced spreads them evenly, from a seeded offset (fastMRI).

    Raises:
        ValueError: the acceleration is below 1, the fraction is not in (0,1], or the centre alone
            holds more columns than the acceleration allows.

    Example:
        >>> cartesian_mask((32, 32), acceleration=4).mean().item()
        0.25
    """
    height, width = shape
    if not acceleration >= 1:
        raise ValueError(f"acceleration must be at least 1, not {acceleration}")
    if not 0 < centre_fraction <= 1:
        raise ValueError(f"centre_fraction must lie in (0,1], not {centre_fraction}")
    if acceleration == 1:
        return torch.ones(height, width)
    total, centre = round(width / acceleration), centre_columns(width, centre_fraction)
    if len(centre) > total:
        raise ValueError(
            f"acceleration {acceleration:g} leaves {total} of {width} columns, and "
            f"centre_fraction {centre_fraction:g} alone takes {len(centre)}: lower one of them"
        )
    generator = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(width), list(centre))
    missing = total - len(centre)
    if kind == "equispaced":
        # Places spread evenly over the columns outside the centre, from an offset below one step.
        places = (np.arange(missing) + generator.random()) * len(others) / max(missing, 1)
        chosen = others[places.astype(int)]
    else:
        density = (1 - np.abs(others - width // 2) / (width / 2 + 1)) ** 2
        chosen = generator.choice(others, missing, replace=False, p=density / density.sum())
    columns = torch.zeros(width)
    columns[[*centre, *chosen.tolist()]] = 1.0
    return columns.expand(height, width).clone()


def sampled_centre(mask: Tensor) -> int:
    """Width of the symmetric band of whole columns about the lowest frequency of (H,W), pixels."""
    full = mask.bool().all(dim=0).tolist()
    middle = len(full) // 2
    reach = min(middle + 1, len(full) - middle)
    sampled = [full[middle - k] and full[middle + k] for k in range(reach)]
    return max(0, 2 * [*sampled, False].index(False) - 1)


class Operator(Protocol):
    """A linear map A from images (B,C,H,W), real, to measurements, and its adjoint A* back."""

    def forward(self, image: Tensor) -> Tensor: ...

    def adjoint(self, measurement: Tensor) -> Tensor: ...


class Within:
    """The image inside a region, 0 outside: its own adjoint. All ones: denoising."""

    def __init__(self, region: Tensor) -> None:
        """region (B,C,H,W) or what broadcasts to it, of 0 and 1."""
        self.region = region

    def forward(self, image: Tensor) -> Tensor:
        return self.region * image

    adjoint = forward


class MaskedFourier:
    """Undersampled Cartesian MRI: mask · fft2c(sensitivity · image), one k-space per coil.

    Example:
        >>> scanner = MaskedFourier(cartesian_mask((32, 32), acceleration=2))
        >>> scanner.forward(torch.rand(1, 1, 32, 32)).dtype
        torch.complex64
    """

    def __init__(
        self,
        mask: Float[Tensor, "H W"],
        sensitivities: Complex[Tensor, "coils H W"] | Complex[Tensor, "b coils H W"] | None = None,
    ) -> None:
        """mask of 0 and 1; without sensitivities there is one coil of ones.

        Slices that differ in phase have sensitivities of their own: (b,coils,H,W); images then
        come in batches of n·b, slice by slice. Raises ValueError on other shapes.
        """
        if sensitivities is None:
            sensitivities = torch.ones((1, *mask.shape), dtype=mask.dtype)
        if sensitivities.ndim not in (3, 4) or sensitivities.shape[-2:] != mask.shape:
            raise ValueError(
                f"sensitivities {tuple(sensitivities.shape)} must be (coils,H,W) for a mask of "
                f"{tuple(mask.shape)}"
            )
        self.mask = mask
        self.sensitivities = sensitivities if sensitivities.ndim == 4 else sensitivities[None]

    def forward(self, image: Float[Tensor, "B 1 H W"]) -> Complex[Tensor, "B coils H W"]:
        """k-space, 0 where nothing was measured. Raises ValueError for images of another shape."""
        slices = len(self.sensitivities)
        if image.shape[1:] != (1, *self.mask.shape) or len(image) % slices:
            raise ValueError(
                f"images {tuple(image.shape)} do not fit a mask of {tuple(self.mask.shape)} for "
                f"{slices} slices"
            )
        coils = self.sensitivities * image.unflatten(0, (-1, slices))
        return self.mask * fft2c(coils.flatten(0, 1))

    def adjoint(self, measurement: Complex[Tensor, "B coils H W"]) -> Float[Tensor, "B 1 H W"]:
        """Zero filling, coils combined, the real part."""
        coils = ifft2c(self.mask * measurement).unflatten(0, (-1, len(self.sensitivities)))
        combined = (self.sensitivities.conj() * coils).flatten(0, 1)
        return combined.sum(dim=1, keepdim=True).real


class GaussianBlur:
    """Circular convolution with a Gaussian, by its transfer function exp(−2π²s²|f|²)."""

    def __init__(self, width: float, shape: tuple[int, int]) -> None:
        """width: the Gaussian's s, pixels; shape (H,W) of the images."""
        rows = torch.fft.fftfreq(shape[0], dtype=torch.float64)[:, None]
        columns = torch.fft.rfftfreq(shape[1], dtype=torch.float64)[None, :]
        self.shape = shape
        self.transfer = (-2 * (torch.pi * width) ** 2 * (rows**2 + columns**2)).exp()

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        transfer = self.transfer.to(image.dtype)
        return torch.fft.irfft2(torch.fft.rfft2(image) * transfer, s=self.shape)

    adjoint = forward  # its kernel is even


class Downsampling:
    """Pixels of factor × factor pixels' mean: (B,C,H,W) -> (B,C,H/factor,W/factor)."""

    def __init__(self, factor: int, shape: tuple[int, int]) -> None:
        """Raises ValueError where the factor is below 1 or does not divide (H,W)."""
        if factor < 1 or any(side % factor for side in shape):
            raise ValueError(f"factor {factor} must divide the image of {shape[0]}x{shape[1]}")
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(image, self.factor)

    def adjoint(self, measurement: Tensor) -> Tensor:
        spread = measurement.repeat_interleave(self.factor, -2)
        return spread.repeat_interleave(self.factor, -1) / self.factor**2


class Composed:
    """One operator after another, in the order in which they act on the image."""

    def __init__(self, *operators: Operator) -> None:
        self.operators = operators

    def forward(self, image: Tensor) -> Tensor:
        for operator in self.operators:
            image = operator.forward(image)
        return image

    def adjoint(self, measurement: Tensor) -> Tensor:
        for operator in reversed(self.operators):
            measurement = operator.adjoint(measurement)
        return measurement


def squared_norm(operator: Operator, like: Tensor, iterations: int = 20) -> float:
    """‖A‖², 5% more than the power iteration's from a fixed start; like: images (B,C,H,W)."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    size = 1.0
    for _ in range(iterations):
        vector = operator.adjoint(operator.forward(vector / vector.norm()))
        size = float(vector.norm())
        if not size > 0:
            return 0.0
    return 1.05 * size  # from below: a little more keeps the steps safe


def smooth_sensitivities(coils: int, shape: tuple[int, int]) -> Tensor:
    """Made-up coils around the head: complex64 (coils,H,W) with Σ|S|² = 1 in every pixel.

    Each coil sits on a circle of 1.2 times the half width, falls off as a Gaussian of 0.9 times
    it, and has a linear phase. One coil is 1 everywhere.
    """
    if coils == 1:
        return torch.ones((1, *shape), dtype=torch.complex64)
    rows = torch.linspace(-1, 1, shape[0])[:, None]
    columns = torch.linspace(-1, 1, shape[1])[None, :]
    angles = 2 * torch.pi * torch.arange(coils)[:, None, None] / coils
    squared = (rows - 1.2 * angles.sin()).square() + (columns - 1.2 * angles.cos()).square()
    size = (-squared / (2 * 0.9**2)).exp()
    phase = angles + 0.8 * (rows * angles.sin() + columns * angles.cos())
    maps = torch.polar(size, phase.expand_as(size).contiguous())
    return maps / maps.abs().square().sum(dim=0).sqrt()


def smooth_phase(shape: tuple[int, int], largest: float) -> Tensor:
    """A made-up phase of the object (H,W), radians, from −largest/2 to `largest`.

    Half a period of a cosine down the rows and one of a sine along the columns, as the field's
    inhomogeneity leaves it in a gradient echo.
    """
    rows = torch.linspace(-1, 1, shape[0])[:, None]
    columns = torch.linspace(-1, 1, shape[1])[None, :]
    return largest / 2 * ((torch.pi * rows / 2).cos() + (torch.pi * columns).sin())


def complex_noise(like: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """White Gaussian noise of a measurement's shape; `deviation` is that of each real number."""
    if not like.is_complex():
        return deviation * torch.randn(like.shape, generator=generator, dtype=like.dtype)
    real = torch.randn((*like.shape, 2), generator=generator, dtype=like.real.dtype)
    return deviation * torch.view_as_complex(real)
