"""Image -> parameters of the posterior."""

from itertools import pairwise

from torch import Tensor, nn

from pipeline.models.config import ModelConfig
from pipeline.models.layers import at_least_single, residual_blocks


class Encoder(nn.Module):
    """Strided convolutions down to the latent's resolution.

    (B,C,H,W) in [0,1] -> mean and log-variance of the posterior, (B,L) or (B,c,h,w) each.
    """

    def __init__(self, channels: int, side: int, config: ModelConfig) -> None:
        super().__init__()
        widths = config.channels_per_level(side)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1)]
        for narrow, wide in pairwise(widths):
            layers += [nn.LeakyReLU(0.1), nn.Conv2d(narrow, wide, 4, stride=2, padding=1)]
            layers += residual_blocks(wide, config.residual_blocks)
        layers.append(nn.LeakyReLU(0.1))
        self.features = nn.Sequential(*layers)
        self.head: nn.Module
        if len(config.latent) == 3:
            self.head = nn.Conv2d(widths[-1], 2 * config.latent[0], 3, padding=1)
        else:
            flat = widths[-1] * config.bottom**2
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(flat, 2 * config.latent[0]))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = at_least_single(self.head(self.features(image - 0.5))).chunk(2, dim=1)
        # exp() of an early outlier would otherwise overflow; the range holds any useful posterior.
        return mean, log_variance.clamp(-12.0, 6.0)
