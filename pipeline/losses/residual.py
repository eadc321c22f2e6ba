"""What the residuals of a trained decoder are: a law fitted beside the term that trained it.

The weight that trains a sharp decoder need not be the law that its residuals follow. Here that law
is fitted with the decoder untouched: N(x̂, S C S) of `blur.scaled`, S from a small convolutional
network on the reconstruction, C from one value a radial frequency. The mean stays as it was
trained, as Stirn et al. ask of a variance (Faithful Heteroscedastic Regression with Neural
Networks, AISTATS 2023, arXiv 2212.09184); the kernel's step of Bredell et al. 2023 is the same
idea.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.blur.radial import RadialBins
from pipeline.blur.spectrum import half_spectrum, power
from pipeline.losses.law import GaussianLaw
from pipeline.losses.shapes import Images, Precision, Shape
from pipeline.models.scale_network import ScaleNetwork

# Deviation that the fit begins at, intensity.
START = 0.05
# Of the running mean of C's spectrum, a batch; and the least power of a bin, without unit.
MOMENTUM = 0.95
LEAST_POWER = 1e-6


class ResidualLaw(nn.Module):
    """N(0, S C S) with S = diag(s(x̂)), s = floor + factor · s₁(x̂), and one C for all images.

    s₁ is the sigmoid of a ScaleNetwork, the reconstruction its input, so at most 1. C⁻¹ has the
    eigenvalue λ_r for all frequencies of a radial bin r (distance from the origin, rounded, in
    steps of 1/max(H,W) cycles/pixel), so scaled that C has a diagonal of ones: s is the standard
    deviation of a pixel's residual. `factor` is 1 until `calibrate`.

    Without the floor the density is unbounded where images are constant, as the surround of a head
    is: every bound under this law must say it.
    """

    variance: Float[Tensor, " bins"]
    factor: Float[Tensor, ""]
    floor: Float[Tensor, ""]

    def __init__(self, image_shape: Shape, floor: float) -> None:
        """image_shape (C,H,W); floor, intensity. Raises ValueError unless the floor is positive."""
        super().__init__()
        if not floor > 0:
            raise ValueError(f"the floor of a deviation must be positive, not {floor}")
        self.network = ScaleNetwork(image_shape, math.log(START / (1 - START)))
        self.bins = RadialBins(*image_shape[1:])
        self.register_buffer("variance", torch.ones(len(self.bins)))
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("floor", torch.tensor(float(floor)))

    def unscaled(self, reconstruction: Images) -> Images:
        """s₁(x̂), before factor and floor, intensity."""
        with torch.autocast(reconstruction.device.type, enabled=False):
            return self.network(reconstruction.float()).sigmoid()

    @property
    def precision(self) -> Precision:
        """λ; the mean of 1/λ over all frequencies is 1."""
        return self.bins.spread(self.bins.average(self.variance) / self.variance)

    @torch.no_grad()
    def follow(self, residual: Images, deviation: Images) -> None:
        """Move C towards the likeliest for a batch of residuals and their s.

        That is the mean power of e/s in each radial bin; a running mean over batches keeps it.
        """
        found = self.bins.mean(power(half_spectrum(residual / deviation))).clamp_min(LEAST_POWER)
        self.variance.lerp_(found, 1 - MOMENTUM)

    def forward(self, reconstruction: Images) -> GaussianLaw:
        """The law of the residuals of reconstructions."""
        deviation = self.floor + self.factor * self.unscaled(reconstruction)
        return GaussianLaw(deviation, self.precision)

    @torch.no_grad()
    def calibrate(
        self, residual: Float[Tensor, "*pixels"], unscaled: Float[Tensor, "*pixels"], level: float
    ) -> None:
        """Set the factor with which a share `level` of residuals lies within their intervals.

        The pixels are those of subjects that the law was not fitted to. Split conformal (Vovk et
        al. 2005; Lei et al. 2018): each pixel has the least factor whose interval holds it, and the
        ⌈(n+1)·level⌉-th of n is taken. At least 0.1.
        """
        quantile = math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()
        least = ((residual.abs() / quantile - self.floor) / unscaled).flatten()
        place = min(math.ceil((len(least) + 1) * level), len(least))
        self.factor.copy_(least.kthvalue(place).values.clamp_min(0.1))
