"""The law that a residual x − x̂ follows under a density: what all users of a term ask it for."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.blur.scaled import (
    marginal_deviation,
    scaled_nll,
    scaled_sample,
    scaled_whitening,
)


class Law(Protocol):
    """A distribution of the residuals (B,C,H,W) of a batch, intensity units."""

    def nll(self, residual: Tensor) -> Tensor:
        """Negative log-likelihood of each image, nats, every constant included: (B,)."""
        ...

    def standard_deviation(self, shape: torch.Size) -> Tensor:
        """Of each pixel's residual: (B,C,H,W), the shape asked for."""
        ...

    def half_width(self, level: float, shape: torch.Size) -> Tensor:
        """Half the width of each pixel's interval that holds a share `level`: (B,C,H,W)."""
        ...

    def cdf(self, residual: Tensor) -> Tensor:
        """Probability of a smaller residual at each pixel, in [0,1]: (B,C,H,W)."""
        ...

    def crps(self, residual: Tensor) -> Tensor:
        """Continuous ranked probability score of each pixel, intensity: (B,C,H,W).

        ∫ (F(t) − 1[t ≥ e])² dt; a point forecast's is its absolute error (Gneiting, Raftery 2007).
        """
        ...


@dataclass(frozen=True)
class GaussianLaw:
    """N(0, S C S); see `pipeline.blur.scaled`.

    deviation: s, what broadcasts to (B,C,H,W), intensity; precision λ (B or 1,1,H,W//2+1).
    """

    deviation: Tensor
    precision: Tensor

    def nll(self, residual: Tensor) -> Tensor:
        return scaled_nll(residual, self.deviation, self.precision)

    def whiten(self, residual: Tensor) -> Tensor:
        """The residual as white noise of variance 1: (B,C,H,W), standard deviations."""
        return scaled_whitening(residual, self.deviation, self.precision)

    def sample(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        """Residuals drawn from the law: (B,C,H,W)."""
        return scaled_sample(self.deviation.expand(shape), self.precision, generator)

    def standard_deviation(self, shape: torch.Size) -> Tensor:
        return marginal_deviation(self.deviation, self.precision, shape[-1]).expand(shape)

    def half_width(self, level: float, shape: torch.Size) -> Tensor:
        quantile = math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()
        return quantile * self.standard_deviation(shape)

    def cdf(self, residual: Tensor) -> Tensor:
        return torch.special.ndtr(residual / self.standard_deviation(residual.shape))

    def crps(self, residual: Tensor) -> Tensor:
        deviation = self.standard_deviation(residual.shape)
        units = residual / deviation
        density = (-0.5 * units.square()).exp() / math.sqrt(2 * math.pi)
        inner = units * (2 * torch.special.ndtr(units) - 1) + 2 * density - 1 / math.sqrt(math.pi)
        return deviation * inner


@dataclass(frozen=True)
class LaplaceLaw:
    """Independent at every pixel, density exp(−|e|/b)/2b. scale: b, intensity, ()."""

    scale: Tensor

    def nll(self, residual: Tensor) -> Tensor:
        values = residual[0].numel()
        absolute = residual.abs().sum(dim=(1, 2, 3))
        return absolute / self.scale + values * (math.log(2) + self.scale.log())

    def standard_deviation(self, shape: torch.Size) -> Tensor:
        return (math.sqrt(2) * self.scale).expand(shape)

    def half_width(self, level: float, shape: torch.Size) -> Tensor:
        return (-math.log(1 - level) * self.scale).expand(shape)  # P(|e| > t) = exp(−t/b)

    def cdf(self, residual: Tensor) -> Tensor:
        tail = 0.5 * (-residual.abs() / self.scale).exp()
        return torch.where(residual < 0, tail, 1 - tail)

    def crps(self, residual: Tensor) -> Tensor:
        size = residual.abs()
        return size + self.scale * ((-size / self.scale).exp() - 0.75)
