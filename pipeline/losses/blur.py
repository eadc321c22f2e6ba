"""The blur-minimising likelihood (Bredell et al. 2023)."""

from dataclasses import replace
from typing import ClassVar

from jaxtyping import Complex
from torch import Tensor

from pipeline.blur.likelihood import log_determinant, quadratic_form
from pipeline.blur.spectrum import half_spectrum, precision
from pipeline.losses.base import Distortion
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.gaussian import Gaussian
from pipeline.losses.law import GaussianLaw, Law
from pipeline.losses.shapes import Images, Precision, Shape, Transfer


class Blur(Gaussian):
    """−log N(x; x̂, σ²Σ_k), Σ_k⁻¹ circulant with the precision spectrum of the kernel, nats.

    Without a kernel, as in the warm-up, it is the plain Gaussian.
    """

    needs_kernel: ClassVar[bool] = True

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        self.constant = config.constant
        self.form = config.form

    def law(self, transfer: Transfer) -> Law:
        if transfer is None:
            return super().law(transfer)
        return GaussianLaw(self.scale.trained(), self.precision(transfer))

    def precision(self, transfer: Complex[Tensor, "B 1 H half_W"]) -> Precision:
        """λ by the kernels' transfer functions."""
        return precision(transfer, self.constant, self.form)

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        if transfer is None:
            return super().compare(image, reconstruction, transfer)
        channels, height, width = image.shape[1:]
        weights = self.precision(transfer)
        spectrum = half_spectrum(image - reconstruction)
        found = self.distortion(
            quadratic_form(spectrum, weights, width),
            image[0],
            log_determinant(weights, (channels, height, width)),
        )
        return replace(found, spectrum=spectrum)
