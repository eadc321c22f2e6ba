"""Distances without unit that need no more than the two images: 0 where these are equal."""

from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from pipeline.blur.spectrum import half_spectrum, half_spectrum_sum, power
from pipeline.losses.base import Distortion, ReconstructionTerm
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import Images, Shape, Transfer

# Errors of this size, intensity units, count for half a pixel value each where the focal weight
# is 1.
UNIT = 0.05
# Side of SSIM's Gaussian window of σ = 1.5 pixels, as torchmetrics cuts it.
WINDOW = 11
# MS-SSIM's published exponents, finest scale first.
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# A negative similarity has no real power, and 0 no finite slope: both count as this.
FLOOR = 1e-4


class FocalFrequency(ReconstructionTerm):
    """Σ_ω w|E|² / (2 · 0.05²), a distance without unit; E the residual's orthonormal transform.

    w = |E|^α / max_ω |E|^α with α = 1, for each image and channel, without gradient: the worst
    frequencies count most. Jiang, Dai, Wu, Loy, Focal Frequency Loss for Image Reconstruction
    and Synthesis, ICCV 2021, arXiv 2012.12821. The published loss is Σ w|E|² / D; the constant
    brings it to the order of the number of pixel values.
    """

    density: ClassVar[bool] = False

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        spectrum = half_spectrum(image - reconstruction)
        squared = power(spectrum)
        with torch.no_grad():
            modulus = squared.sqrt()
            tiny = torch.finfo(modulus.dtype).tiny
            weight = modulus / modulus.amax(dim=(-2, -1), keepdim=True).clamp_min(tiny)
        weighted = half_spectrum_sum(weight * squared, image.shape[-1]).sum(dim=1)
        return Distortion(weighted / (2 * UNIT**2), spectrum=spectrum)


class Ssim(ReconstructionTerm):
    """D · (1 − SSIM(x, x̂)), a distance without unit, between 0 and 2D.

    SSIM = (2μμ̂ + C₁)(2σ_xx̂ + C₂) / ((μ² + μ̂² + C₁)(σ² + σ̂² + C₂)), from means and variances under
    a Gaussian window of σ = 1.5 (11 pixels), C₁ = 0.01², C₂ = 0.03² for intensities in [0,1],
    averaged over channels and all pixels, the border reflected; torchmetrics computes it. Wang,
    Bovik, Sheikh, Simoncelli, Image Quality Assessment: From Error Visibility to Structural
    Similarity, IEEE TIP 2004.
    """

    density: ClassVar[bool] = False

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        if min(image_shape[1:]) < WINDOW:
            raise ValueError(
                f"likelihood.term {config.term} needs images of {WINDOW} pixels a side or more"
            )

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        return Distortion(self.values * (1 - self.similarity(image, reconstruction)))

    @staticmethod
    def similarity(image: Images, reconstruction: Images, **options: Any) -> Any:
        """torchmetrics' index of each image; options: its."""
        # Ten seconds, which training under another term need not wait.
        from torchmetrics.functional.image import structural_similarity_index_measure

        return structural_similarity_index_measure(
            reconstruction, image, data_range=1.0, reduction="none", **options
        )


class MultiScaleSsim(Ssim):
    """D · (1 − MS-SSIM(x, x̂)), a distance without unit, between 0 and D.

    MS-SSIM = Π_j cs_j^β_j · SSIM_M^β_M: contrast-structure cs of M scales, halved by averaging 2×2
    pixels, luminance at the coarsest alone. Windows as in `Ssim`. Wang, Simoncelli, Bovik,
    Multiscale Structural Similarity for Image Quality Assessment, Asilomar 2003.

    The five published scales need a side of 176 pixels. Below that there are as many as leave the
    coarsest image no smaller than the window (2 at 32², 3 at 64², 4 at 128²), with the first M
    published exponents over their sum. torchmetrics gives SSIM and cs of each scale; its own
    product has no finite gradient where a cs is 0 or below.
    """

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        side = min(image_shape[1:])
        scales = sum(side // 2**scale >= WINDOW for scale in range(len(EXPONENTS)))
        self.exponents = [e / sum(EXPONENTS[:scales]) for e in EXPONENTS[:scales]]

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        logarithm = torch.zeros_like(image[:, 0, 0, 0])
        for scale, exponent in enumerate(self.exponents):
            if scale:
                image, reconstruction = (F.avg_pool2d(x, 2) for x in (image, reconstruction))
            similarity, contrast = self.similarity(
                image, reconstruction, return_contrast_sensitivity=True
            )
            last = scale == len(self.exponents) - 1
            chosen = similarity if last else contrast
            logarithm = logarithm + exponent * chosen.clamp_min(FLOOR).log()
        return Distortion(-self.values * logarithm.expm1())
