"""A prior for samples: the latents' own distribution, as a mixture of Gaussians.

The decoder's prior N(0,I) says where an image's latent may lie, not where the training images' do
lie together: its draws are textures within an outline. The mixture is fitted to those afterwards,
with the decoder as it is (Ghosh et al., From Variational to Deterministic Autoencoders, ICLR 2020,
arXiv 1903.12436; one Gaussian for MRI: Tezcan et al., IEEE TMI 2022). Its density is exact.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.models.config import ModelConfig


@dataclass(frozen=True)
class PriorConfig:
    """The `prior` section of the configuration: the distribution that samples are drawn from."""

    components: int = 16
    """Gaussians of the mixture; 0 = none, samples then come from N(0,I)."""
    dimensions: int = 128
    """Principal components of the latents in which the mixture is; the rest is one Gaussian."""
    largest: int = 3072
    """Most numbers of a latent that are covered, from the coarse levels on; finer ones are N(0,I),
    given the coarse ones. The file grows with its square: 38 MB at 3072."""
    images: int = 12000
    """Training images whose latents are taken, the same image several times with another
    deformation and draw."""
    augmentation: float = 0.5
    """Share of data.augmentation under which they are taken: samples need not be as bent and tilted
    as what the networks are trained on."""
    regularisation: float = 0.01
    """Added to every component's variances."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dimensions", "largest", "images"):
            if getattr(self, name) < 1:
                raise ValueError(f"prior.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("components", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"prior.{name} must not be negative: {getattr(self, name)}")
        if not 0 <= self.augmentation <= 1:
            raise ValueError(f"prior.augmentation must be in [0, 1], not {self.augmentation}")
        if not self.regularisation > 0:
            raise ValueError(f"prior.regularisation must be positive, not {self.regularisation}")


def covered(config: ModelConfig, largest: int) -> int:
    """How many numbers of a latent, from coarse to fine, are in whole levels up to `largest`.

    Of the coarsest level alone where even that has more; its numbers beyond are left out.
    """
    total = 0
    for level in config.levels:
        size = level.groups * level.channels * level.side**2
        if total + size > largest:
            return total or largest
        total += size
    return total


class LatentPrior(nn.Module):
    """p(z): its first M numbers from a mixture of K Gaussians, the others N(0,I).

    With y = Vᵀ(z − μ), V (M,M) orthonormal, p(z) = Σ_k w_k N(y_1…r; m_k, C_k Cᵀ_k) ·
    N(y_r+1…M; 0, diag s²) · N(the rest; 0, I). Buffers: mean μ (M), basis V, weights w (K),
    centres m (K,r), factors C (K,r,r) lower triangular, deviations s (M−r).
    """

    mean: Tensor
    basis: Tensor
    weights: Tensor
    centres: Tensor
    factors: Tensor
    deviations: Tensor

    def __init__(self, latent_size: int, covered: int, components: int, dimensions: int) -> None:
        """L, M, K and r: standard normal until it is fitted. Raises ValueError unless r ≤ M ≤ L."""
        super().__init__()
        if not 1 <= dimensions <= covered <= latent_size or components < 1:
            raise ValueError(
                f"a prior of {components} components in {dimensions} dimensions does not fit "
                f"{covered} of {latent_size} numbers"
            )
        self.latent_size = latent_size
        shapes = {
            "mean": torch.zeros(covered),
            "basis": torch.eye(covered),
            "weights": torch.full((components,), 1 / components),
            "centres": torch.zeros(components, dimensions),
            "factors": torch.eye(dimensions).repeat(components, 1, 1),
            "deviations": torch.ones(covered - dimensions),
        }
        for name, value in shapes.items():
            self.register_buffer(name, value)

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments beside `latent_size` of a prior of this shape."""
        components, dimensions = self.centres.shape
        return {"covered": len(self.mean), "components": components, "dimensions": dimensions}

    def forward(self, noise: Tensor) -> Tensor:
        """Standard normal (B,L+1) -> latents (B,L); the last number chooses the component."""
        share = torch.special.ndtr(noise[:, -1])
        # The sum may be a little below 1.
        limits = self.weights.cumsum(dim=0)[:-1].contiguous()
        chosen = torch.searchsorted(limits, share.contiguous())
        covered, dimensions = len(self.mean), self.centres.shape[1]
        part, tail = noise[:, :dimensions], noise[:, dimensions:covered]
        leading = self.centres[chosen] + (self.factors[chosen] @ part[:, :, None])[:, :, 0]
        rotated = torch.cat([leading, self.deviations * tail], dim=1) @ self.basis.T
        return torch.cat([self.mean + rotated, noise[:, covered:-1]], dim=1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents (count,L)."""
        like = self.mean
        noise = torch.randn(
            (count, self.latent_size + 1),
            generator=generator, device=like.device, dtype=like.dtype,
        )  # fmt: skip
        return self(noise)

    def log_density(self, latent: Tensor) -> Tensor:
        """log p(z) of latents (B,L), nats: (B,)."""
        covered, dimensions = len(self.mean), self.centres.shape[1]
        rotated = (latent[:, :covered] - self.mean) @ self.basis
        leading, tail = rotated.split([dimensions, covered - dimensions], dim=1)
        offset = (leading[:, None] - self.centres)[..., None]  # (B,K,r,1)
        white = torch.linalg.solve_triangular(self.factors, offset, upper=False)[..., 0]
        diagonal = self.factors.diagonal(dim1=1, dim2=2)
        components = self.weights.log() - diagonal.log().sum(dim=1) - 0.5 * white.square().sum(-1)
        rest = (tail / self.deviations).square().sum(dim=1)
        rest = rest + latent[:, covered:].square().sum(dim=1)
        constant = 0.5 * self.latent_size * math.log(2 * math.pi) + self.deviations.log().sum()
        return components.logsumexp(dim=1) - 0.5 * rest - constant

    def log_ratio(self, latent: Tensor) -> Tensor:
        """log p(z) − log N(z; 0, I), nats (B,): by so much a draw's rate is less under p."""
        normal = -0.5 * latent.square().sum(dim=1) - 0.5 * self.latent_size * math.log(2 * math.pi)
        return self.log_density(latent) - normal
