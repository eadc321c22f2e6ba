"""The fitted law: what it promises of itself, and what it finds in residuals of a known law."""

import math

import pytest
import torch

from pipeline.blur.spectrum import half_spectrum_sum
from pipeline.losses.residual import ResidualLaw

FLOOR = 1 / 255


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 24), (1, 20, 12)])
def test_its_deviation_is_the_standard_deviation_of_a_pixel(shape: tuple[int, int, int]) -> None:
    law = ResidualLaw(shape, FLOOR)
    law.variance.uniform_(0.1, 3)
    inverse = half_spectrum_sum(law.precision.reciprocal(), shape[2])
    assert inverse.item() == pytest.approx(math.prod(shape[1:]), rel=1e-5)
    images = torch.rand(2, *shape)
    found = law(images)
    torch.testing.assert_close(found.standard_deviation(images.shape), found.deviation)
    assert found.deviation.shape == images.shape and (found.deviation > FLOOR).all()


@pytest.mark.parametrize("floor", [0.0, -0.1, math.nan])
def test_a_floor_that_is_none_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        ResidualLaw((1, 16, 16), floor)


def test_the_factor_covers_what_it_is_asked_to() -> None:
    law, generator = ResidualLaw((1, 16, 16), FLOOR), torch.Generator().manual_seed(0)
    unscaled = 0.02 + 0.1 * torch.rand(50000, generator=generator)
    residual = (FLOOR + 2 * unscaled) * torch.randn(50000, generator=generator)
    law.calibrate(residual, unscaled, 0.9)
    assert law.factor.item() == pytest.approx(2, rel=0.03)
    inside = residual.abs() <= 1.6449 * (FLOOR + law.factor * unscaled)
    assert inside.double().mean().item() == pytest.approx(0.9, abs=1e-3)


def test_it_finds_where_residuals_are_large_and_how_they_hang_together() -> None:
    """Residuals of 0.02 in the dark half and 0.2 in the bright one, neighbours alike."""
    generator = torch.Generator().manual_seed(0)
    images = torch.full((8, 1, 16, 16), 0.2)
    images[..., 8:] = 0.8
    deviation = torch.where(images > 0.5, 0.2, 0.02)

    def drawn() -> torch.Tensor:
        white = torch.randn(images.shape, generator=generator)
        return deviation * (white + white.roll(1, -1) + white.roll(1, -2)) / math.sqrt(3)

    torch.manual_seed(0)
    law = ResidualLaw((1, 16, 16), FLOOR)
    optimizer = torch.optim.Adam(law.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        residual, found = drawn(), law(images)
        found.nll(residual).mean().div(256).backward()
        torch.nn.utils.clip_grad_norm_(law.parameters(), 1.0)
        optimizer.step()
        law.follow(residual, found.deviation.detach())
    with torch.no_grad():
        found, fresh = law(images), drawn()
        sides = (found.deviation[..., :6].mean(), found.deviation[..., 10:].mean())
        assert sides[0].item() == pytest.approx(0.02, rel=0.15)
        assert sides[1].item() == pytest.approx(0.2, rel=0.15)
        variance = law.precision.reciprocal()[0, 0]
        assert variance[0, 1] > 4 * variance[8, 8], "neighbours that are alike: low frequencies"
        assert found.whiten(fresh).square().mean().item() == pytest.approx(1, abs=0.15)
