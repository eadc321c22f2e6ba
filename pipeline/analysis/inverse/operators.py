"""Forward operators: how a scanner or a degradation turns an image into a measurement.

One protocol serves reconstruction and restoration. Images are real, (B,C,H,W); measurements are
real or complex. The inner product of two measurements is Re Σ u* v, so that `adjoint` is that of a
map between real vector spaces: ⟨Ax, y⟩ = ⟨x, A*y⟩.
"""

from typing import Protocol

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from pipeline.analysis.inverse.fourier import fft2c, ifft2c


class Operator(Protocol):
    """A linear map A from images to measurements, and its adjoint A*."""

    def forward(self, image: Tensor) -> Tensor:
        """A x: (B,C,H,W) real -> the measurement."""
        ...

    def adjoint(self, measurement: Tensor) -> Tensor:
        """A* y: a measurement -> (B,C,H,W) real."""
        ...


class Identity:
    """The image itself: denoising."""

    def forward(self, image: Tensor) -> Tensor:
        return image

    def adjoint(self, measurement: Tensor) -> Tensor:
        return measurement


class Within:
    """The image inside a region, 0 outside: its own adjoint."""

    def __init__(self, region: Tensor) -> None:
        """region (B,C,H,W) or what broadcasts to it, of 0 and 1."""
        self.region = region

    def forward(self, image: Tensor) -> Tensor:
        return self.region * image

    def adjoint(self, measurement: Tensor) -> Tensor:
        return self.region * measurement


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
        if mask.ndim != 2:
            raise ValueError(f"mask must be (H,W), not {tuple(mask.shape)}")
        if sensitivities is None:
            sensitivities = torch.ones((1, *mask.shape), dtype=mask.dtype)
        if sensitivities.ndim not in (3, 4) or sensitivities.shape[-2:] != mask.shape:
            raise ValueError(
                f"sensitivities must be (coils,{mask.shape[0]},{mask.shape[1]}), "
                f"not {tuple(sensitivities.shape)}"
            )
        self.mask = mask
        self.sensitivities = sensitivities if sensitivities.ndim == 4 else sensitivities[None]

    def forward(self, image: Float[Tensor, "B 1 H W"]) -> Complex[Tensor, "B coils H W"]:
        """k-space, 0 where nothing was measured."""
        slices = len(self.sensitivities)
        if image.shape[1:] != (1, *self.mask.shape) or len(image) % slices:
            raise ValueError(f"images {tuple(image.shape)} do not fit a mask of "
                             f"{tuple(self.mask.shape)} for {slices} slices")  # fmt: skip
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
        """width: the Gaussian's s, pixels, not negative; shape (H,W) of the images."""
        if not width >= 0:
            raise ValueError(f"blur must not be negative, not {width}")
        rows = torch.fft.fftfreq(shape[0], dtype=torch.float64)[:, None]
        columns = torch.fft.rfftfreq(shape[1], dtype=torch.float64)[None, :]
        exponent = -2 * (torch.pi * width) ** 2 * (rows.square() + columns.square())
        self.shape = shape
        self.transfer = exponent.exp()

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        transfer = self.transfer.to(image.dtype)
        return torch.fft.irfft2(torch.fft.rfft2(image) * transfer, s=self.shape)

    def adjoint(self, measurement: Tensor) -> Tensor:
        """The blur itself: its kernel is even."""
        return self.forward(measurement)


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
    """One operator after another: A = last · … · first."""

    def __init__(self, *operators: Operator) -> None:
        """operators: in the order in which they act on the image."""
        self.operators = operators

    def forward(self, image: Tensor) -> Tensor:
        for operator in self.operators:
            image = operator.forward(image)
        return image

    def adjoint(self, measurement: Tensor) -> Tensor:
        for operator in reversed(self.operators):
            measurement = operator.adjoint(measurement)
        return measurement


def smooth_sensitivities(coils: int, shape: tuple[int, int]) -> Tensor:
    """Made-up coils around the head: complex64 (coils,H,W) with Σ|S|² = 1 in every pixel.

    Each coil sits on a circle of 1.2 times the half width, falls off as a Gaussian of 0.9 times
    it, and has a linear phase.
    """
    if coils < 1:
        raise ValueError(f"coils must be at least 1, not {coils}")
    if coils == 1:
        return torch.ones((1, *shape), dtype=torch.complex64)
    rows = torch.linspace(-1, 1, shape[0])[:, None]
    columns = torch.linspace(-1, 1, shape[1])[None, :]
    angles = 2 * torch.pi * torch.arange(coils)[:, None, None] / coils
    centre_row, centre_column = 1.2 * angles.sin(), 1.2 * angles.cos()
    squared = (rows - centre_row).square() + (columns - centre_column).square()
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
