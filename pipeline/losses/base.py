"""The protocol every reconstruction term follows."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.distributed import mean_over_processes
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import Law

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Distortion:
    """A term's value for each image (B,), and the scale it was taken at, where it has one.

    scale: (), intensity units: σ of a Gaussian, b of a Laplace density, and so on.
    spectrum: the residual's half spectrum (B,C,H,W//2+1), where the term has taken it.
    """

    value: Tensor
    scale: Tensor | None = None
    spectrum: Tensor | None = None


class ReconstructionTerm(nn.Module, ABC):
    """Distortion between images and reconstructions.

    `density` says whether the value is a negative log-likelihood in nats. Otherwise it is a
    distance without unit, 0 for equal images, so summed that it is of the order of the number of
    pixel values; minus distance minus rate is then no ELBO. `needs_kernel` says whether a kernel
    network is trained beside the VAE and its kernel's transfer function handed to `forward`, from
    the end of the warm-up on. Parameters of a term are trained with the VAE's.
    """

    density: ClassVar[bool]
    needs_kernel: ClassVar[bool] = False

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        """image_shape (C,H,W). Raises ValueError where the term cannot judge such images."""
        super().__init__()
        self.values = math.prod(image_shape)

    def forward(
        self, image: Tensor, reconstruction: Tensor, transfer: Tensor | None = None
    ) -> Distortion:
        """image, reconstruction (B,C,H,W); transfer (B,1,H,W//2+1) or None -> that of (B,).

        In float32 at least, and outside autocast.
        """
        with torch.autocast(image.device.type, enabled=False):
            return self.compare(_wide(image), _wide(reconstruction), transfer)

    @property
    def has_scale(self) -> bool:
        """Whether a density has trained, so that its law has a scale; of a distance, no matter."""
        return True

    def law(self, transfer: Tensor | None) -> Law | None:
        """What the trained term says of the residuals of a batch.

        transfer (B,1,H,W//2+1) as for `forward`. None where the term is no density, or one without
        an interval in closed form. Raises ValueError where it has no scale yet.
        """
        return None

    @abstractmethod
    def compare(self, image: Tensor, reconstruction: Tensor, transfer: Tensor | None) -> Distortion:
        """What `forward` returns, of images that are float32 or float64."""


def _wide(image: Tensor) -> Tensor:
    return image.to(torch.promote_types(image.dtype, torch.float32))


class Scale(nn.Module):
    """Scale of a density, σ of a Gaussian: fixed, or the optimum of each training batch.

    The running mean of log σ̂² over training batches is what the trained model is used with: a
    likelihood whose σ is fitted to the very image it judges would be no likelihood.
    """

    running: Tensor

    def __init__(
        self,
        scale: Literal["optimal"] | float,
        momentum: float = 0.98,
        *,
        power: int = 2,
        shape: tuple[int, ...] = (),
    ) -> None:
        """power: the optimum σ̂ of many images is the mean of theirs by σ̂^power; shape: of σ."""
        super().__init__()
        self.fixed = None if scale == "optimal" else float(scale)
        self.momentum = momentum
        self.power = power
        # NaN until the first batch: a start value would have to be forgotten first.
        self.register_buffer("running", torch.full(shape, float("nan")))

    def forward(self, optimal: Tensor) -> Tensor:
        """optimal: the batch's σ̂, of σ's shape. Returns the σ to use, without gradient.

        Where several processes share a batch, σ̂ is that of all their images.
        """
        if self.fixed is not None:
            return torch.full_like(optimal, self.fixed)
        if not self.training:
            return self.trained().to(optimal.dtype)
        # Its own gradient vanishes at the optimum, so that a constant gives the same descent.
        optimal = mean_over_processes(optimal.pow(self.power)).pow(1 / self.power)
        new = (2 * optimal.log()).to(self.running.dtype)
        old = torch.where(self.running.isnan(), new, self.running)
        self.running.copy_(old.lerp(new, 1 - self.momentum))
        return optimal

    @property
    def known(self) -> bool:
        """Whether it is fixed, or a batch was trained on."""
        return self.fixed is not None or not bool(self.running.isnan().any())

    def trained(self) -> Tensor:
        """The σ that the trained model is used with, of σ's shape.

        Raises ValueError where no batch was trained on yet.
        """
        if not self.known:
            raise ValueError(
                "the likelihood has no scale yet: train for longer than likelihood.warmup_epochs"
            )
        if self.fixed is not None:
            return torch.full_like(self.running, self.fixed)
        return (0.5 * self.running).exp()
