"""The isotropic Gaussian: L2 with a scale (σ-VAE, Rybkin et al. 2021)."""

from typing import ClassVar

import torch
from torch import Tensor

from pipeline.blur.likelihood import gaussian_nll, optimal_scale
from pipeline.losses.base import Distortion, ReconstructionTerm, Scale
from pipeline.losses.config import LikelihoodConfig


class Gaussian(ReconstructionTerm):
    """−log N(x; x̂, σ²I) = ‖x − x̂‖²/(2σ²) + D log σ + (D/2) log 2π, nats."""

    density: ClassVar[bool] = True

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()
        self.scale = Scale(config.scale)

    def precision(self, shape: tuple[int, int], kernel: Tensor | None) -> Tensor:
        return torch.ones((1, 1, shape[0], shape[1] // 2 + 1), device=self.scale.running.device)

    def forward(self, image: Tensor, reconstruction: Tensor, kernel: Tensor | None) -> Distortion:
        residual = image - reconstruction
        precision = self.precision((image.shape[-2], image.shape[-1]), kernel).to(residual.dtype)
        scale = self.scale(optimal_scale(residual, precision))
        return Distortion(gaussian_nll(residual, precision, scale), scale)
