"""The adaptive robust density."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.losses.base import Distortion, ReconstructionTerm
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.shapes import Images, Shape, Transfer

# α stays this far from 0 and 2, where the formula of ρ has removable singularities.
MARGIN = 1e-3
START = 0.1
# Nodes of the quadrature: t in steps of 1/32 to ±4, so |x| to 2e18 behind the heaviest tail.
_T = torch.arange(-128, 129, dtype=torch.float64) / 32


def rho(error: Float[Tensor, "..."], shape: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """ρ(x, α) = (|α−2|/α) ((x²/|α−2| + 1)^(α/2) − 1) for 0 < α < 2, element by element."""
    rest = 2 - shape
    # (1 + y)^p − 1 by expm1 and log1p: exact for small α and small errors in float32, too.
    return rest / shape * torch.expm1(shape / 2 * torch.log1p(error.square() / rest))


def log_partition(shape: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """log Z(α), Z(α) = ∫ exp(−ρ(x, α)) dx over the real line; float64, differentiable.

    Double-exponential quadrature (Takahasi, Mori 1974): x = sinh(π/2 · sinh t), trapezoids in t.
    """
    t = _T.to(shape.device)
    node = torch.sinh(math.pi / 2 * torch.sinh(t))
    weight = math.pi / 2 * torch.cosh(t) * torch.cosh(math.pi / 2 * torch.sinh(t)) / 32
    exponent = weight.log() - rho(node, shape.double()[..., None])
    return exponent.logsumexp(dim=-1)


class Robust(ReconstructionTerm):
    """−log Π 1/(c Z(α)) exp(−ρ(e/c, α)) = Σ ρ(e/c, α) + D log c + D log Z(α), nats; e = x − x̂.

    ρ is near a square for |e| < c, and beyond it grows as its shape α says: α = 2 is the Gaussian,
    1 is Charbonnier's smooth L1, 0 is Cauchy's. α in (0,2) is learned with the VAE, one for each
    image channel, and so is the scale c, unless `likelihood.scale` fixes it. Barron, A General and
    Adaptive Robust Loss Function, CVPR 2019, arXiv 1701.03077, in pixel space.
    """

    density: ClassVar[bool] = True
    log_scale: Float[Tensor, " C"]

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        channels = image_shape[0]
        start = START if config.scale == "optimal" else float(config.scale)
        log_scale = torch.full((channels,), math.log(start))
        if config.scale == "optimal":
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.logit = nn.Parameter(torch.zeros(channels))

    @property
    def shape(self) -> Float[Tensor, " C"]:
        """α of each channel."""
        return MARGIN + (2 - 2 * MARGIN) * self.logit.sigmoid()

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        scale, shape = self.log_scale.exp(), self.shape
        error = (image - reconstruction) / scale[:, None, None]
        distance = rho(error, shape[:, None, None]).sum(dim=(1, 2, 3))
        constant = self.log_scale + log_partition(shape).to(scale.dtype)
        normaliser = self.values / len(scale) * constant.sum()
        return Distortion(distance + normaliser, scale.detach().mean())
