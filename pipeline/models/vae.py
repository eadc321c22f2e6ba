"""The variational autoencoder: decoder, encoder, and the one way down through both.

The decoder goes from coarse to fine. At each draw the encoder gives the posterior of its latents,
in the coordinates of its prior's noise, from the image's features and the decoder's state.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.config import ModelConfig
from pipeline.models.layers import (
    at_least_single,
    downsample,
    head,
    residual_blocks,
    upsample,
)

Features = Float[Tensor, "B features side side"]
# Latents of one draw.
Part = Float[Tensor, "B channels side side"]
# (number of the draw, state) -> its latents.
Choose = Callable[[int, Features], Part]
# Of all draws (B,L), or of one (B,channels,side,side).
Latents = Float[Tensor, "B ..."]

# Of the posterior at first. Where every draw begins as pure noise (0), the decoder shuts it out
# before the encoder has found anything to say with it.
FIRST_LOG_VARIANCE = -3.0


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
    """One way down through the levels for images.

    Averaged over standard normal noise, the posterior's rate is exactly the KL of the joint
    posterior from the joint prior (chain rule: each draw's given those before it).
    """

    posterior: Posterior
    latent: Float[Tensor, "B L"]
    """Drawn from the posterior with the noise that was given."""
    reconstruction: Float[Tensor, "B C H W"]
    """decode(latent)."""
    features: dict[int, Features]
    """The encoder's, by side."""


class Draw(nn.Module):
    """One draw of the prior, from standard normal numbers ε and the state h.

    h ← h + f(h) + W(s(h) ⊙ ε), then residual blocks. The draw is z = μ(h) + s(h) ε; its mean μ is
    part of f.
    """

    def __init__(self, width: int, channels: int, blocks: int, draws: int) -> None:
        """draws: of the whole decoder, which share the variance of its state at first."""
        super().__init__()
        self.channels = channels
        self.prior = head(width, width, width + channels)
        self.entry = nn.Conv2d(channels, width, 1, bias=False)
        self.body = nn.Sequential(*residual_blocks(width, blocks))
        with torch.no_grad():
            self.entry.weight.mul_(math.sqrt(1 / draws))

    def forward(self, state: Features, latent: Part) -> Features:
        features, log_variance = self.prior(state).split([state.shape[1], self.channels], dim=1)
        deviation = (0.5 * at_least_single(log_variance).clamp(-8.0, 4.0)).exp()
        return self.body(state + features + self.entry(deviation * latent))


class Decoder(nn.Module):
    """Latent to image in [0,1], top-down from a learned constant at the coarsest side.

    The latent is standard normal under the prior; its parts are the draws' from coarse to fine,
    each in the order (channels, rows, columns). In the manner of ladder VAEs (Sønderby et al. 2016,
    Child 2021, arXiv 2011.10650), with every draw in the coordinates of its prior's noise.
    """

    opened: Float[Tensor, " levels"]

    def __init__(self, channels: int, side: int, config: ModelConfig) -> None:
        super().__init__()
        sides = config.sides(side)[::-1]
        widths = {s: config.channels_at(s, side) for s in sides}
        self.sides = sides
        self.levels = config.levels
        self.draws_of = [level.shape for level in config.draws]
        self.levels_of = [config.levels.index(level) for level in config.draws]
        self.sizes = [math.prod(shape) for shape in self.draws_of]
        # 1 for the levels that are used by now, 0 for the others, whose latents count as 0.
        self.register_buffer("opened", torch.ones(len(config.levels)))
        self.start = nn.Parameter(0.1 * torch.randn(1, widths[sides[0]], sides[0], sides[0]))
        self.draws = nn.ModuleList(
            Draw(widths[level.side], level.channels, config.residual_blocks, len(config.draws))
            for level in config.draws
        )
        # At a side without a level there is nothing to draw.
        held = {level.side for level in config.levels}
        self.bodies = nn.ModuleList(
            nn.Sequential(*residual_blocks(widths[s], 0 if s in held else config.residual_blocks))
            for s in sides
        )
        self.up = nn.ModuleList(
            upsample(widths[low], widths[high], high // low) for low, high in pairwise(sides)
        )
        last = widths[sides[-1]]
        self.exit = nn.Sequential(
            nn.LeakyReLU(0.1), nn.Conv2d(last, last, 3, padding=1), upsample(last, channels, 2)
        )
        # Fine detail is found at once through a linear path, as principal components are. Through
        # the deep one alone, channels of the finest level found a use after hundreds of steps, or
        # never: a run then ended 4 dB behind another seed's.
        self.linear = nn.Sequential(nn.Conv2d(last, 4 * channels, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B C H W"]:
        parts = self.split(latent)
        return self.top_down(latent.shape[0], lambda number, _: parts[number])

    def split(self, latent: Float[Tensor, "B L"]) -> list[Part]:
        """The draws of a latent, from coarse to fine."""
        return [
            part.unflatten(1, shape)
            for part, shape in zip(latent.split(self.sizes, dim=1), self.draws_of, strict=True)
        ]

    def top_down(self, batch: int, choose: Choose) -> Float[Tensor, "B C H W"]:
        """B = batch images; `choose` gives the latents of each draw when its turn comes."""
        state = self.start.expand(batch, -1, -1, -1)
        number = 0
        for place, side in enumerate(self.sides):
            while number < len(self.draws) and self.draws_of[number][1] == side:
                latent = choose(number, state) * self.opened_of(number)
                state = self.draws[number](state, latent)
                number += 1
            state = self.bodies[place](state)
            if place < len(self.up):
                state = self.up[place](state)
        return at_least_single(self.exit(state) + self.linear(state)).sigmoid()

    def opened_of(self, number: int) -> Float[Tensor, ""]:
        """1 where the level of a draw is used, else 0."""
        return self.opened[self.levels_of[number]]

    def open(self, progress: float) -> int:
        """Use the levels that are open after this share of the run; returns how many."""
        count = sum(progress >= level.opens for level in self.levels)
        self.opened[:count] = 1.0
        self.opened[count:] = 0.0
        return count


class Encoder(nn.Module):
    """Strided convolutions bottom-up, and a head for each draw of the decoder."""

    def __init__(self, channels: int, side: int, config: ModelConfig) -> None:
        super().__init__()
        sides = config.sides(side)
        widths = {s: config.channels_at(s, side) for s in sides}
        self.sides = sides
        self.sides_of_draws = [level.side for level in config.draws]
        self.stem = nn.Conv2d(channels, widths[sides[0]], 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            nn.Sequential(
                downsample(widths[high], widths[low], high // low),
                *residual_blocks(widths[low], config.residual_blocks),
            )
            for high, low in pairwise(sides)
        )
        self.heads = nn.ModuleList()
        for level in config.draws:
            width = widths[level.side]
            layers = head(2 * width, width, 2 * level.channels)  # mean and log-variance
            with torch.no_grad():
                layers[-1].get_parameter("bias")[level.channels :] += FIRST_LOG_VARIANCE
            self.heads.append(layers)
        self.linear = nn.ModuleList(
            nn.Conv2d(widths[level.side], level.channels, 3, padding=1) for level in config.draws
        )

    def forward(self, image: Float[Tensor, "B C H W"]) -> dict[int, Features]:
        """The features of every side, by the side; images in [0,1]."""
        features = {self.sides[0]: self.stem(image - 0.5)}
        for (high, low), layers in zip(pairwise(self.sides), self.down, strict=True):
            features[low] = layers(features[high])
        return features

    def posterior(
        self, number: int, state: Features, features: dict[int, Features]
    ) -> tuple[Part, Part]:
        """Mean and log-variance of a draw, in the coordinates of its prior's noise.

        Zero is the prior itself: what the network gives is a correction of it, as in NVAE (Vahdat,
        Kautz 2020, arXiv 2007.03898). The mean has a linear path from the features beside the
        deep one, as the decoder has one to the image.
        """
        side = self.sides_of_draws[number]
        both = self.heads[number](torch.cat([state, features[side]], dim=1))
        mean, log_variance = at_least_single(both).chunk(2, dim=1)
        mean = mean + at_least_single(self.linear[number](features[side]))
        # exp() of an early outlier would otherwise overflow; the range holds any useful posterior,
        # which is hardly wider than its prior.
        return mean, log_variance.clamp(-12.0, 2.0)


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
        drawn: list[tuple[Tensor, Tensor, Tensor]] = []

        def choose(number: int, state: Tensor) -> Tensor:
            used = self.decoder.opened_of(number)
            mean, log_variance = self.encoder.posterior(number, state, features)
            posterior = Posterior(mean * used, log_variance * used)
            latent = posterior.mean if parts is None else posterior.at(parts[number]) * used
            drawn.append((posterior.mean, posterior.log_variance, latent))
            return latent

        reconstruction = self.decoder.top_down(image.shape[0], choose)
        mean, log_variance, latent = (
            torch.cat([value.flatten(1) for value in values], dim=1)
            for values in zip(*drawn, strict=True)
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
        rates: dict[int, Tensor] = {}
        parts = posterior.divergence().split(self.decoder.sizes, dim=1)
        for (_, side, _), part in zip(self.decoder.draws_of, parts, strict=True):
            rates[side] = rates.get(side, 0.0) + part.sum(dim=1)
        return rates
