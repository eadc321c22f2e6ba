"""The Laplace density: L1 with a scale."""

import math
from typing import ClassVar

from pipeline.losses.base import Distortion, ReconstructionTerm, Scale
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import LaplaceLaw, Law
from pipeline.losses.shapes import Images, Shape, Transfer


class Laplace(ReconstructionTerm):
    """−log Π 1/(2b) exp(−|x − x̂|/b) = ‖x − x̂‖₁/b + D log 2b, nats.

    Laplace 1774; the optimal b is the mean of |x − x̂| over the batch, as the optimal σ of a
    Gaussian is its root mean square (σ-VAE, Rybkin et al. 2021, arXiv 2006.13202).
    """

    density: ClassVar[bool] = True

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        self.scale = Scale(config.scale, power=1)

    @property
    def has_scale(self) -> bool:
        return self.scale.is_set

    def law(self, transfer: Transfer) -> Law:
        return LaplaceLaw(self.scale.trained())

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        absolute = (image - reconstruction).abs().sum(dim=(1, 2, 3))
        optimal = (absolute.detach().mean() / self.values).clamp_min(1e-6)
        scale = self.scale(optimal)
        return Distortion(absolute / scale + self.values * (math.log(2) + scale.log()), scale)
