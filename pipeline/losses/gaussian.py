"""The isotropic Gaussian: L2 with a scale (σ-VAE, Rybkin et al. 2021)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pipeline.blur.likelihood import nll, optimal_scale
from pipeline.losses.base import Distortion, ReconstructionTerm, Scale
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import GaussianLaw, Law
from pipeline.losses.shapes import Images, PerImage, Shape, Transfer


class Gaussian(ReconstructionTerm):
    """−log N(x; x̂, σ²I) = ‖x − x̂‖²/(2σ²) + D log σ + (D/2) log 2π, nats."""

    density: ClassVar[bool] = True

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        self.scale = Scale(config.scale)
        _, self.height, self.width = image_shape

    @property
    def has_scale(self) -> bool:
        return self.scale.is_set

    def law(self, transfer: Transfer) -> Law:
        scale = self.scale.trained()
        return GaussianLaw(scale, scale.new_ones((1, 1, self.height, self.width // 2 + 1)))

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        return self.distortion((image - reconstruction).square().sum(dim=(1, 2, 3)), image[0])

    def distortion(
        self,
        quadratic: PerImage,
        image: Float[Tensor, "C H W"],
        log_determinant: PerImage | float = 0.0,
    ) -> Distortion:
        """From the residual's quadratic form and the precision's log-determinant."""
        scale = self.scale(optimal_scale(quadratic, image.numel()))
        return Distortion(nll(quadratic, log_determinant, image.numel(), scale), scale)
