"""The law that a residual x − x̂ follows under a density: what all users of a term ask it for."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.blur.scaled import (
    Deviation,
    marginal_deviation,
    scaled_nll,
    scaled_sample,
    scaled_whitening,
)
from pipeline.losses.shapes import Images, PerImage, Precision


class Law(Protocol):
    """A distribution of the residuals of a batch, intensity."""

    def nll(self, residual: Images) -> PerImage:
        """Negative log-likelihood of each image, nats, every constant included."""
        ...

    def standard_deviation(self, shape: torch.Size) -> Images:
        """Of each pixel's residual, intensity; shape: (B,C,H,W)."""
        ...

    def half_width(self, level: float, shape: torch.Size) -> Images:
        """Half the width of each pixel's interval that holds a share `level`, intensity."""
        ...

    def cdf(self, residual: Images) -> Images:
        """Probability of a smaller residual at each pixel, in [0,1]."""
        ...

    def crps(self, residual: Images) -> Images:
        """Continuous ranked probability score of each pixel, intensity.

        ∫ (F(t) − 1[t ≥ e])² dt; a point forecast's is its absolute error (Gneiting, Raftery 2007).
        """
        ...


@dataclass(frozen=True)
class GaussianLaw:
    """N(0, S C S) with S = diag(deviation), intensity; see `pipeline.blur.scaled`."""

    deviation: Deviation
    precision: Precision

    def nll(self, residual: Images) -> PerImage:
        return scaled_nll(residual, self.deviation, self.precision)

    def whiten(self, residual: Images) -> Images:
        """The residual as white noise of variance 1, standard deviations."""
        return scaled_whitening(residual, self.deviation, self.precision)

    def sample(self, shape: torch.Size, generator: torch.Generator | None = None) -> Images:
        """Residuals drawn from the law, intensity."""
        return scaled_sample(self.deviation.expand(shape), self.precision, generator)

    def standard_deviation(self, shape: torch.Size) -> Images:
        return marginal_deviation(self.deviation, self.precision, shape[-1]).expand(shape)

    def half_width(self, level: float, shape: torch.Size) -> Images:
        quantile = math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()
        return quantile * self.standard_deviation(shape)

    def cdf(self, residual: Images) -> Images:
        return torch.special.ndtr(residual / self.standard_deviation(residual.shape))

    def crps(self, residual: Images) -> Images:
        deviation = self.standard_deviation(residual.shape)
        units = residual / deviation
        density = (-0.5 * units.square()).exp() / math.sqrt(2 * math.pi)
        inner = units * (2 * torch.special.ndtr(units) - 1) + 2 * density - 1 / math.sqrt(math.pi)
        return deviation * inner


@dataclass(frozen=True)
class LaplaceLaw:
    """Independent at every pixel, density exp(−|e|/b)/2b; scale is b, intensity."""

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
