"""What is minimised: the two alternating steps of the method, as functions of a batch.

(A) encoder and decoder descend −ELBO = distortion + β · rate, the kernel network frozen.
(B) the kernel network descends the kernel loss, reconstruction and latent detached.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.blur.kernel_loss import kernel_loss
from pipeline.blur.spectrum import transfer_function
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.registry import build_term
from pipeline.models.config import ModelConfig
from pipeline.models.kernel_network import KernelNetwork
from pipeline.models.vae import VAE


@dataclass(frozen=True)
class ElboParts:
    """Named parts of the ELBO and what they were made of; values are per image (B,), nats."""

    distortion: Tensor
    rate: Tensor
    scale: Tensor
    reconstruction: Tensor
    latent: Tensor
    kernel: Tensor | None

    @property
    def elbo(self) -> Tensor:
        """−(distortion + rate), nats; an ELBO only where the term is a density."""
        return -(self.distortion + self.rate)


class Objective(nn.Module):
    """VAE, reconstruction term and, where the term needs it, kernel network."""

    def __init__(
        self, image_shape: tuple[int, int, int], model: ModelConfig, likelihood: LikelihoodConfig
    ) -> None:
        """image_shape (C,H,W). Raises ValueError where a configuration does not fit it."""
        super().__init__()
        self.vae = VAE(image_shape, model)
        self.term = build_term(likelihood)
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

    def elbo(
        self,
        image: Tensor,
        generator: torch.Generator | None = None,
        *,
        warm_up: bool = False,
        mean_latent: bool = False,
    ) -> ElboParts:
        """Step (A)'s parts for images (B,C,H,W). `warm_up`: the plain Gaussian term.

        With `mean_latent` the posterior's mean is decoded instead of a draw.
        """
        posterior = self.vae.encode(image)
        latent = posterior.mean if mean_latent else posterior.sample(generator)
        reconstruction = self.vae.decode(latent)
        kernel = None if warm_up else self._frozen_kernel(latent)
        distortion = self.term(image, reconstruction, kernel)
        return ElboParts(
            distortion=distortion.value,
            rate=posterior.rate(),
            scale=distortion.scale,
            reconstruction=reconstruction,
            latent=latent,
            kernel=kernel,
        )

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

    def kernel_loss(self, image: Tensor, parts: ElboParts) -> Tensor | None:
        """Step (B)'s loss (B,), intensity²; only the kernel network gets a gradient."""
        kernel = self.kernel(parts.latent.detach())
        if kernel is None:
            return None
        transfer = transfer_function(kernel, (image.shape[-2], image.shape[-1]))
        return kernel_loss(image, parts.reconstruction.detach(), transfer)
