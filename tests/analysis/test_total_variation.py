"""Total variation: its derivative's adjoint, the minimum it finds, its limits."""

import math

import numpy as np
import pytest
import torch

from pipeline.analysis.inverse.masks import cartesian_mask
from pipeline.analysis.inverse.operators import Downsampling, Identity, MaskedFourier
from pipeline.analysis.inverse.total_variation import (
    LEAST,
    TOLERANCE,
    best_weight,
    divergence,
    gradient,
    objective,
    solve_total_variation,
    squared_norm,
)


@pytest.mark.parametrize("shape", [(8, 8), (7, 6), (5, 9)])
def test_divergence_is_minus_the_adjoint_of_the_gradient(shape: tuple[int, int]) -> None:
    image = torch.randn(2, 1, *shape, dtype=torch.float64)
    field = torch.randn(2, 2, 1, *shape, dtype=torch.float64)
    left, right = (gradient(image) * field).sum(), -(image * divergence(field)).sum()
    assert float(left) == pytest.approx(float(right))


def test_the_norm_of_an_operator() -> None:
    like = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    assert squared_norm(Identity(), like) == pytest.approx(1.05)
    assert squared_norm(Downsampling(3, (12, 12)), like) == pytest.approx(1.05 / 9, rel=1e-6)


def test_no_weight_on_the_image_itself_is_identity() -> None:
    image = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    found = solve_total_variation(Identity(), image, 0.0, torch.zeros_like(image), 2000, 1e-12)
    torch.testing.assert_close(found, image, atol=1e-8, rtol=0)


def test_a_large_weight_leaves_the_mean() -> None:
    image = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    found = solve_total_variation(Identity(), image, 100.0, image, 5000, 1e-12)
    mean = image.mean(dim=(2, 3), keepdim=True).expand_as(image)
    torch.testing.assert_close(found, mean, atol=1e-4, rtol=0)


def test_a_step_loses_what_theory_says() -> None:
    """Along one axis two plateaus of n pixels come closer by w/n each (Strong & Chan 2003)."""
    image = torch.full((1, 1, 1, 20), 0.2, dtype=torch.float64)
    image[..., 10:] = 0.8
    found = solve_total_variation(Identity(), image, 0.5, image, 20000, 1e-12)
    torch.testing.assert_close(found[..., :10], torch.full_like(found[..., :10], 0.25))
    torch.testing.assert_close(found[..., 10:], torch.full_like(found[..., 10:], 0.75))


def test_nothing_near_the_minimum_is_lower() -> None:
    operator = MaskedFourier(cartesian_mask((12, 12), 2, 0.2).double())
    truth = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    truth[..., 3:8, 4:9] = 0.7
    measured = operator.forward(truth)
    found = solve_total_variation(operator, measured, 0.01, truth, 5000, 1e-12)
    least = objective(operator, measured, 0.01, found)
    for size in (1e-1, 1e-2, 1e-3):
        other = (found + size * torch.randn(50, 1, 12, 12, dtype=torch.float64)).clamp(0, 1)
        assert (objective(operator, measured, 0.01, other) >= least - 1e-9).all()
    assert least <= objective(operator, measured, 0.01, truth)


@pytest.mark.parametrize("best", [0.0007, 0.004, 0.09])
def test_the_weight_is_found_within_a_fifth(best: float) -> None:
    found = best_weight(lambda weight: -abs(math.log(weight / best)), lambda _: None)
    assert abs(math.log(found / best)) < math.log(1.2)


@pytest.mark.parametrize("best", [0.0006, 0.002, 0.0035, 0.09])
def test_the_search_is_short_and_ends_within_its_tolerance(best: float) -> None:
    """The score: a parabola over the logarithm, as narrow as SSIM's on the demo."""
    tried: list[float] = []

    def score(weight: float) -> float:
        tried.append(weight)
        return 0.95 - 0.01 * math.log(weight / best, 4) ** 2

    assert score(best_weight(score, lambda _: None)) > 0.95 - TOLERANCE
    assert len(set(tried)) == len(tried) - 1 <= 7


def test_a_steep_score_that_is_no_parabola_is_searched_to_the_end() -> None:
    """SSIM of wavelets as measured on the demo, noise 0.1: a parabola at 0.256 promises nothing."""
    measured = {0.001: 0.3, 0.064: 0.42, 0.128: 0.577, 0.152: 0.626, 0.181: 0.66, 0.215: 0.671,
                0.256: 0.663, 0.304: 0.645, 0.362: 0.623, 0.512: 0.58}  # fmt: skip

    def score(weight: float) -> float:
        places = [math.log(found) for found in measured]
        return float(np.interp(math.log(weight), places, list(measured.values())))

    assert best_weight(score, lambda _: None) == pytest.approx(0.215, rel=0.01)


@pytest.mark.parametrize("rising", [1, -1])
def test_without_a_maximum_the_search_ends_at_an_end(rising: int) -> None:
    ends = {1: LEAST * 4**6, -1: LEAST}
    assert best_weight(lambda weight: rising * weight, lambda _: None) == ends[rising]


def test_denoising_is_deepinvs_at_equal_weight() -> None:
    deepinv = pytest.importorskip("deepinv", reason="the extra bench has it")
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.2 * torch.rand(1, 1, 32, 32, generator=generator)
    image[..., 8:24, 10:20] += 0.3
    weight = 0.05
    ours = solve_total_variation(Identity(), image, weight, image, iterations=5000, tolerance=1e-9)
    theirs = deepinv.models.TVDenoiser(n_it_max=5000, crit=1e-9)(image, weight)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
