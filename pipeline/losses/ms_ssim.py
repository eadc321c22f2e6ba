"""Structural similarity at several scales."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from pipeline.losses.base import Distortion, ReconstructionTerm
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.shapes import Images, Shape, Transfer
from pipeline.losses.ssim import WINDOW

# Published exponents, finest scale first.
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# A negative similarity has no real power, and 0 no finite slope: both count as this.
FLOOR = 1e-4


class MultiScaleSsim(ReconstructionTerm):
    """D · (1 − MS-SSIM(x, x̂)), a distance without unit, between 0 and D.

    MS-SSIM = Π_j cs_j^β_j · SSIM_M^β_M: contrast-structure cs of M scales, halved by averaging 2×2
    pixels, luminance at the coarsest alone. Windows as in `Ssim`. Wang, Simoncelli, Bovik,
    Multiscale Structural Similarity for Image Quality Assessment, Asilomar 2003.

    The five published scales need a side of 176 pixels. Below that there are as many as leave the
    coarsest image no smaller than the window (2 at 32², 3 at 64², 4 at 128²), with the first M
    published exponents over their sum. torchmetrics gives SSIM and cs of each scale; its own
    product has no finite gradient where a cs is 0 or below.
    """

    density: ClassVar[bool] = False

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        side = min(image_shape[1:])
        if side < WINDOW:
            raise ValueError(
                f"likelihood.term ms_ssim needs images of {WINDOW} pixels a side or more"
            )
        scales = sum(side // 2**scale >= WINDOW for scale in range(len(EXPONENTS)))
        self.exponents = [e / sum(EXPONENTS[:scales]) for e in EXPONENTS[:scales]]

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        # Ten seconds, which training under another term need not wait.
        from torchmetrics.functional.image import structural_similarity_index_measure

        logarithm = torch.zeros_like(image[:, 0, 0, 0])
        for scale, exponent in enumerate(self.exponents):
            if scale:
                image, reconstruction = (F.avg_pool2d(x, 2) for x in (image, reconstruction))
            similarity, contrast = structural_similarity_index_measure(
                reconstruction,
                image,
                data_range=1.0,
                reduction="none",
                return_contrast_sensitivity=True,
            )
            last = scale == len(self.exponents) - 1
            chosen = similarity if last else contrast
            logarithm = logarithm + exponent * chosen.clamp_min(FLOOR).log()
        return Distortion(-self.values * logarithm.expm1())
