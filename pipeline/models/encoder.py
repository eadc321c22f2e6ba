"""Image -> the posterior of every draw, given the decoder's state when it is its turn."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.config import ModelConfig
from pipeline.models.decoder import Features, Part
from pipeline.models.layers import at_least_single, downsample, head, residual_blocks

# Of the posterior at first. Where every draw begins as pure noise (0), the decoder shuts it out
# before the encoder has found anything to say with it.
FIRST_LOG_VARIANCE = -3.0


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
        self.heads = nn.ModuleList(
            _posterior_head(widths[level.side], level.channels) for level in config.draws
        )
        self.linear = nn.ModuleList(
            nn.Conv2d(widths[level.side], level.channels, 3, padding=1) for level in config.draws
        )

    def forward(self, image: Float[Tensor, "B C H W"]) -> dict[int, Features]:
        """The features of every side, by the side; images in [0,1]."""
        found = {self.sides[0]: self.stem(image - 0.5)}
        for (high, low), layers in zip(pairwise(self.sides), self.down, strict=True):
            found[low] = layers(found[high])
        return found

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


def _posterior_head(width: int, channels: int) -> nn.Sequential:
    """From state and features to mean and log-variance."""
    layers = head(2 * width, width, 2 * channels)
    with torch.no_grad():
        layers[-1].get_parameter("bias")[channels:] += FIRST_LOG_VARIANCE
    return layers
