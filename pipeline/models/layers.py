"""What encoder and decoder are built of."""

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))), the identity at first. (B,c,H,W) -> (B,c,H,W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, channels, 3, padding=1)
        last = nn.Conv2d(channels, channels, 3, padding=1)
        self.body = nn.Sequential(nn.LeakyReLU(0.1), first, nn.LeakyReLU(0.1), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


def residual_blocks(channels: int, count: int) -> list[nn.Module]:
    """`count` residual blocks in a row."""
    return [ResidualBlock(channels) for _ in range(count)]


def at_least_single(features: Tensor) -> Tensor:
    """Half precision widened to float32, as everything outside the convolutions needs it."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
