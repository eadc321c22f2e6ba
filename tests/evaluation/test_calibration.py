"""Laws of calibration: residuals drawn from the likelihood are as it says, others are not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.__main__ import main
from pipeline.blur.likelihood import sample_residual
from pipeline.blur.spectrum import precision, transfer_function
from pipeline.blur.whitening import marginal_variance, whiten
from pipeline.evaluation.calibration import (
    COVERAGE,
    GAUSSIAN_ONLY,
    QUANTILE,
    Spread,
    covariance,
    expected_spread,
    mean_curves,
    measure,
    missing,
    regions,
)
from pipeline.evaluation.calibration_figures import calibration
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig
from pipeline.training.objective import Objective

MODEL = ModelConfig(
    levels=[Level(4, 2), Level(8, 1)], width=4, max_width=8, residual_blocks=0, kernel_hidden=8
)


def spread(residual: torch.Tensor, weights: torch.Tensor, scale: float) -> Spread:
    deviation = marginal_variance(weights, scale, residual.shape[-1]).sqrt().reshape(-1, 1, 1, 1)
    wide = deviation.expand(residual.shape)
    return Spread(wide * QUANTILE, wide, wide, whiten(residual, weights, scale))


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
    row, curves = measure(images(), residual, spread(residual, weights, 0.2))
    assert row["calibration_coverage_90"] == pytest.approx(0.9, abs=0.03)
    assert row["calibration_coverage_90_image"] == pytest.approx(0.9, abs=0.03)
    assert row["calibration_whitened_variance"] == pytest.approx(1, abs=0.05)
    assert row["calibration_whitened_variance_brain"] == pytest.approx(1, abs=0.05)
    assert row["calibration_spectrum_error"] < 0.2
    assert row["calibration_pit_distance"] < 0.06
    assert curves is not None
    assert all(abs(v - 1) < 0.2 for v in curves.region_variance.values())


def test_a_scale_twice_too_small_shows_as_variance_four() -> None:
    residual, weights = drawn()
    row, _ = measure(images(), residual, spread(residual, weights, 0.1))
    assert row["calibration_whitened_variance"] == pytest.approx(4, rel=0.05)
    assert row["calibration_spectrum_error"] == pytest.approx(np.log(4), abs=0.1)
    assert row["calibration_coverage_90"] < 0.65


def test_a_silent_surround_hides_nothing_of_the_brain() -> None:
    pictures, (residual, weights) = images(), drawn()
    flat = torch.ones_like(weights)
    inside = torch.randn(residual.shape) * (pictures > 0)
    row, _ = measure(pictures, inside, spread(inside, flat, 0.7))
    assert row["calibration_whitened_variance"] < 1 < row["calibration_whitened_variance_brain"]
    assert row["calibration_coverage_90"] < 0.8 < row["calibration_coverage_90_image"]


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


@pytest.mark.parametrize("term", ["gaussian", "blur", "fourier_gaussian"])
def test_the_covariance_is_the_one_of_the_terms_own_likelihood(term: str) -> None:
    from pipeline.blur.likelihood import gaussian_nll

    model, pictures = objective(term), images(3)
    with torch.no_grad():
        parts = model.elbo(pictures, mean_latent=True)
        found = covariance(model, parts.latent)
        assert found is not None
        nll = gaussian_nll(pictures - parts.reconstruction, *found)
    torch.testing.assert_close(nll, parts.distortion, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("term", ["gaussian", "blur", "laplace", "robust", "ssim"])
def test_every_metric_is_there_or_its_absence_has_a_reason(term: str) -> None:
    model = objective(term)
    found = expected_spread(model, images(3), torch.Generator().manual_seed(0))
    row = measure(images(3), *found)[0] if found else {}
    assert {*row, *missing(model, term)} == {*COVERAGE, *GAUSSIAN_ONLY}
    assert not row.keys() & missing(model, term).keys()


def test_draws_of_the_latent_only_widen_the_interval() -> None:
    found = expected_spread(objective("blur"), images(3), torch.Generator().manual_seed(0))
    assert found is not None
    spread = found[1]
    assert spread.deviation is not None and spread.posterior_deviation is not None
    assert (spread.posterior_deviation >= spread.deviation).all()


def test_runs_are_drawn_side_by_side() -> None:
    residual, weights = drawn()
    _, curves = measure(images(), residual, spread(residual, weights, 0.2))
    assert curves is not None
    shown = mean_curves([curves, curves])
    figure = calibration({"one": shown, "two": shown})
    assert len(figure.axes) == 4


def test_runs_are_drawn_by_the_command_and_a_missing_one_is_told(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    residual, weights = drawn()
    _, curves = measure(images(), residual, spread(residual, weights, 0.2))
    assert curves is not None
    path = work / "runs/one/evaluation/calibration.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(mean_curves([curves])))
    assert main(["calibration", "--runs", "blur=one,one"]) == 0
    assert (work / "calibration.png").read_bytes().startswith(b"\x89PNG")
    for runs in ("two", ","):
        assert main(["calibration", "--runs", runs]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    for damaged in ("{}", "[]", "null", '{"variance": 1'):
        path.write_text(damaged)
        assert main(["calibration", "--runs", "one"]) == 2
        assert "calibration.json" in capsys.readouterr().err
