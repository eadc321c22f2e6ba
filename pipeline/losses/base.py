"""The protocol every reconstruction term follows."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.processes import mean_over_processes


@dataclass(frozen=True)
class Distortion:
    """A term's value for each image (B,), and the σ it was taken at (), intensity units.

    spectrum: the residual's half spectrum (B,C,H,W//2+1), where the term has taken it.
    """

    value: Tensor
    scale: Tensor
    spectrum: Tensor | None = None


class ReconstructionTerm(nn.Module, ABC):
    """Distortion between images and reconstructions.

    `density` says whether the value is a negative log-likelihood in nats; `needs_kernel` whether
    a kernel network is trained beside the VAE and its kernel's transfer function handed to
    `forward`, from the end of the warm-up on.
    """

    density: ClassVar[bool]
    needs_kernel: ClassVar[bool] = False

    @abstractmethod
    def forward(self, image: Tensor, reconstruction: Tensor, transfer: Tensor | None) -> Distortion:
        """image, reconstruction (B,C,H,W); transfer (B,1,H,W//2+1) or None -> that of (B,)."""


class Scale(nn.Module):
    """σ of a density: fixed, or the optimum of each training batch.

    The running mean of log σ̂² over training batches is what the trained model is used with: a
    likelihood whose σ is fitted to the very image it judges would be no likelihood.
    """

    running: Tensor

    def __init__(self, scale: Literal["optimal"] | float, momentum: float = 0.98) -> None:
        super().__init__()
        self.fixed = None if scale == "optimal" else float(scale)
        self.momentum = momentum
        # NaN until the first batch: a start value would have to be forgotten first.
        self.register_buffer("running", torch.tensor(float("nan")))

    def forward(self, optimal: Tensor) -> Tensor:
        """optimal: the batch's σ̂ (). Returns the σ to use, without gradient.

        Where several processes share a batch, σ̂ is that of all their images.
        """
        if self.fixed is not None:
            return torch.full_like(optimal, self.fixed)
        if not self.training:
            return (0.5 * self.running).exp().to(optimal.dtype)
        # Its own gradient vanishes at the optimum, so that a constant gives the same descent.
        optimal = mean_over_processes(optimal.square()).sqrt()
        new = (2 * optimal.log()).to(self.running.dtype)
        old = torch.where(self.running.isnan(), new, self.running)
        self.running.copy_(old.lerp(new, 1 - self.momentum))
        return optimal
