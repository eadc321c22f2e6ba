"""The variational autoencoder: encoder, reparameterised posterior, decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.models.config import ModelConfig
from pipeline.models.decoder import Decoder
from pipeline.models.encoder import Encoder


@dataclass(frozen=True)
class Posterior:
    """q(z|x) = N(mean, exp(log_variance)), of the latent's shape (B,L) or (B,c,h,w)."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised draw (Kingma & Welling 2014)."""
        return self.at(torch.empty_like(self.mean).normal_(generator=generator))

    def at(self, noise: Tensor) -> Tensor:
        """The latent that standard normal noise of its shape stands for."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def rate(self) -> Tensor:
        """KL(q(z|x) ‖ N(0,I)) in nats, summed over the latent: (B,)."""
        divergence = self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * divergence.flatten(1).sum(dim=1)


class VAE(nn.Module):
    """VAE for square images of side 32, 64, 128 or 256 with 1 or 3 channels."""

    def __init__(self, image_shape: tuple[int, int, int], config: ModelConfig) -> None:
        """image_shape (C,H,W). Raises ValueError where it does not fit the configuration."""
        super().__init__()
        channels, height, width = image_shape
        if channels not in (1, 3) or height != width:
            raise ValueError(f"images must be square with 1 or 3 channels, not {image_shape}")
        self.image_shape = image_shape
        self.latent_shape = tuple(config.latent)
        self.encoder = Encoder(channels, height, config)
        self.decoder = Decoder(channels, height, config)

    def encode(self, image: Tensor) -> Posterior:
        """(B,C,H,W) in [0,1] -> posterior."""
        return Posterior(*self.encoder(image))

    def decode(self, latent: Tensor) -> Tensor:
        """(B,L) or (B,c,h,w) -> reconstruction (B,C,H,W) in [0,1]."""
        return self.decoder(latent)

    def prior_latents(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw from the prior N(0,I): (count,L) or (count,c,h,w)."""
        like = next(self.parameters())
        shape = (count, *self.latent_shape)
        return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
