"""Laws of calibration: residuals drawn from the likelihood are as it says, others are not."""

import numpy as np
import pytest
import torch

from pipeline.blur.likelihood import sample_residual
from pipeline.blur.spectrum import precision, transfer_function
from pipeline.evaluation.calibration import (
    FITTED,
    Curves,
    expected_spread,
    keys,
    mean_curves,
    measure,
    missing,
    of_subject,
    regions,
    spread_of,
)
from pipeline.evaluation.calibration_figures import calibration, error_bars
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import GaussianLaw
from pipeline.losses.residual import ResidualLaw
from pipeline.models.config import Level, ModelConfig
from pipeline.training.objective import Objective

MODEL = ModelConfig(
    levels=[Level(4, 2), Level(8, 1)], width=4, max_width=8, residual_blocks=0, kernel_hidden=8
)


def measured(
    pictures: torch.Tensor, residual: torch.Tensor, weights: torch.Tensor, scale: float
) -> tuple[dict[str, float], Curves]:
    law = GaussianLaw(torch.tensor(scale), weights)
    return measure(pictures, residual, spread_of(law, residual, torch.zeros_like(residual)))


def images(count: int = 12) -> torch.Tensor:
    found = torch.zeros(count, 1, 32, 32)
    found[:, :, 6:26, 5:27] = 0.1 + 0.9 * torch.rand(count, 1, 20, 22)
    return found


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
    row, curves = measured(images(), residual, weights, 0.2)
    assert row["coverage_90"] == pytest.approx(0.9, abs=0.03)
    assert row["coverage_90_image"] == pytest.approx(0.9, abs=0.03)
    assert row["whitened_variance"] == pytest.approx(1, abs=0.05)
    assert row["whitened_variance_brain"] == pytest.approx(1, abs=0.05)
    assert row["spectrum_error"] < 0.2
    assert row["pit_distance"] < 0.06
    assert all(abs(v - 1) < 0.2 for v in curves["region_variance"].values())


def test_a_scale_twice_too_small_shows_as_variance_four() -> None:
    residual, weights = drawn()
    row, _ = measured(images(), residual, weights, 0.1)
    assert row["whitened_variance"] == pytest.approx(4, rel=0.05)
    assert row["spectrum_error"] == pytest.approx(np.log(4), abs=0.1)
    assert row["coverage_90"] < 0.65


def test_a_silent_surround_hides_nothing_of_the_brain() -> None:
    pictures, (residual, weights) = images(), drawn()
    flat = torch.ones_like(weights)
    inside = torch.randn(residual.shape) * (pictures > 0)
    row, _ = measured(pictures, inside, flat, 0.7)
    assert row["whitened_variance"] < 1 < row["whitened_variance_brain"]
    assert row["coverage_90"] < 0.8 < row["coverage_90_image"]


def test_regions_part_the_brain() -> None:
    found = regions(images().numpy())
    brain = found["brain"]
    assert (found["rim"] ^ found["interior"])[brain].all()
    thirds = [found[f"{name} third"] for name in ("dark", "middle", "bright")]
    assert (sum(part.astype(int) for part in thirds) == found["interior"]).all()
    assert max(part.sum() for part in thirds) - min(part.sum() for part in thirds) < 5
    whole = regions(np.ones((2, 3, 8, 8)))  # a photograph has no surround
    assert not whole["rim"].any() and whole["interior"].all()


def objective(term: str) -> Objective:
    found = Objective((1, 32, 32), MODEL, LikelihoodConfig(term=term, kernel_size=5))
    with torch.no_grad():
        found(images(), torch.randn(12, MODEL.latent_size), beta=1.0, warm_up=False)
    return found.eval()


