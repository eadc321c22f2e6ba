"""The variational autoencoder: encoder, posterior of every draw, decoder."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.config import ModelConfig
from pipeline.models.decoder import Decoder, Features
from pipeline.models.encoder import Encoder

# Of all draws (B,L), or of one (B,channels,side,side).
Latents = Float[Tensor, "B ..."]


@dataclass(frozen=True)
class Posterior:
    """N(mean, exp(log_variance)) of a latent whose prior is N(0,I).

    Of several draws it is the posterior on one way down: each draw's given the latents that were
    chosen before it. Of one draw it is q(z|x).
    """

    mean: Latents
    log_variance: Latents

    def sample(self, generator: torch.Generator | None = None) -> Latents:
        """Reparameterised draw (Kingma & Welling 2014)."""
        return self.at(torch.empty_like(self.mean).normal_(generator=generator))

    def at(self, noise: Latents) -> Latents:
        """The latent that standard normal noise becomes under this posterior."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def divergence(self) -> Latents:
        """KL of each number from N(0,1), nats."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance)

    def rate(self) -> Float[Tensor, " B"]:
        """KL(q ‖ N(0,I)), summed over the latent, nats."""
        return self.divergence().flatten(1).sum(dim=1)


@dataclass(frozen=True)
class Inference:
    """What an image becomes on one way down through the levels.

    Averaged over standard normal noise, the posterior's rate is exactly the KL of the joint
    posterior from the joint prior (chain rule: each draw's given those before it).

    Attributes:
        posterior: of the latent.
        latent: drawn from it with the noise that was given.
        reconstruction: decode(latent).
        features: the encoder's, by side.
    """

    posterior: Posterior
    latent: Float[Tensor, "B L"]
    reconstruction: Float[Tensor, "B C H W"]
    features: dict[int, Features]


class VAE(nn.Module):
    """Hierarchical VAE for square images of side 32, 64, 128 or 256 with 1 or 3 channels.

    Outside of it a latent is one tensor (B,L) that is N(0,I) under the prior.

    Example:
        >>> model = VAE((1, 32, 32), ModelConfig(levels=[Level(4, 2)], width=4, max_width=8))
        >>> images = torch.rand(2, 1, 32, 32)
        >>> model(images).reconstruction.shape
        torch.Size([2, 1, 32, 32])
        >>> model.decode(model.encode(images).mean).shape
        torch.Size([2, 1, 32, 32])
    """

    def __init__(self, image_shape: tuple[int, int, int], config: ModelConfig) -> None:
        """image_shape (C,H,W). Raises ValueError where it does not fit the configuration."""
        super().__init__()
        channels, height, width = image_shape
        if channels not in (1, 3) or height != width:
            raise ValueError(f"images must be square with 1 or 3 channels, not {image_shape}")
        self.image_shape = image_shape
        self.latent_size = config.latent_size
        self.encoder = Encoder(channels, height, config)
        self.decoder = Decoder(channels, height, config)

    def forward(
        self, image: Float[Tensor, "B C H W"], noise: Float[Tensor, "B L"] | None = None
    ) -> Inference:
        """`infer`."""
        return self.infer(image, noise)

    def infer(
        self,
        image: Float[Tensor, "B C H W"],
        noise: Float[Tensor, "B L"] | None = None,
        features: dict[int, Features] | None = None,
    ) -> Inference:
        """One way down through the levels, each draw from its posterior.

        Args:
            image: intensity in [0,1].
            noise: standard normal; without it every draw is its posterior's mean.
            features: of an earlier inference of these images: the encoder need not run again.
        """
        features = self.encoder(image) if features is None else features
        parts = None if noise is None else self.decoder.split(noise)
        found: list[tuple[Tensor, Tensor, Tensor]] = []

        def choose(number: int, state: Tensor) -> Tensor:
            used = self.decoder.opened_of(number)
            mean, log_variance = self.encoder.posterior(number, state, features)
            posterior = Posterior(mean * used, log_variance * used)
            latent = posterior.mean if parts is None else posterior.at(parts[number]) * used
            found.append((posterior.mean, posterior.log_variance, latent))
            return latent

        reconstruction = self.decoder.top_down(image.shape[0], choose)
        mean, log_variance, latent = (
            torch.cat([value.flatten(1) for value in values], dim=1)
            for values in zip(*found, strict=True)
        )
        return Inference(Posterior(mean, log_variance), latent, reconstruction, features)

    def encode(self, image: Float[Tensor, "B C H W"]) -> Posterior:
        """The posterior of images in [0,1], each draw's given the means before it."""
        return self.infer(image).posterior

    def decode(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B C H W"]:
        """The reconstruction, in [0,1]."""
        return self.decoder(latent)

    def prior_latents(
        self, count: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "count L"]:
        """Draw from the prior N(0,I)."""
        like = next(self.parameters())
        shape = (count, self.latent_size)
        return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)

    def rates(self, posterior: Posterior) -> dict[int, Float[Tensor, " B"]]:
        """The posterior's rate by the side of the level, nats."""
        found: dict[int, Tensor] = {}
        parts = posterior.divergence().split(self.decoder.sizes, dim=1)
        for (_, side, _), part in zip(self.decoder.draws_of, parts, strict=True):
            found[side] = found.get(side, 0.0) + part.sum(dim=1)
        return found
