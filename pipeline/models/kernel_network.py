"""G: from a latent to the kernel by which the model currently blurs."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.config import ModelConfig
from pipeline.models.layers import at_least_single

# Sides up to this reach the hidden layer unpooled: finer detail of a latent says little about one
# kernel for the whole image, and weights would grow with the image's area.
POOLED_SIDE = 8

# Fall of the initial kernel's logarithm per pixel: 79% of the mass at the centre, so that no
# frequency is lost (|K| > 0.6), while every weight still has a gradient.
INITIAL_DECAY = 3.0


class KernelNetwork(nn.Module):
    """A softmax kernel for each latent: non-negative, sum 1, peaked at first."""

    def __init__(self, kernel_size: int, config: ModelConfig) -> None:
        """kernel_size s in pixels, odd. Raises ValueError on an even one."""
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {kernel_size}")
        self.kernel_size = kernel_size
        self.shapes = [level.shape for level in config.draws]
        self.sizes = [level.channels * level.side**2 for level in config.draws]
        inputs = sum(level.channels * min(level.side, POOLED_SIDE) ** 2 for level in config.draws)
        first = nn.Linear(inputs, config.kernel_hidden)
        last = nn.Linear(config.kernel_hidden, kernel_size**2)
        self.body = nn.Sequential(first, nn.LeakyReLU(0.1), last)
        offset = torch.arange(kernel_size, dtype=torch.float32) - kernel_size // 2
        radius = (offset.square()[:, None] + offset.square()[None, :]).sqrt()
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.copy_(-INITIAL_DECAY * radius.flatten())

    def forward(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B 1 s s"]:
        # Softmax in float32 at least: half precision would round a peaked kernel's tail to zero.
        with torch.autocast(latent.device.type, enabled=False):
            logits = self.body(self._pooled(at_least_single(latent)))
            return logits.softmax(dim=1).unflatten(1, (1, self.kernel_size, self.kernel_size))

    def _pooled(self, latent: Tensor) -> Tensor:
        """(B,L) -> all draws, those of finer sides averaged to POOLED_SIDE, as a vector."""
        parts = []
        for part, shape in zip(latent.split(self.sizes, dim=1), self.shapes, strict=True):
            factor = shape[1] // POOLED_SIDE
            if factor > 1:
                part = nn.functional.avg_pool2d(part.unflatten(1, shape), factor).flatten(1)
            parts.append(part)
        return torch.cat(parts, dim=1)
