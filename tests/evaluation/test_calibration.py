"""Laws of calibration: residuals drawn from the likelihood are as it says, others are not."""

import numpy as np
import pytest
import torch

from pipeline.blur.likelihood import sample_residual
from pipeline.blur.spectrum import precision, transfer_function
from pipeline.evaluation.calibration import (
    FITTED,
    expected_spread,
    keys,
    mean_curves,
    measure,
    missing,
    of_subject,
    spread_of,
)
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import GaussianLaw
from pipeline.losses.residual import ResidualLaw
from pipeline.models.config import Level, ModelConfig
from pipeline.training.objective import Objective

MODEL = ModelConfig(
    levels=[Level(4, 2), Level(8, 1)], width=4, max_width=8, residual_blocks=0, kernel_hidden=8
)
Row = dict[str, float]


def measured(
    pictures: torch.Tensor, residual: torch.Tensor, weights: torch.Tensor, scale: float
) -> Row:
    law = GaussianLaw(torch.tensor(scale), weights)
    return measure(pictures, residual, spread_of(law, residual, torch.zeros_like(residual)))[0]


def images(count: int = 12) -> torch.Tensor:
    pictures = torch.zeros(count, 1, 32, 32)
    pictures[:, :, 6:26, 5:27] = 0.1 + 0.9 * torch.rand(count, 1, 20, 22)
    return pictures


def drawn(form: str = "wiener") -> tuple[torch.Tensor, torch.Tensor]:
    # Peaked: of a wide kernel a few lost frequencies carry all the variance of a Wiener spectrum.
    logits = torch.rand(12, 25)
    logits[:, 12] += 4
    kernel = logits.softmax(1).reshape(12, 1, 5, 5)
    weights = precision(transfer_function(kernel, (32, 32)), 0.1, form)  # type: ignore[arg-type]
    return sample_residual(weights, 0.2, 1, 32), weights


@pytest.mark.parametrize("form", ["wiener", "positive_definite"])
def test_residuals_drawn_from_the_likelihood_are_calibrated(form: str) -> None:
    residual, weights = drawn(form)
    row = measured(images(), residual, weights, 0.2)
    for key in ("coverage_90", "coverage_90_image"):
        assert row[key] == pytest.approx(0.9, abs=0.03)
    for key in ("whitened_variance", "whitened_variance_brain"):
        assert row[key] == pytest.approx(1, abs=0.05)
    assert row["spectrum_error"] < 0.2 and row["pit_distance"] < 0.06


def test_a_scale_twice_too_small_is_variance_four_and_a_right_one_has_the_least_crps() -> None:
    residual, weights = drawn()
    rows = {scale: measured(images(), residual, weights, scale) for scale in (0.1, 0.2, 0.4)}
    assert rows[0.1]["whitened_variance"] == pytest.approx(4, rel=0.05)
    assert rows[0.1]["spectrum_error"] == pytest.approx(np.log(4), abs=0.1)
    assert rows[0.1]["coverage_90"] < 0.65
    assert rows[0.2]["crps"] < min(rows[0.1]["crps"], rows[0.4]["crps"])


def test_a_silent_surround_hides_nothing_of_the_brain() -> None:
    pictures, (residual, weights) = images(), drawn()
    inside = torch.randn(residual.shape) * (pictures > 0)
    row = measured(pictures, inside, torch.ones_like(weights), 0.7)
    assert row["whitened_variance"] < 1 < row["whitened_variance_brain"]
    assert row["coverage_90"] < 0.8 < row["coverage_90_image"]


def objective(term: str, trained: bool = True) -> Objective:
    model = Objective((1, 32, 32), MODEL, LikelihoodConfig(term=term, kernel_size=5))
    if trained:
        with torch.no_grad():
            model(images(), torch.randn(12, MODEL.latent_size), beta=1.0, warm_up=False)
    return model.eval()


@pytest.mark.parametrize("term", ["gaussian", "blur", "fourier_gaussian", "laplace"])
def test_the_law_is_the_one_of_the_terms_own_likelihood(term: str) -> None:
    model, pictures = objective(term), images(3)
    with torch.no_grad():
        parts = model.elbo(pictures, mean_latent=True)
        law = model.law(parts.latent)
        assert law is not None
        nll = law.nll(pictures - parts.reconstruction)
    torch.testing.assert_close(nll, parts.distortion, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("fitted", [ResidualLaw((1, 32, 32), 1 / 255), None], ids=["fitted", "own"])
@pytest.mark.parametrize("term", ["gaussian", "blur", "laplace", "robust", "ssim"])
def test_every_metric_is_there_or_its_absence_has_a_reason(
    term: str, fitted: ResidualLaw | None, trained: bool
) -> None:
    model, pictures, generator = objective(term, trained), images(3), torch.Generator()
    middle = model.vae.infer(pictures)
    spreads = expected_spread(model, pictures, middle, generator, fitted)
    row, curves = of_subject(pictures, pictures - middle.reconstruction, spreads)
    absent = missing(model, term, "" if fitted else "why")
    assert {*row, *absent} == {*keys(term), *keys(FITTED)} and not row.keys() & absent.keys()
    assert all(set(mean_curves([c, c])) == set(c) for c in curves.values())


def test_draws_of_the_latent_widen_the_interval_and_are_known_to_half_of_their_variance() -> None:
    """Of 8 draws: √(2/8) for Gaussians, where one draw would give √2."""
    model, pictures = objective("gaussian"), images(4)
    middle, variances = model.vae.infer(pictures), []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        spread = expected_spread(model, pictures, middle, generator)["term"]
        assert spread.posterior_width is not None
        assert (spread.posterior_width >= spread.half_width).all()
        variances.append((spread.posterior_width / spread.half_width).square() - 1)
    many = torch.stack(variances).double()
    assert 0.35 < (many.std(dim=0) / many.mean(dim=0)).mean().item() < 0.7
