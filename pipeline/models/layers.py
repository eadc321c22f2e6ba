"""What encoder and decoder are built of."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(norm(x))))), the identity at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, channels, 3, padding=1)
        last = nn.Conv2d(channels, channels, 3, padding=1)
        self.body = nn.Sequential(
            normalised(channels), nn.LeakyReLU(0.1), first, nn.LeakyReLU(0.1), last
        )
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Float[Tensor, "B c H W"]) -> Float[Tensor, "B c H W"]:
        return features + self.body(features)


def normalised(channels: int) -> nn.GroupNorm:
    """All features of an image brought to mean 0 and variance 1 (Wu, He 2018, one group).

    Without it the state of a deep decoder grows from draw to draw, and training runs away at
    learning rates that suit a shallow one.
    """
    return nn.GroupNorm(1, channels)


def residual_blocks(channels: int, count: int) -> list[nn.Module]:
    """`count` residual blocks in a row."""
    return [ResidualBlock(channels) for _ in range(count)]


def head(channels_in: int, channels: int, channels_out: int) -> nn.Sequential:
    """norm, act, 3×3, act, 1×1: small at first, so that it starts with small corrections."""
    last = nn.Conv2d(channels, channels_out, 1)
    with torch.no_grad():
        last.weight.mul_(0.1)
    return nn.Sequential(
        normalised(channels_in),
        nn.LeakyReLU(0.1),
        nn.Conv2d(channels_in, channels, 3, padding=1),
        nn.LeakyReLU(0.1),
        last,
    )


def downsample(wide: int, narrow: int, factor: int) -> nn.Sequential:
    """To a side smaller by 2, or by 4 where the feature map becomes a vector."""
    convolution = (
        nn.Conv2d(wide, narrow, 4, stride=2, padding=1)
        if factor == 2
        else nn.Conv2d(wide, narrow, factor, stride=factor)
    )
    return nn.Sequential(nn.LeakyReLU(0.1), convolution)


def upsample(wide: int, narrow: int, factor: int) -> nn.Sequential:
    """Convolution + PixelShuffle to a side larger by `factor`.

    The arithmetic is done at the lower resolution: about 3 times faster on a CPU than transposed
    convolutions.
    """
    return nn.Sequential(
        nn.LeakyReLU(0.1),
        nn.Conv2d(wide, factor**2 * narrow, 3, padding=1),
        nn.PixelShuffle(factor),
    )


def at_least_single(features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision widened to float32, as everything outside the convolutions needs it."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
