"""The residuals' law of a trained decoder, fitted beside the term that trained it.

The weight that trains a sharp decoder need not be the law that its residuals follow. Here that law
is fitted with the decoder untouched: N(x̂, S C S) of `law.GaussianLaw`, S from a small convolutional
network on the reconstruction, C from one value a radial frequency. The mean stays as it was
trained, as Stirn et al. ask of a variance (Faithful Heteroscedastic Regression with Neural
Networks, AISTATS 2023, arXiv 2212.09184); the kernel's step of Bredell et al. 2023 is the same
idea.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.blur.spectrum import RadialBins, half_spectrum, power
from pipeline.losses.law import GaussianLaw, Images, Mask, Precision, Shape
from pipeline.models.layers import ResidualBlock, at_least_single, downsample, upsample

# s₁ of a law that has seen no residuals, intensity.
START = 0.05
# Of the running mean of C's spectrum, a batch; and the least power of a bin, without unit.
MOMENTUM = 0.95
LEAST_POWER = 1e-6
# Deviations that a residual may be off and still tell of the spectrum.
MOST = 4.0
# A pixel is at the edge where its neighbourhood of so many pixels has one darker than this.
EDGE_PIXELS, SURROUND = 5, 0.1
# Channels of the scale network at its finest side.
WIDTH = 16


class ScaleNetwork(nn.Module):
    """A logit for each pixel value of images in [0,1], float32.

    A small U-Net (Ronneberger et al. 2015) over three sides, with sums in place of concatenations:
    it sees a pixel's neighbourhood, and roughly where in the image the pixel lies.
    """

    def __init__(self, image_shape: tuple[int, int, int], start: float) -> None:
        """image_shape (C,H,W); start: about the logit that it gives before training.

        Raises ValueError for sides that 4 does not divide.
        """
        super().__init__()
        channels, height, width = image_shape
        if height % 4 or width % 4:
            raise ValueError(f"sides must be multiples of 4, not {height}x{width}")
        self.stem = nn.Sequential(nn.Conv2d(channels, WIDTH, 3, padding=1), ResidualBlock(WIDTH))
        wide = 2 * WIDTH
        self.down = nn.Sequential(downsample(WIDTH, wide, 2), ResidualBlock(wide))
        self.bottom = nn.Sequential(
            downsample(wide, wide, 2), ResidualBlock(wide), upsample(wide, wide, 2)
        )
        self.up = upsample(wide, WIDTH, 2)
        last = nn.Conv2d(WIDTH, channels, 3, padding=1)
        self.head = nn.Sequential(ResidualBlock(WIDTH), nn.LeakyReLU(0.1), last)
        nn.init.normal_(last.weight, std=0.01)
        self.begin(start)

    def begin(self, start: float) -> None:
        """Give about this logit everywhere, as before training."""
        nn.init.constant_(self.head[-1].get_parameter("bias"), start)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        fine = self.stem(image)
        coarse = self.down(fine)
        return at_least_single(self.head(fine + self.up(coarse + self.bottom(coarse))))


class ResidualLaw(nn.Module):
    """N(0, S C S) with S = diag(s(x̂)), s = floor + f(x̂) · s₁(x̂), and one C for all images.

    s₁ is the sigmoid of a ScaleNetwork, the reconstruction its input, so at most 1. C⁻¹ has the
    eigenvalue λ_r for all frequencies of a radial bin r (distance from the origin, rounded, in
    steps of 1/max(H,W) cycles/pixel), so scaled that C has a diagonal of ones: s is the standard
    deviation of a pixel's residual. f is one of two factors, of pixels within and at the edge: a
    pixel at a head's edge is nearly right or far off, and its residual no Gaussian's. They are 1
    until they are calibrated (`fits.residual`).

    Without the floor the density is unbounded where images are constant, as the surround of a head
    is: every bound under this law must say it.
    """

    variance: Float[Tensor, " bins"]
    factors: Float[Tensor, "2"]
    floor: Float[Tensor, ""]

    def __init__(self, image_shape: Shape, floor: float) -> None:
        """image_shape (C,H,W); floor, intensity. Raises ValueError unless the floor is positive."""
        super().__init__()
        if not floor > 0:
            raise ValueError(f"the floor of a deviation must be positive, not {floor}")
        self.network = ScaleNetwork(image_shape, math.log(START / (1 - START)))
        self.bins = RadialBins(*image_shape[1:])
        self.register_buffer("variance", torch.ones(len(self.bins)))
        self.register_buffer("factors", torch.ones(2))
        self.register_buffer("floor", torch.tensor(float(floor)))

    def unscaled(self, reconstruction: Images) -> Images:
        """s₁(x̂), before factors and floor, intensity."""
        with torch.autocast(reconstruction.device.type, enabled=False):
            return self.network(reconstruction.float()).sigmoid()

    def deviation(self, reconstruction: Images) -> Images:
        """s(x̂), intensity."""
        within, edge = self.factors
        factor = torch.where(at_edge(reconstruction), edge, within)
        return self.floor + factor * self.unscaled(reconstruction)

    @property
    def precision(self) -> Precision:
        """λ; the mean of 1/λ over all frequencies is 1."""
        return self.bins.spread(self.bins.average(self.variance) / self.variance)

    @torch.no_grad()
    def begin(self, residual: Images) -> None:
        """Let s₁ be the root mean square of residuals, where the fit of their law begins.

        From a start far above it all of Adam's first steps go one way, and the network's layers
        carry the sigmoid to where it has no gradient that leads back: good models at 256² ended at
        the floor everywhere.
        """
        size = residual.square().mean().sqrt().clamp(self.floor.item(), 0.5)
        self.network.begin(size.logit().item())

    @torch.no_grad()
    def follow(self, residual: Images, deviation: Images) -> None:
        """Move C towards the likeliest for a batch of residuals and their s.

        That is the mean power of e/s in each radial bin; a running mean over batches keeps it. e/s
        is cut at MOST: a dozen bright pixels where the reconstruction is black, two hundred
        deviations off, would else decide the spectrum, and s make up for it everywhere.
        """
        units = (residual / deviation).clamp(-MOST, MOST)
        found = self.bins.mean(power(half_spectrum(units))).clamp_min(LEAST_POWER)
        self.variance.lerp_(found, 1 - MOMENTUM)

    def forward(self, reconstruction: Images) -> GaussianLaw:
        """The law of the residuals of reconstructions."""
        return GaussianLaw(self.deviation(reconstruction), self.precision)

    def least_factors(self, reconstruction: Images, residual: Images, level: float) -> Images:
        """The least factor of each pixel whose interval of `level` holds the residual x − x̂."""
        quantile = math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()
        return (residual.abs() / quantile - self.floor) / self.unscaled(reconstruction)


def at_edge(images: Images) -> Mask:
    """Where the surround is near, of one channel: EDGE_PIXELS square has a pixel below SURROUND."""
    brightest = images.amax(dim=1, keepdim=True)
    darkest = -torch.nn.functional.max_pool2d(-brightest, EDGE_PIXELS, 1, EDGE_PIXELS // 2)
    return darkest < SURROUND
