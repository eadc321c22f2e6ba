"""A prior for samples: blends of the latents of training subjects whose slices look alike.

The decoder's prior N(0,I) says where an image's latent may lie, not which numbers occur together:
its draws are texture within an outline. The latents of real slices lie near a curved surface, of
which the latents of a few similar slices of different subjects span a small piece. Sampling from
such pieces is the manifold Parzen window of Vincent and Bengio (NIPS 2002).

It has no density in all of the latent's dimensions: it serves sampling alone, and neither rate nor
bound use it.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LatentPrior(nn.Module):
    """z = μ_k + F_k u + s_k ⊙ ε: piece k by chance, u on a sphere of radius √q, ε ~ N(0,I).

    With FFᵀ the sample covariance of a group's posterior means and s² their mean posterior
    variance, z has the group's mean and covariance. A sphere in place of a Gaussian u: the few
    members of a group are about equally far from its centre.
    """

    centres: Float[Tensor, "K L"]  # μ
    factors: Float[Tensor, "K L q"]  # F
    deviations: Float[Tensor, "K L"]  # s

    def __init__(self, latent_size: int, pieces: int, rank: int) -> None:
        """latent_size L, pieces K, rank q. Standard normal until it is fitted."""
        super().__init__()
        if latent_size < 1 or pieces < 1 or rank < 1:
            raise ValueError(
                f"no prior has {pieces} pieces of rank {rank} in {latent_size} numbers"
            )
        self.latent_size = latent_size
        self.register_buffer("centres", torch.zeros(pieces, latent_size))
        self.register_buffer("factors", torch.zeros(pieces, latent_size, rank))
        self.register_buffer("deviations", torch.ones(pieces, latent_size))

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments beside `latent_size` of a prior of this shape."""
        pieces, _, rank = self.factors.shape
        return {"pieces": pieces, "rank": rank}

    @property
    def noise_size(self) -> int:
        """Numbers of `forward`'s noise: L + q + 1."""
        return self.latent_size + self.factors.shape[2] + 1

    def forward(self, noise: Float[Tensor, "B noise_size"]) -> Float[Tensor, "B L"]:
        """Latents from standard normal noise: ε, the direction of u, and what chooses k."""
        size, rank = self.latent_size, self.factors.shape[2]
        local, direction, last = noise.split([size, rank, 1], dim=1)
        pieces = len(self.centres)
        chosen = (torch.special.ndtr(last[:, 0]) * pieces).long().clamp(0, pieces - 1)
        length = direction.square().sum(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
        blended = torch.einsum(
            "blq,bq->bl", self.factors[chosen], direction * (math.sqrt(rank) / length)
        )
        return self.centres[chosen] + blended + self.deviations[chosen] * local

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "count L"]:
        """Draw latents; the generator is on this device."""
        like = self.centres
        noise = torch.randn(
            (count, self.noise_size), generator=generator, device=like.device, dtype=like.dtype
        )
        return torch.cat([self(part) for part in noise.split(64)])


def pieces_of(
    means: Float[Tensor, "K m L"],
    deviations: Float[Tensor, "K m L"],
    generator: torch.Generator | None = None,
) -> LatentPrior:
    """The prior of K groups of m posteriors, from their means and standard deviations.

    F is the groups' centred means over √(m−1), mixed by a random rotation so that no column is one
    subject's.
    """
    groups, members, size = means.shape
    prior = LatentPrior(size, groups, members - 1)
    centres = means.mean(dim=1)
    drawn = torch.randn(members, members - 1, generator=generator)
    start = torch.cat([torch.ones(members, 1), drawn], dim=1)
    # Columns orthonormal, and orthogonal to what centring removes.
    rotation = torch.linalg.qr(start.double())[0][:, 1:].to(means)
    apart = (means - centres[:, None]) / math.sqrt(members - 1)
    prior.centres.copy_(centres)
    prior.factors.copy_(torch.einsum("kml,mq->klq", apart, rotation))
    prior.deviations.copy_(deviations.square().mean(dim=1).sqrt())
    return prior
