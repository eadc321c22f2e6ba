"""The protocol every reconstruction term follows."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from pipeline.distributed import mean_over_processes
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import Images, Law, PerImage, Shape, Transfer
from pipeline.models.layers import at_least_single


@dataclass(frozen=True)
class Distortion:
    """A term's values of a batch."""

    value: PerImage
    """Of each image: nats of a density, else without unit."""
    scale: Float[Tensor, ""] | None = None
    """At which it was taken, where the term has one, intensity: σ of a Gaussian, b of a Laplace."""
    spectrum: Complex[Tensor, "B C H half_W"] | None = None
    """The residual's half spectrum, where the term has taken it."""


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
        self, image: Images, reconstruction: Images, transfer: Transfer = None
    ) -> Distortion:
        """The term for each image, in float32 at least, and outside autocast."""
        with torch.autocast(image.device.type, enabled=False):
            return self.compare(at_least_single(image), at_least_single(reconstruction), transfer)

    @property
    def has_scale(self) -> bool:
        """False for a density that fits its scale and was trained on no batch yet."""
        return all(part.is_set for part in self.modules() if isinstance(part, Scale))

    def law(self, transfer: Transfer) -> Law | None:
        """The law of a batch's residuals under the trained term. ValueError: it has no scale yet.

        None where the term is no density, or has no interval in closed form.
        """
        return None

    @abstractmethod
    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        """The value of `forward`, of images that are float32 or float64."""


class Scale(nn.Module):
    """Scale of a density, σ of a Gaussian: fixed, or the optimum of each training batch.

    The running mean of log σ̂² over training batches is what the trained model is used with: a
    likelihood whose σ is fitted to the very image it judges would be no likelihood.
    """

    running: Float[Tensor, "*shape"]

    def __init__(
        self,
        scale: Literal["optimal"] | float,
        momentum: float = 0.98,
        *,
        power: int = 2,
        shape: tuple[int, ...] = (),
    ) -> None:
        """power: the optimum of many images is (mean of their σ̂^power)^(1/power); shape: of σ."""
        super().__init__()
        self.fixed = None if scale == "optimal" else float(scale)
        self.momentum = momentum
        self.power = power
        # NaN until the first batch: a start value would have to be forgotten first.
        self.register_buffer("running", torch.full(shape, float("nan")))
        self._heard: list[Tensor] | None = None
        self._held: Tensor | None = None

    def forward(self, optimal: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The σ to use, without gradient, where the batch's optimum is σ̂ = optimal.

        Where several processes share a batch, σ̂ is that of all their images; where a process
        takes its share in pieces, see `listen`.
        """
        if self.fixed is not None:
            return torch.full_like(optimal, self.fixed)
        if not self.training:
            return self.trained().to(optimal.dtype)
        # Its own gradient vanishes at the optimum, so that a constant gives the same descent.
        optimal = optimal.detach()
        if self._held is not None:
            return self._held
        if self._heard is not None:
            self._heard.append(optimal)
            return optimal
        return self._follow(optimal.pow(self.power))

    def _follow(self, powers: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The σ̂ of all processes from the mean of σ̂^power in this one; the running mean moves."""
        optimal = mean_over_processes(powers).pow(1 / self.power)
        new = (2 * optimal.log()).to(self.running.dtype)
        old = torch.where(self.running.isnan(), new, self.running)
        self.running.copy_(old.lerp(new, 1 - self.momentum))
        return optimal

    def listen(self) -> None:
        """Note the σ̂ of pieces of a batch, of equal size, until `hold`."""
        self._heard = []

    def hold(self) -> None:
        """Use the σ̂ of all pieces together until `release`."""
        if self._heard:
            self._held = self._follow(torch.stack(self._heard).pow(self.power).mean(dim=0))
        self._heard = None

    def release(self) -> None:
        """Use the σ̂ of each batch again."""
        self._held = None

    @property
    def is_set(self) -> bool:
        """True where it is fixed, or a batch was trained on."""
        return self.fixed is not None or not bool(self.running.isnan().any())

    def trained(self) -> Float[Tensor, "*shape"]:
        """The σ that the trained model is used with. ValueError: no batch was trained on yet."""
        if not self.is_set:
            raise ValueError(
                "the likelihood has no scale yet: train for longer than likelihood.warmup_epochs"
            )
        if self.fixed is not None:
            return torch.full_like(self.running, self.fixed)
        return (0.5 * self.running).exp()
