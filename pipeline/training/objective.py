"""The objective: the two steps of the method, as functions of a batch.

(A) encoder and decoder descend −ELBO = distortion + β · rate, the kernel network frozen.
(B) the kernel network descends the kernel loss, reconstruction and latent detached.

Both are taken at the same weights, in one pass: neither step's gradient depends on the other's
update but through the kernel of the next batch.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.blur.kernel_loss import kernel_loss, kernel_loss_of_residual, kernel_width
from pipeline.blur.spectrum import transfer_of
from pipeline.config import Config
from pipeline.distributed import mean_over_processes
from pipeline.errors import InputError
from pipeline.losses.base import Distortion
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.densities import Gaussian
from pipeline.losses.law import Law
from pipeline.losses.registry import build_term
from pipeline.models.config import ModelConfig
from pipeline.models.kernel_network import KernelNetwork
from pipeline.models.vae import VAE, Inference

# The metric of a level's rate: this, and the level's side.
RATE_OF_SIDE = "rate_side_"


@dataclass(frozen=True)
class ElboParts:
    """Named parts of the ELBO and what they were made of; values are per image (B,).

    The rate is in nats, the distortion where the term is a density.
    """

    term: Distortion
    rate: Tensor
    reconstruction: Tensor
    latent: Tensor
    rates: dict[int, Tensor]
    """The rate by the side of the level."""

    @property
    def distortion(self) -> Tensor:
        """The reconstruction term's value (B,)."""
        return self.term.value

    @property
    def scale(self) -> Tensor | None:
        """The density's scale, (), intensity units."""
        return self.term.scale

    @property
    def elbo(self) -> Tensor:
        """−(distortion + rate), nats; an ELBO only where the term is a density."""
        return -(self.distortion + self.rate)


