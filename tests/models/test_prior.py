"""Samples' latents have the mean and the covariance of the groups they are blended from."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from pipeline.models.config import PriorConfig
from pipeline.models.prior import LatentPrior, pieces_of

L, K, MEMBERS = 6, 3, 4


def _posteriors() -> tuple[Tensor, Tensor]:
    """Means and standard deviations of three groups of four slices, far apart; float64."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(K, MEMBERS, L, generator=generator, dtype=torch.float64)
    means += 20 * torch.arange(K)[:, None, None]
    deviations = 0.1 + torch.rand(K, MEMBERS, L, generator=generator, dtype=torch.float64)
    return means, deviations


def _prior() -> LatentPrior:
    return pieces_of(*_posteriors(), torch.Generator().manual_seed(0))


def _noise(count: int, piece: int) -> Tensor:
    """Noise whose last number chooses a piece."""
    noise = torch.randn(count, L + MEMBERS, generator=torch.Generator().manual_seed(2))
    noise[:, -1] = Normal(0.0, 1.0).icdf(torch.tensor((piece + 0.5) / K))
    return noise


@pytest.mark.parametrize("piece", range(K))
def test_a_piece_has_its_groups_mean_and_covariance(piece: int) -> None:
    means, deviations = (values[piece].float() for values in _posteriors())
    drawn = _prior()(_noise(100_000, piece))
    torch.testing.assert_close(drawn.mean(dim=0), means.mean(dim=0), rtol=0, atol=0.02)
    expected = torch.cov(means.T) + deviations.square().mean(dim=0).diag()
    torch.testing.assert_close(torch.cov(drawn.T), expected, rtol=0.02, atol=0.02)


def test_draws_are_as_far_from_the_centre_as_another_member_would_be() -> None:
    """Of members that are equally far apart: √(m/(m−1)) times as far as these, who define it."""
    means = torch.eye(L)[None, :MEMBERS]
    prior = pieces_of(means, torch.zeros(1, MEMBERS, L))
    noise = torch.randn(500, prior.noise_size, generator=torch.Generator().manual_seed(0))
    apart = (prior(noise) - means[0].mean(dim=0)).norm(dim=1)
    members = (means[0] - means[0].mean(dim=0)).norm(dim=1)
    torch.testing.assert_close(members, members[:1].expand(MEMBERS))
    expected = members[0].item() * math.sqrt(MEMBERS / (MEMBERS - 1))
    assert apart.tolist() == pytest.approx([expected] * 500, rel=1e-5)


def test_draws_lie_in_what_the_members_span_and_no_column_is_one_of_them() -> None:
    means, _ = _posteriors()
    prior = pieces_of(means, torch.zeros_like(means))
    for piece in range(K):
        apart = (means[piece] - means[piece].mean(dim=0)).float()
        factors = prior.factors[piece]
        projected = apart.T @ torch.linalg.pinv(apart.T) @ factors
        torch.testing.assert_close(projected, factors, rtol=1e-4, atol=1e-4)
        likeness = torch.nn.functional.normalize(apart) @ torch.nn.functional.normalize(
            factors, dim=0
        )
        assert likeness.abs().max() < 0.999


@pytest.mark.parametrize(("share", "piece"), [(0.0, 0), (0.32, 0), (0.34, 1), (0.67, 2), (1.0, 2)])
def test_the_last_number_chooses_the_piece(share: float, piece: int) -> None:
    prior = _prior()
    noise = torch.zeros(1, prior.noise_size)
    noise[0, -1] = {0.0: -math.inf, 1.0: math.inf}.get(
        share, Normal(0.0, 1.0).icdf(torch.tensor(share)).item()
    )
    noise[0, L] = 1.0
    found = prior(noise)[0].mean().item()
    assert found == pytest.approx(20 * piece, abs=5)


def test_before_it_is_fitted_it_is_standard_normal() -> None:
    prior = LatentPrior(L, K, 2)
    noise = torch.randn(20, L + 3)
    torch.testing.assert_close(prior(noise), noise[:, :L])


def test_a_generator_draws_the_same_again() -> None:
    one, two = (_prior().sample(100, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (100, L)


@pytest.mark.parametrize(
    ("key", "value"),
    [("pieces", -1), ("subjects", 1), ("images", 1), ("augmentation", 1.5), ("seed", -1)],
)
def test_a_setting_that_cannot_be_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"prior\.{key}"):
        PriorConfig(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (6, 0, 1), (6, 1, 0)])
def test_sizes_that_cannot_be_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no prior has"):
        LatentPrior(*sizes)
