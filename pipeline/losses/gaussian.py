"""The isotropic Gaussian: L2 with a scale (σ-VAE, Rybkin et al. 2021)."""

from typing import ClassVar

from torch import Tensor

from pipeline.blur.likelihood import nll, optimal_scale
from pipeline.losses.base import Distortion, ReconstructionTerm, Scale
from pipeline.losses.config import LikelihoodConfig


class Gaussian(ReconstructionTerm):
    """−log N(x; x̂, σ²I) = ‖x − x̂‖²/(2σ²) + D log σ + (D/2) log 2π, nats."""

    density: ClassVar[bool] = True

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()
        self.scale = Scale(config.scale)

    def quadratic(
        self, image: Tensor, reconstruction: Tensor, kernel: Tensor | None
    ) -> tuple[Tensor, Tensor | float]:
        """The quadratic form of the residual, (B,), and the log-determinant of the precision."""
        return (image - reconstruction).square().sum(dim=(1, 2, 3)), 0.0

    def forward(self, image: Tensor, reconstruction: Tensor, kernel: Tensor | None) -> Distortion:
        quadratic, log_determinant = self.quadratic(image, reconstruction, kernel)
        values = image[0].numel()
        scale = self.scale(optimal_scale(quadratic, values))
        return Distortion(nll(quadratic, log_determinant, values, scale), scale)
