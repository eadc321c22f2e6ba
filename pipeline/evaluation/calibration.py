"""Are residuals as the likelihood says they are?

The likelihood is N(x̂, σ²Σ) with Σ stationary. If it is right, the whitened residual Σ^(-1/2)e/σ is
white noise of variance 1 at every frequency and in every part of the image; a pixel's residual has
the variance (σ²/HW) Σ 1/λ everywhere, 90% of them lie within 1.645 of its roots, and their
probability integral transform is uniform (Dawid 1984; Gneiting, Balabdaoui, Raftery 2007).

Brain here is where the image is above 0: the surround, which every model gets right, would hide
what happens in the brain. All reconstructions decode the posterior's mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pipeline.blur.spectrum import precision, transfer_function
from pipeline.blur.whitening import marginal_variance, whiten
from pipeline.evaluation.sharpness import radial_variance
from pipeline.losses.blur import Blur
from pipeline.losses.fourier_gaussian import FourierGaussian
from pipeline.losses.gaussian import Gaussian
from pipeline.losses.laplace import Laplace
from pipeline.training.objective import Objective

LEVEL = 0.9
# Standard normal quantile of (1 + LEVEL) / 2.
QUANTILE = 1.6448536269514722
BINS = 20
DRAWS = 8
# Pixels this near to the surround are the rim; distances are to the nearest pixel of value 0.
RIM_PIXELS = 2.0
REGIONS = ("rim", "interior", "dark third", "middle third", "bright third")

COVERAGE = ("calibration_coverage_90", "calibration_coverage_90_image")
GAUSSIAN_ONLY = (
    "calibration_coverage_90_posterior",
    "calibration_whitened_variance",
    "calibration_whitened_variance_brain",
    "calibration_spectrum_error",
    "calibration_pit_distance",
)


@dataclass(frozen=True)
class Spread:
    """How far off the likelihood expects some residuals to be, (B,C,H,W) each.

    half_width: of the pixel's 90% interval. Of Gaussians alone: deviation, the pixel's standard
    deviation; posterior_deviation, with the reconstruction's own over draws of the latent added;
    whitened residual, standard deviations.
    """

    half_width: Tensor
    deviation: Tensor | None = None
    posterior_deviation: Tensor | None = None
    whitened: Tensor | None = None


def missing(objective: Objective, term: str) -> dict[str, str]:
    """Which metrics a term has not, each with the reason."""
    if isinstance(objective.term, Gaussian | FourierGaussian):
        return {}
    if isinstance(objective.term, Laplace):
        return dict.fromkeys(GAUSSIAN_ONLY, f"{term} is no Gaussian")
    reason = "has no interval in closed form" if objective.term.density else "is not a density"
    return dict.fromkeys(COVERAGE + GAUSSIAN_ONLY, f"{term} {reason}")


def covariance(objective: Objective, latent: Tensor) -> tuple[Tensor, Tensor] | None:
    """Precision λ (B,1,H,W//2+1) and scale σ () of a Gaussian term; None where it is none."""
    term, (_, height, width) = objective.term, objective.vae.image_shape
    shape = (len(latent), 1, height, width // 2 + 1)
    if isinstance(term, FourierGaussian):
        deviations = term.scale(term.scale.running)
        spectrum = deviations.square().reciprocal()[term.bins].expand(shape)
        return spectrum, torch.ones((), device=latent.device)
    if not isinstance(term, Gaussian):
        return None
    scale = term.scale(term.scale.running)
    kernel = objective.kernel(latent)
    if isinstance(term, Blur) and kernel is not None:
        transfer = transfer_function(kernel, (height, width))
        return precision(transfer, term.constant, term.form), scale
    return latent.new_ones(shape), scale


@torch.no_grad()
def expected_spread(
    objective: Objective, images: Tensor, generator: torch.Generator
) -> tuple[Tensor, Spread] | None:
    """Residuals at the posterior's mean and what the likelihood expected of them.

    images (B,C,H,W). None where the term has no interval in closed form.
    """
    vae = objective.vae
    middle = vae.infer(images)
    reconstruction = middle.reconstruction
    residual = images - reconstruction
    if isinstance(objective.term, Laplace):
        # P(|e| > t) = exp(−t/b).
        width = objective.term.scale(objective.term.scale.running) * -math.log(1 - LEVEL)
        return residual, Spread(width.expand(residual.shape))
    found = covariance(objective, middle.latent)
    if found is None:
        return None
    weights, scale = found
    variance = marginal_variance(weights, scale, images.shape[-1]).reshape(-1, 1, 1, 1)
    # About the mean's reconstruction, which is what the residual is taken from.
    drawn = torch.zeros_like(residual)
    for _ in range(DRAWS):
        other = vae.infer(images, vae.prior_latents(len(images), generator)).reconstruction
        drawn += (other - reconstruction).square() / DRAWS
    deviation = variance.sqrt().expand(residual.shape)
    return residual, Spread(
        deviation * QUANTILE, deviation, (variance + drawn).sqrt(), whiten(residual, weights, scale)
    )


def regions(images: np.ndarray) -> dict[str, np.ndarray]:
    """Brain and its parts: (B,C,H,W) of one subject -> name to (B,H,W) bool.

    "brain" is where a channel is above 0. Rim: within 2 pixels of the surround; interior: the rest.
    Thirds of the interior by intensity, over all slices of the subject: in T1-weighted images
    roughly fluid, grey and white matter, of which this knows nothing.
    """
    brain = np.asarray((images > 0).any(axis=1))
    rim = np.zeros_like(brain)
    for k, mask in enumerate(brain):
        if not mask.all():
            rim[k] = mask & (ndimage.distance_transform_edt(mask) <= RIM_PIXELS)
    interior, intensity = brain & ~rim, images.mean(axis=1)
    found = {"brain": brain, "rim": rim, "interior": interior}
    low, high = np.quantile(intensity[interior], [1 / 3, 2 / 3]) if interior.any() else (0.0, 0.0)
    found["dark third"] = interior & (intensity <= low)
    found["middle third"] = interior & (intensity > low) & (intensity <= high)
    found["bright third"] = interior & (intensity > high)
    return found


@dataclass(frozen=True)
class Curves:
    """One subject's distributions, for the figure; None or NaN where a term or subject has none.

    variance (n_bins,) of the whitened residual per radial frequency; pit and whitened_pit (20,)
    shares in the brain; coverage and region_variance by region.
    """

    coverage: dict[str, float]
    variance: np.ndarray
    pit: np.ndarray
    whitened_pit: np.ndarray
    region_variance: dict[str, float]


def of_subject(
    images: Tensor, batches: Sequence[tuple[Tensor, Spread] | None]
) -> tuple[dict[str, float], Curves | None]:
    """`measure` of one subject's slices (n,C,H,W), whose spread was taken batch by batch."""
    known = [batch for batch in batches if batch is not None]
    if not known:
        return {}, None

    def whole(name: str) -> Tensor | None:
        parts = [getattr(spread, name) for _, spread in known]
        return None if parts[0] is None else torch.cat(parts).cpu()

    residual = torch.cat([residual for residual, _ in known]).cpu()
    width = torch.cat([spread.half_width for _, spread in known]).cpu()
    rest = (whole(name) for name in ("deviation", "posterior_deviation", "whitened"))
    return measure(images, residual, Spread(width, *rest))


def measure(
    images: Tensor, residual: Tensor, spread: Spread
) -> tuple[dict[str, float], Curves | None]:
    """Of one subject's slices (B,C,H,W): its row of metrics, and of Gaussians its curves."""
    parts = {
        name: torch.from_numpy(mask)[:, None].expand(images.shape)
        for name, mask in regions(images.numpy()).items()
    }
    brain = parts["brain"]
    size = residual.double().abs()
    covered = (size <= spread.half_width).double()
    row = {
        "calibration_coverage_90": _mean(covered, brain),
        "calibration_coverage_90_image": covered.mean().item(),
    }
    if spread.deviation is None or spread.posterior_deviation is None or spread.whitened is None:
        return row, None
    white = spread.whitened.double()
    wider = (size <= QUANTILE * spread.posterior_deviation).double()
    variance = radial_variance(white).mean(dim=0).numpy()
    pit = _histogram(residual.double() / spread.deviation, brain)
    row |= {
        "calibration_coverage_90_posterior": _mean(wider, brain),
        "calibration_whitened_variance": white.square().mean().item(),
        "calibration_whitened_variance_brain": _mean(white.square(), brain),
        "calibration_spectrum_error": float(np.abs(np.log(variance.clip(1e-12))).mean()),
        "calibration_pit_distance": float(np.abs(pit - 1 / BINS).sum() / 2),
    }
    return row, Curves(
        {name: _mean(covered, parts[name]) for name in REGIONS},
        variance,
        pit,
        _histogram(white, brain),
        {name: _mean(white.square(), parts[name]) for name in REGIONS},
    )


def _mean(values: Tensor, mask: Tensor) -> float:
    """NaN for an empty mask."""
    return values[mask].mean().item()


def _histogram(deviations: Tensor, mask: Tensor) -> np.ndarray:
    """Shares of Φ(deviation) in 20 equal bins of [0,1]; all are 1/20 for standard normal ones."""
    probability = torch.special.ndtr(deviations[mask])
    counts = torch.histc(probability, BINS, 0.0, 1.0).numpy()
    return counts / max(counts.sum(), 1)


def mean_curves(curves: list[Curves]) -> dict[str, object]:
    """The mean over subjects, ready for calibration.json; regions that nobody has are left out."""
    found: dict[str, object] = {
        key: np.mean([getattr(c, key) for c in curves], axis=0).tolist()
        for key in ("variance", "pit", "whitened_pit")
    }
    for key in ("coverage", "region_variance"):
        values = {name: [getattr(c, key)[name] for c in curves] for name in REGIONS}
        found[key] = {
            name: float(np.nanmean(v)) for name, v in values.items() if not np.isnan(v).all()
        }
    return found
