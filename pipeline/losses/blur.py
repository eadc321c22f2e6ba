"""The blur-minimising likelihood (Bredell et al. 2023)."""

from typing import ClassVar

from torch import Tensor

from pipeline.blur.likelihood import log_determinant, quadratic_form
from pipeline.blur.spectrum import precision, transfer_function
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.gaussian import Gaussian


class Blur(Gaussian):
    """−log N(x; x̂, σ²Σ_k), Σ_k⁻¹ circulant with the precision spectrum of the kernel, nats.

    Without a kernel, as in the warm-up, it is the plain Gaussian.
    """

    needs_kernel: ClassVar[bool] = True

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__(config)
        self.constant = config.constant
        self.form = config.form

    def quadratic(
        self, image: Tensor, reconstruction: Tensor, kernel: Tensor | None
    ) -> tuple[Tensor, Tensor | float]:
        if kernel is None:
            return super().quadratic(image, reconstruction, kernel)
        channels, height, width = image.shape[1:]
        spectrum = precision(transfer_function(kernel, (height, width)), self.constant, self.form)
        quadratic = quadratic_form(image - reconstruction, spectrum)
        return quadratic, log_determinant(spectrum, (channels, height, width))