@pytest.mark.parametrize("term", ["gaussian", "blur", "fourier_gaussian", "laplace"])
def test_the_law_is_the_one_of_the_terms_own_likelihood(term: str) -> None:
    model, pictures = objective(term), images(3)
    with torch.no_grad():
        parts = model.elbo(pictures, mean_latent=True)
        law = model.law(parts.latent)
        assert law is not None
        nll = law.nll(pictures - parts.reconstruction)
    torch.testing.assert_close(nll, parts.distortion, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("fitted", [ResidualLaw((1, 32, 32), 1 / 255), None], ids=["fitted", "own"])
@pytest.mark.parametrize("term", ["gaussian", "blur", "laplace", "robust", "ssim"])
def test_every_metric_is_there_or_its_absence_has_a_reason(
    term: str, fitted: ResidualLaw | None
) -> None:
    model, generator = objective(term), torch.Generator().manual_seed(0)
    found = expected_spread(model, images(3), model.vae.infer(images(3)), generator, fitted)
    row = of_subject(images(3), [found])[0]
    absent = missing(model, term, "" if fitted else "why")
    assert {*row, *absent} == {*keys(term), *keys(FITTED)}
    assert not row.keys() & absent.keys()


def test_a_term_that_was_not_trained_under_has_no_calibration_yet() -> None:
    model = Objective((1, 32, 32), MODEL, LikelihoodConfig(kernel_size=5)).eval()
    middle = model.vae.infer(images(3))
    residual, spreads = expected_spread(model, images(3), middle, torch.Generator())
    assert residual.shape == (3, 1, 32, 32) and not spreads
    assert set(missing(model, "blur", "why")) == {*keys("blur"), *keys(FITTED)}


def test_draws_of_the_latent_only_widen_the_interval() -> None:
    model, generator = objective("blur"), torch.Generator().manual_seed(0)
    _, spreads = expected_spread(model, images(3), model.vae.infer(images(3)), generator)
    spread = spreads["term"]
    assert (spread["posterior_width"] >= spread["half_width"]).all()


def test_the_latent_s_part_of_a_variance_is_known_to_half_of_itself() -> None:
    """Of 8 draws: √(2/8) for Gaussians, where one draw would give √2."""
    model, pictures = objective("gaussian"), images(4)
    found = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        middle = model.vae.infer(pictures)
        spread = expected_spread(model, pictures, middle, generator)[1]["term"]
        found.append((spread["posterior_width"] / spread["half_width"]).square() - 1)
    variances = torch.stack(found).double()
    uncertain = (variances.std(dim=0) / variances.mean(dim=0)).mean().item()
    assert 0.35 < uncertain < 0.7


def test_the_crps_of_a_right_law_is_lower_than_that_of_a_wrong_one() -> None:
    residual, weights = drawn()
    scores = {s: measured(images(), residual, weights, s)[0]["crps"] for s in (0.1, 0.2, 0.4)}
    assert scores[0.2] < min(scores[0.1], scores[0.4])


def test_errors_and_deviations_are_drawn_on_one_scale() -> None:
    x = torch.rand(3, 3, 16, 16)
    figure = error_bars(x, x * 0.9, torch.full_like(x, 0.05), ["a", "b", "c"], "")
    pictures = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(pictures) == 15
    assert pictures[2].get_clim() == pictures[3].get_clim()


def test_pictures_of_error_bars_stand_in_rows_and_columns_and_bars_have_units() -> None:
    x = torch.rand(3, 1, 16, 20)
    figure = error_bars(x, x * 0.9, torch.full_like(x, 0.05), ["a", "b", "c"], "")
    figure.draw_without_rendering()
    pictures = [axes for axes in figure.axes if axes.images]
    places = np.array([axes.get_position().bounds for axes in pictures]).reshape(3, 5, 4)
    np.testing.assert_allclose(places[..., 1], places[:, :1, 1].repeat(5, 1), atol=1e-6)
    np.testing.assert_allclose(places[..., 0], places[:1, :, 0].repeat(3, 0), atol=1e-6)
    np.testing.assert_allclose(np.ptp(places[..., 2:], axis=(0, 1)), 0, atol=1e-6)
    bars = [axes.get_xlabel() for axes in figure.axes if not axes.images]
    assert bars == ["intensity (0–1)", "intensity (0–1)", "standard deviations"]


def test_runs_are_drawn_side_by_side() -> None:
    residual, weights = drawn()
    _, curves = measured(images(), residual, weights, 0.2)
    shown = mean_curves([curves, curves])
    figure = calibration({"one": shown, "two": shown})
    assert len(figure.axes) == 4
    figure.draw_without_rendering()
    [legend] = figure.legends  # one for all, and beside them
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two", "as it should be"]
    top = legend.get_window_extent().y1
    assert all(axes.get_tightbbox().y0 >= top and axes.get_legend() is None for axes in figure.axes)
    for axes in figure.axes:
        assert axes.yaxis.label.get_window_extent().height <= axes.get_window_extent().height
