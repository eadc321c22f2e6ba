"""The law that a residual x − x̂ follows under a density: what all users of a term ask it for."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from pipeline.blur.likelihood import gaussian_nll, marginal_variance, sample_residual, whiten

# (C,H,W) of an image.
Shape = tuple[int, int, int]
# Images, reconstructions or residuals, intensity in units of [0,1].
Images = Float[Tensor, "B C H W"]
Mask = Bool[Tensor, "B #C H W"]
PerImage = Float[Tensor, " B"]
Precision = Float[Tensor, "#B 1 H half_W"]
# Transfer function of the kernel that the model blurs with; None where there is no kernel.
Transfer = Complex[Tensor, "#B 1 H half_W"] | None
# One number, or what else broadcasts to (B,C,H,W).
Deviation = Float[Tensor, ""] | Float[Tensor, "#B #C #H #W"]


@dataclass(frozen=True)
class GaussianLaw:
    """N(0, S C S): a deviation of its own at every pixel, and a common spectrum.

    S = diag(s), s > 0 the deviation, intensity; C stationary, its inverse circulant with
    eigenvalues λ, the precision. The residual in units of s, e/s, is what a stationary law with
    σ = 1 judges, so that

        −log p = ½ Σ λ|F(e/s)|² + Σ log s − ½ Σ log λ + (D/2) log 2π   exact: two FFTs, no solver

    Where the mean of 1/λ is 1, C has a diagonal of ones, and s is the standard deviation of a
    pixel's residual.
    """

    deviation: Deviation
    precision: Precision

    def nll(self, residual: Images) -> PerImage:
        """Negative log-likelihood of each image, nats, every constant included."""
        every = self.deviation.expand_as(residual)
        unscaled = gaussian_nll(residual / every, self.precision, 1.0)
        return unscaled + every.log().sum(dim=(1, 2, 3))

    def whiten(self, residual: Images) -> Images:
        """The residual as white noise of variance 1, C^(-1/2) S⁻¹ e; each value at its pixel."""
        return whiten(residual / self.deviation, self.precision, 1.0)

    def sample(self, shape: torch.Size, generator: torch.Generator | None = None) -> Images:
        """Residuals drawn from the law, intensity; shape: (B,C,H,W)."""
        batch, channels, _, width = shape
        every = self.precision.expand(batch, -1, -1, -1)
        return self.deviation * sample_residual(every, 1.0, channels, width, generator)

    def standard_deviation(self, shape: torch.Size) -> Images:
        """Of each pixel's residual, intensity; shape: (B,C,H,W)."""
        pixel = marginal_variance(self.precision, 1.0, shape[-1]).sqrt().reshape(-1, 1, 1, 1)
        return (self.deviation * pixel).expand(shape)

    def half_width(self, level: float, shape: torch.Size) -> Images:
        """Half the width of each pixel's interval that holds a share `level`, intensity."""
        quantile = math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()
        return quantile * self.standard_deviation(shape)

    def cdf(self, residual: Images) -> Images:
        """Probability of a smaller residual at each pixel, in [0,1]."""
        return torch.special.ndtr(residual / self.standard_deviation(residual.shape))

    def crps(self, residual: Images) -> Images:
        """Continuous ranked probability score of each pixel, intensity.

        ∫ (F(t) − 1[t ≥ e])² dt; a point forecast's is its absolute error (Gneiting, Raftery 2007).
        """
        deviation = self.standard_deviation(residual.shape)
        units = residual / deviation
        density = (-0.5 * units.square()).exp() / math.sqrt(2 * math.pi)
        inner = units * (2 * torch.special.ndtr(units) - 1) + 2 * density - 1 / math.sqrt(math.pi)
        return deviation * inner


@dataclass(frozen=True)
class LaplaceLaw:
    """Independent at every pixel, density exp(−|e|/b)/2b; scale is b, intensity.

    Its methods are GaussianLaw's.
    """

    scale: Float[Tensor, ""]

    def nll(self, residual: Images) -> PerImage:
        values = residual[0].numel()
        absolute = residual.abs().sum(dim=(1, 2, 3))
        return absolute / self.scale + values * (math.log(2) + self.scale.log())

    def standard_deviation(self, shape: torch.Size) -> Images:
        return (math.sqrt(2) * self.scale).expand(shape)

    def half_width(self, level: float, shape: torch.Size) -> Images:
        return (-math.log(1 - level) * self.scale).expand(shape)  # P(|e| > t) = exp(−t/b)

    def cdf(self, residual: Images) -> Images:
        tail = 0.5 * (-residual.abs() / self.scale).exp()
        return torch.where(residual < 0, tail, 1 - tail)

    def crps(self, residual: Images) -> Images:
        size = residual.abs()
        return size + self.scale * ((-size / self.scale).exp() - 0.75)


Law = GaussianLaw | LaplaceLaw
