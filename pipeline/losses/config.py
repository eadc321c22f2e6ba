"""The `likelihood` section of the configuration."""

from dataclasses import dataclass, field
from typing import Literal

from data_prep.common.errors import require
from pipeline.blur import Form


@dataclass(frozen=True)
class LikelihoodConfig:
    """Which reconstruction term is trained, and its constants.

    Example:
        >>> LikelihoodConfig(form="positive_definite").constant
        0.025
    """

    term: str = "blur"
    """blur, fourier_gaussian, gaussian, laplace, robust (densities), focal_frequency, ms_ssim,
    ssim, vgg, watson_dft (distances)."""
    scale: Literal["optimal"] | float = "optimal"
    """Scale of a density in intensity units: a number, or optimal, the maximum-likelihood value of
    each batch (gaussian and blur: σ̂² = mean of λ|E|²); robust learns it."""
    form: Form = "wiener"
    """Precision spectrum of the blur term: wiener (literal) or positive_definite."""
    constant: float = 0.025
    """C of the blur term."""
    kernel_size: int = 11
    """Side of the blur kernel in pixels, odd: 11 at 64², 41 at 256²."""
    warmup_epochs: int = 10
    """Epochs under the plain Gaussian term, whatever the term: the kernel network settles, and no
    term starts from noise, where under some terms the latent never carries anything."""
    detach_kernel: bool = True
    """Whether encoder and decoder see the kernel as a constant; else they can change it by z."""
    residual: Literal["fitted", "none"] = "fitted"
    """Whether a law of the residuals is fitted after the training, the decoder untouched: with it
    error bars and analyses are calibrated, whatever the term."""
    residual_floor: float = 1 / 255
    """Least standard deviation of that law, intensity: without one its density has no bound where
    images are constant. Bounds under the law depend on it."""
    residual_steps: int = 100
    """Steps of that fit, batches of 16 validation slices; and of two more, of half the families
    each, which calibrate it."""
    vgg_weights: str = field(default="", metadata={"where": True})
    """VGG16 weights of the vgg term (torchvision's state dict); "" = look in the usual places."""

    def __post_init__(self) -> None:
        if self.scale != "optimal" and float(self.scale) <= 0:
            raise ValueError(f"likelihood.scale must be optimal or positive, not {self.scale}")
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise ValueError(
                f"likelihood.kernel_size must be odd and at least 3, not {self.kernel_size}"
            )
        require("likelihood", self, "> 0", "constant", "residual_floor")
        require("likelihood", self, ">= 1", "residual_steps")
        require("likelihood", self, ">= 0", "warmup_epochs")
