"""Random but plausible changes of a batch, of anatomy and of the scanner's contrast.

Random parameters are drawn in one function and applied in another.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipeline.data.config import AugmentationConfig


@dataclass(frozen=True)
class Deformation:
    """One deformation and contrast for each image of a batch.

    Attributes:
        matrix: from output to input coordinates, both in [-1,1].
        displacement: added on a coarse grid, in the same unit.
        log_gamma: of the contrast x^γ.
        gain: of the brightness.
    """

    matrix: Float[Tensor, "B 2 3"]
    displacement: Float[Tensor, "B 2 p p"]
    log_gamma: Float[Tensor, " B"]
    gain: Float[Tensor, " B"]

    def part(self, rows: slice) -> "Deformation":
        """The deformations of some images of the batch."""
        return Deformation(*(getattr(self, name)[rows] for name in vars(self)))

    def to(self, device: torch.device) -> "Deformation":
        """The same on a device."""
        return Deformation(
            *(getattr(self, name).to(device, non_blocking=True) for name in vars(self))
        )


def draw(
    batch: int, config: AugmentationConfig, flip: bool, generator: torch.Generator
) -> Deformation:
    """Draw a deformation for each of `batch` images; `flip` allows mirroring left and right."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    angle = uniform(batch) * config.rotation_degrees * torch.pi / 180
    scale = 1 + uniform(batch, 2) * config.scale
    shear = uniform(batch) * config.shear
    shift = 2 * uniform(batch, 2) * config.translation
    mirror = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    if not flip:
        mirror = torch.ones(batch)
    cosine, sine = angle.cos(), angle.sin()
    # rotation · shear · scale, then the mirror on the input's columns
    first = torch.stack([cosine * scale[:, 0], (cosine * shear - sine) * scale[:, 1]], dim=1)
    second = torch.stack([sine * scale[:, 0], (sine * shear + cosine) * scale[:, 1]], dim=1)
    rows = torch.stack([first * mirror[:, None], second], dim=1)
    points = config.elastic_points
    displacement = 2 * config.elastic * torch.randn((batch, 2, points, points), generator=generator)
    return Deformation(
        matrix=torch.cat([rows, shift[:, :, None]], dim=2),
        displacement=displacement,
        log_gamma=uniform(batch) * config.gamma,
        gain=1 + uniform(batch) * config.gain,
    )


def apply(images: Float[Tensor, "B C H W"], deformation: Deformation) -> Float[Tensor, "B C H W"]:
    """Deform images in [0,1] and change their contrast; outside of an image is 0.

    Bicubic throughout: bilinear resampling would take about half of the power above 0.25
    cycles/pixel from what the model learns, and no loss could give it back.
    """
    size = (images.shape[-2], images.shape[-1])
    grid = functional.affine_grid(deformation.matrix, list(images.shape), align_corners=False)
    smooth = functional.interpolate(
        deformation.displacement, size=size, mode="bicubic", align_corners=True
    )
    warped = functional.grid_sample(
        images,
        grid + smooth.permute(0, 2, 3, 1),
        mode="bicubic",
        padding_mode="zeros",
        align_corners=False,
    )
    column = (-1, 1, 1, 1)
    contrast = warped.clamp(0.0, 1.0).pow(deformation.log_gamma.exp().view(column))
    return (contrast * deformation.gain.view(column)).clamp(0.0, 1.0)


def augment(
    images: Float[Tensor, "B C H W"],
    config: AugmentationConfig,
    flip: bool,
    generator: torch.Generator,
) -> Float[Tensor, "B C H W"]:
    """`draw` and `apply`; the images themselves where augmentation is off."""
    if not config.enabled:
        return images
    return apply(images, draw(images.shape[0], config, flip, generator).to(images.device))
