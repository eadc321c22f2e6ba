"""Structural similarity."""

from typing import ClassVar

from torch import Tensor

from pipeline.losses.base import Distortion, ReconstructionTerm
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.shapes import Images, Shape, Transfer

# Side of the Gaussian window of σ = 1.5 pixels, as torchmetrics cuts it.
WINDOW = 11


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
            raise ValueError(f"likelihood.term ssim needs images of {WINDOW} pixels a side or more")

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        # Ten seconds, which training under another term need not wait.
        from torchmetrics.functional.image import structural_similarity_index_measure

        index = structural_similarity_index_measure(
            reconstruction, image, data_range=1.0, reduction="none"
        )
        assert isinstance(index, Tensor)
        return Distortion(self.values * (1 - index))
