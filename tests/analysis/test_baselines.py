"""Total variation and wavelets: their derivatives and transforms, the minima that they find."""

import math

import pytest
import torch

from pipeline.analysis.baselines import (
    MOST,
    TRIES,
    best_weight,
    divergence,
    gradient,
    shrink,
    solve_total_variation,
    solve_wavelets,
)
from pipeline.analysis.operators import MaskedFourier, Within, cartesian_mask

DENOISING = Within(torch.ones(()))


@pytest.mark.parametrize("shape", [(8, 8), (7, 6), (5, 9)])
def test_divergence_is_minus_the_adjoint_of_the_gradient(shape: tuple[int, int]) -> None:
    image = torch.randn(2, 1, *shape, dtype=torch.float64)
    field = torch.randn(2, 2, 1, *shape, dtype=torch.float64)
    left, right = (gradient(image) * field).sum(), -(image * divergence(field)).sum()
    assert float(left) == pytest.approx(float(right))


def test_no_weight_is_identity_and_a_large_one_leaves_the_mean() -> None:
    image = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    same = solve_total_variation(DENOISING, image, 0.0, torch.zeros_like(image), 2000, 1e-12)
    torch.testing.assert_close(same, image, atol=1e-8, rtol=0)
    flat = solve_total_variation(DENOISING, image, 100.0, image, 5000, 1e-12)
    mean = image.mean(dim=(2, 3), keepdim=True).expand_as(image)
    torch.testing.assert_close(flat, mean, atol=1e-4, rtol=0)


def test_a_step_loses_what_theory_says() -> None:
    """Along one axis two plateaus of n pixels come closer by w/n each (Strong & Chan 2003)."""
    image = torch.full((1, 1, 1, 20), 0.2, dtype=torch.float64)
    image[..., 10:] = 0.8
    lower = solve_total_variation(DENOISING, image, 0.5, image, 20000, 1e-12)
    torch.testing.assert_close(lower, torch.where(image < 0.5, 0.25, 0.75).double())


def test_nothing_near_the_minimum_is_lower() -> None:
    operator = MaskedFourier(cartesian_mask((12, 12), 2, 0.2).double())
    truth = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    truth[..., 3:8, 4:9] = 0.7
    measured = operator.forward(truth)

    def objective(image: torch.Tensor) -> torch.Tensor:
        misfit = (operator.forward(image) - measured).abs().square().flatten(1).sum(dim=1)
        return 0.5 * misfit + 0.01 * gradient(image).norm(dim=0).flatten(1).sum(dim=1)

    image = solve_total_variation(operator, measured, 0.01, truth, 5000, 1e-12)
    for size in (1e-1, 1e-2, 1e-3):
        other = (image + size * torch.randn(50, 1, 12, 12, dtype=torch.float64)).clamp(0, 1)
        assert (objective(other) >= objective(image) - 1e-9).all()
    assert objective(image) <= objective(truth)


def test_denoising_is_deepinvs_at_equal_weight() -> None:
    deepinv = pytest.importorskip("deepinv", reason="the extra bench has it")
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.2 * torch.rand(1, 1, 32, 32, generator=generator)
    image[..., 8:24, 10:20] += 0.3
    ours = solve_total_variation(DENOISING, image, 0.05, image, iterations=5000, tolerance=1e-9)
    theirs = deepinv.models.TVDenoiser(n_it_max=5000, crit=1e-9)(image, 0.05)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(32, 32), (64, 48)])
def test_the_wavelets_are_orthonormal(shape: tuple[int, int]) -> None:
    """No threshold is identity; without details a projection is left."""
    image, shift = torch.rand(2, 1, *shape, dtype=torch.float64), (3, 5)
    torch.testing.assert_close(shrink(image, 0.0, shift), image, rtol=0, atol=1e-10)
    kept = shrink(image, 1e9, shift)
    torch.testing.assert_close(shrink(kept, 1e9, shift), kept, rtol=0, atol=1e-10)
    assert ((image - kept) * kept).sum().abs() < 1e-8 * image.square().sum()


def test_of_wavelets_noise_is_less_and_an_edge_stays() -> None:
    clean = torch.full((1, 1, 64, 64), 0.2)
    clean[..., 20:44, 16:48] = 0.8
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    image = solve_wavelets(DENOISING, noisy, 0.2, noisy)
    assert (image - clean).square().mean() < 0.3 * (noisy - clean).square().mean()
    assert image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize("best", [0.0007, 0.002, 0.0035, 0.09])
def test_a_weight_is_found_in_few_tries(best: float) -> None:
    """SSIM on the demo is a parabola over the logarithm."""
    tried: list[float] = []

    def score(weight: float) -> float:
        tried.append(weight)
        return 0.95 - 0.01 * math.log(weight / best, 4) ** 2

    assert score(best_weight(score)) > 0.95 - 5e-4
    assert len(tried) <= TRIES + 1
    assert best_weight(lambda weight: weight) > 0.8 * MOST
