"""Latent -> reconstruction, from coarse to fine."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.config import ModelConfig
from pipeline.models.layers import at_least_single, head, residual_blocks, upsample

Features = Float[Tensor, "B features side side"]
# Latents of one draw.
Part = Float[Tensor, "B channels side side"]
# (number of the draw, state) -> its latents.
Choose = Callable[[int, Features], Part]


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
