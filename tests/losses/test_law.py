"""What a law says of a pixel agrees with itself, with scipy, and with its term."""

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import GaussianLaw, LaplaceLaw, Law
from pipeline.losses.registry import build_term

SHAPE = torch.Size((2, 1, 6, 8))
FLAT = torch.ones(1, 1, 6, 5, dtype=torch.float64)
SIGMA = 0.3


def _laws() -> list[tuple[Law, stats.rv_continuous]]:
    scale = torch.tensor(SIGMA, dtype=torch.float64)
    return [
        (GaussianLaw(scale, FLAT), stats.norm(scale=SIGMA)),
        (LaplaceLaw(scale), stats.laplace(scale=SIGMA)),
    ]


def _residual() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.5 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("law", "known"), _laws(), ids=["gaussian", "laplace"])
def test_value_interval_and_probability_are_scipys(law: Law, known: stats.rv_continuous) -> None:
    residual = _residual()
    expected = -known.logpdf(residual.numpy()).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(law.nll(residual).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(law.cdf(residual).numpy(), known.cdf(residual.numpy()), atol=1e-12)
    width, deviation = law.half_width(0.9, SHAPE), law.standard_deviation(SHAPE)
    assert width.shape == deviation.shape == SHAPE
    np.testing.assert_allclose(width.numpy(), known.ppf(0.95), rtol=1e-12)
    np.testing.assert_allclose(deviation.numpy(), known.std(), rtol=1e-12)


@pytest.mark.parametrize(("law", "known"), _laws(), ids=["gaussian", "laplace"])
def test_the_crps_is_its_integral(law: Law, known: stats.rv_continuous) -> None:
    residual, grid = _residual(), np.linspace(-8, 8, 160001)
    found = law.crps(residual).flatten()
    for value, score in list(zip(residual.flatten().tolist(), found.tolist(), strict=True))[:5]:
        squared = (known.cdf(grid) - (grid >= value)) ** 2
        assert score == pytest.approx(np.trapezoid(squared, grid), abs=1e-4)


@pytest.mark.parametrize("term", ["gaussian", "blur", "fourier_gaussian", "laplace"])
def test_the_law_of_a_term_has_the_terms_value(term: str) -> None:
    built = build_term(LikelihoodConfig(term=term, kernel_size=3), (1, 16, 16))
    images, reconstructions = torch.rand(2, 4, 1, 16, 16).unbind()
    transfer = torch.polar(torch.rand(4, 1, 16, 9), torch.rand(4, 1, 16, 9))
    given = transfer if built.needs_kernel else None
    built(images, reconstructions, given)
    built.eval()
    law = built.law(given)
    assert law is not None
    value = built(images, reconstructions, given).value
    torch.testing.assert_close(law.nll(images - reconstructions), value, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("term", ["gaussian", "blur", "fourier_gaussian", "laplace"])
def test_a_density_that_was_not_trained_under_has_no_law(term: str) -> None:
    built = build_term(LikelihoodConfig(term=term), (1, 16, 16)).eval()
    assert not built.has_scale
    with pytest.raises(ValueError, match="warmup_epochs"):
        built.law(None)
    with pytest.raises(ValueError, match="warmup_epochs"):
        built(torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16), None)


@pytest.mark.parametrize("term", ["robust", "ssim", "focal_frequency"])
def test_terms_without_an_interval_have_no_law(term: str) -> None:
    assert build_term(LikelihoodConfig(term=term), (1, 32, 32)).law(None) is None