class Objective(nn.Module):
    """VAE, reconstruction term and, where the term needs it, kernel network."""

    def __init__(
        self, image_shape: tuple[int, int, int], model: ModelConfig, likelihood: LikelihoodConfig
    ) -> None:
        """image_shape (C,H,W). Raises ValueError if a configuration does not fit it."""
        super().__init__()
        self.vae = VAE(image_shape, model)
        self.term = build_term(likelihood, image_shape)
        # What the warm-up trains under; None if the term without a kernel is just that.
        self.opening = (
            None if isinstance(self.term, Gaussian) else Gaussian(likelihood, image_shape)
        )
        self.detach_kernel = likelihood.detach_kernel
        # Built last, so that every term starts from the same encoder and decoder.
        self.kernel_network: KernelNetwork | None = None
        if self.term.needs_kernel:
            if likelihood.kernel_size > image_shape[-1]:
                raise ValueError(
                    f"likelihood.kernel_size {likelihood.kernel_size} is larger than the images"
                )
            self.kernel_network = KernelNetwork(likelihood.kernel_size, model)

    def kernel(self, latent: Tensor) -> Tensor | None:
        """The kernel for a latent, (B,1,s,s); None without a kernel network."""
        return None if self.kernel_network is None else self.kernel_network(latent)

    def law(self, latent: Tensor) -> Law | None:
        """The term's law of residuals at latents (B,L); None where it has none, or none yet."""
        if not (self.term.density and self.term.has_scale):
            return None
        return self.term.law(transfer_of(self.kernel(latent), self.vae.image_shape))

    def elbo(
        self,
        image: Tensor,
        generator: torch.Generator | None = None,
        *,
        warm_up: bool = False,
        mean_latent: bool = False,
        features: dict[int, Tensor] | None = None,
    ) -> ElboParts:
        """Step (A)'s parts for images (B,C,H,W). `warm_up`: under the plain Gaussian term.

        With `mean_latent` the posterior's mean is decoded instead of a draw. features: as of
        `VAE.infer`.
        """
        noise = None if mean_latent else self.vae.prior_latents(len(image), generator)
        inferred = self.vae.infer(image, noise, features)
        kernel = None if warm_up else self._frozen_kernel(inferred.latent)
        return self._parts(image, inferred, transfer_of(kernel, image.shape), warm_up)

    def _parts(
        self, image: Tensor, inferred: Inference, transfer: Tensor | None, warm_up: bool
    ) -> ElboParts:
        distortion = self._distortion(image, inferred.reconstruction, transfer, warm_up)
        rates = self.vae.rates(inferred.posterior)
        rate = torch.stack([*rates.values()]).sum(dim=0)
        return ElboParts(distortion, rate, inferred.reconstruction, inferred.latent, rates)

    def _distortion(
        self, image: Tensor, reconstruction: Tensor, transfer: Tensor | None, warm_up: bool
    ) -> Distortion:
        if warm_up:
            return (self.opening or self.term)(image, reconstruction, None)
        return self.term(image, reconstruction, transfer)

    def pull_ratio(self, image: Tensor, noise: Tensor) -> float:
        """How much harder the term pulls at the latent than the Gaussian of the warm-up.

        The ratio of the root mean square of ∂ distortion/∂z over the images (B,C,H,W) of all
        processes, each at its posterior's draw with this noise. At the end of the warm-up β times
        this keeps distortion and rate about as they were balanced. Changes nothing.
        """
        before = [buffer.clone() for buffer in self.buffers()]  # in training mode σ is updated
        with torch.no_grad():
            latent = self.vae.infer(image, noise).latent
            kernel = self.kernel(latent)
        latent.requires_grad_()
        reconstruction = self.vae.decode(latent)
        pulls = []
        for warm_up in (True, False):
            transfer = None if warm_up else transfer_of(kernel, image.shape)
            value = self._distortion(image, reconstruction, transfer, warm_up).value.sum()
            (gradient,) = torch.autograd.grad(value, latent, retain_graph=warm_up)
            pulls.append(mean_over_processes(gradient.square().mean()).sqrt().item())
        for buffer, old in zip(self.buffers(), before, strict=True):
            buffer.copy_(old)
        return pulls[1] / pulls[0] if pulls[0] else math.nan

    def forward(
        self, image: Tensor, noise: Tensor, *, beta: float | Tensor, warm_up: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both steps of a batch: a scalar to call backward on, and detached means to report.

        image (B,C,H,W); noise (B,L), standard normal. The scalar is the sum of step
        (A)'s and step (B)'s losses per pixel value, so that clipping and Adam's epsilon mean the
        same at every size. No parameter gets a gradient from both: one backward pass serves the
        two steps, and several processes synchronise them at once.
        """
        inferred = self.vae(image, noise)
        kernel = self.kernel(inferred.latent.detach())
        live = transfer_of(kernel, image.shape)
        frozen = None
        if live is not None and not warm_up:
            frozen = live.detach()
            if not self.detach_kernel:
                frozen = transfer_of(self._frozen_kernel(inferred.latent), image.shape)
        parts = self._parts(image, inferred, frozen, warm_up)
        loss = (parts.distortion + beta * parts.rate).mean()
        if warm_up:  # processes that share a batch expect a gradient of every parameter
            loss = loss + sum(0.0 * p.sum() for p in self.term.parameters())
        means = {"distortion": parts.distortion.mean(), "rate": parts.rate.mean()}
        means |= {f"{RATE_OF_SIDE}{side}": rate.mean() for side, rate in parts.rates.items()}
        if self.term.density:  # minus the sum is an ELBO of nothing else
            means = {"elbo": parts.elbo.mean(), **means}
        if parts.scale is not None:
            means["scale"] = parts.scale
        if kernel is not None and live is not None:
            spectrum = parts.term.spectrum
            if spectrum is None:
                blur = kernel_loss(image, parts.reconstruction.detach(), live).mean()
            else:
                blur = kernel_loss_of_residual(image, spectrum.detach(), live).mean()
            loss = loss + blur
            means |= {"kernel_width": kernel_width(kernel).mean(), "kernel_loss": blur}
        return loss / image[0].numel(), {name: value.detach() for name, value in means.items()}

    def _frozen_kernel(self, latent: Tensor) -> Tensor | None:
        """The kernel with its network frozen: no gradient ever reaches γ from step (A)."""
        if self.kernel_network is None:
            return None
        if self.detach_kernel:
            with torch.no_grad():
                return self.kernel_network(latent)
        parameters = {
            name: value.detach() for name, value in self.kernel_network.named_parameters()
        }
        return torch.func.functional_call(self.kernel_network, parameters, (latent,))


def build_objective(config: Config, image_shape: tuple[int, int, int]) -> Objective:
    """The objective of a configuration. Raises InputError if it does not fit the store."""
    try:
        return Objective(image_shape, config.model, config.likelihood)
    except ValueError as error:
        raise InputError(str(error)) from error
