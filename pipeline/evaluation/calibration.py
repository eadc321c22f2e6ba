"""Whether residuals follow their law.

Two laws are tested: that of the term, under which the model was trained, and the one that was
fitted to the residuals afterwards (`losses.residual`). Both are N(x̂, S C S) for most terms. If one
is right, 90% of a pixel's residuals lie within 1.645 of its standard deviations, their probability
integral transform is uniform, no other forecast has a lower expected continuous ranked probability
score (Dawid 1984; Gneiting, Balabdaoui, Raftery 2007), and the whitened residual is white noise of
variance 1 at every frequency and in every part of the image.

Brain here is where the image is above 0: the surround, which every model gets right, would hide
what happens in the brain. All reconstructions decode the posterior's mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pipeline.losses.law import GaussianLaw, Law
from pipeline.losses.residual import ResidualLaw
from pipeline.metrics.sharpness import radial_variance
from pipeline.models.vae import Inference
from pipeline.training.objective import Objective

LEVEL = 0.9
BINS = 20
DRAWS = 8
# Pixels this near to the surround are the rim; distances are to the nearest pixel of value 0.
RIM_PIXELS = 2.0
REGIONS = ("rim", "interior", "dark third", "middle third", "bright third")
# The law's own name in metrics and figures; that of the term goes by the term's.
FITTED = "fitted"

EVERY = ("coverage_90", "coverage_90_image", "crps", "pit_distance")
GAUSSIAN_ONLY = (
    "coverage_90_posterior",
    "whitened_variance",
    "whitened_variance_brain",
    "spectrum_error",
)


def keys(law: str, names: Sequence[str] = EVERY + GAUSSIAN_ONLY) -> list[str]:
    """The metrics of a law by their names in metrics.json; law: FITTED or another."""
    prefix = "calibration_fitted_" if law == FITTED else "calibration_"
    return [prefix + name for name in names]


@dataclass(frozen=True)
class Spread:
    """The expectation of a law of some residuals, (B,C,H,W) each.

    half_width: of the pixel's 90% interval, intensity; probability: of a smaller residual; crps:
    intensity. Of Gaussians alone: posterior_width, half_width with the reconstruction's own
    variance over draws of the latent added; whitened: the whitened residual, standard deviations.
    """

    half_width: Tensor
    probability: Tensor
    crps: Tensor
    posterior_width: Tensor | None = None
    whitened: Tensor | None = None

    @staticmethod
    def joined(parts: Sequence["Spread"]) -> "Spread":
        """One of all images, on the CPU."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Spread)}
        return Spread(**{k: torch.cat(v).cpu() for k, v in columns.items() if v[0] is not None})


Curves = dict[str, Any]
"""One subject's distributions under one law, for the figure; NaN where a subject has none.

pit (20,) shares in the brain; coverage and crps by region; of Gaussians alone: variance (n_bins,)
of the whitened residual per radial frequency, whitened_pit (20,), region_variance.
"""


def missing(objective: Objective, term: str, lawless: str = "") -> dict[str, str]:
    """The metrics of calibration that a run can't have, each with the reason.

    lawless: why there is no fitted law; empty where there is one.
    """
    absent = dict.fromkeys(keys(FITTED), lawless) if lawless else {}
    law, reason = None, f"{term} has no interval in closed form"
    if not objective.term.density:
        reason = f"{term} is not a density"
    elif not objective.term.has_scale:
        reason = f"{term} has not been trained under yet"
    else:
        law = objective.term.law(None)
    if law is None:
        absent |= dict.fromkeys(keys(term), reason)
    elif not isinstance(law, GaussianLaw):
        absent |= dict.fromkeys(keys(term, GAUSSIAN_ONLY), f"{term} is not Gaussian")
    return absent


@torch.no_grad()
def expected_spread(
    objective: Objective,
    images: Tensor,
    middle: Inference,
    generator: torch.Generator,
    fitted: ResidualLaw | None = None,
) -> dict[str, Spread]:
    """The expectation of each law, "term" and FITTED, of residuals at the posterior's mean.

    Args:
        objective: a trained model in evaluation mode.
        images: (B,C,H,W) in [0,1].
        middle: the result of `VAE.infer` for them without noise.
        generator: of draws from the posterior, on the model's device.
        fitted: the law of its residuals, where one was fitted.
    """
    vae, reconstruction = objective.vae, middle.reconstruction
    laws: dict[str, Law] = {}
    if (own := objective.law(middle.latent)) is not None:
        laws["term"] = own
    if fitted is not None:
        laws[FITTED] = fitted(reconstruction)
    # About the mean's reconstruction, which is what the residual is taken from.
    drawn = torch.zeros_like(images)
    for _ in range(DRAWS if laws else 0):
        noise = vae.prior_latents(len(images), generator)
        other = vae.infer(images, noise, middle.features)
        drawn += (other.reconstruction - reconstruction).square() / DRAWS
    return {name: spread_of(law, images - reconstruction, drawn) for name, law in laws.items()}


def spread_of(law: Law, residual: Tensor, variance: Tensor) -> Spread:
    """A law's expectation of residuals (B,C,H,W); variance: of the reconstruction, of them."""
    width = law.half_width(LEVEL, residual.shape)
    expected = width, law.cdf(residual), law.crps(residual)
    if not isinstance(law, GaussianLaw):
        return Spread(*expected)
    deviation = law.standard_deviation(residual.shape)
    wider = width * (1 + variance / deviation.square()).sqrt()
    return Spread(*expected, wider, law.whiten(residual))


def regions(images: np.ndarray) -> dict[str, np.ndarray]:
    """The brain and its parts by name, (n,H,W) bool each, of a subject's images (n,C,H,W).

    "brain" is where a channel is above 0. Rim: within 2 pixels of the surround; interior: the rest.
    Thirds of the interior by intensity, over all slices of the subject: in T1-weighted images
    roughly fluid, grey and white matter; nothing is segmented.
    """
    brain = np.asarray((images > 0).any(axis=1))
    rim = np.zeros_like(brain)
    for k, mask in enumerate(brain):
        if not mask.all():
            rim[k] = mask & (ndimage.distance_transform_edt(mask) <= RIM_PIXELS)
    interior, intensity = brain & ~rim, images.mean(axis=1)
    low, high = np.quantile(intensity[interior], [1 / 3, 2 / 3]) if interior.any() else (0.0, 0.0)
    return {
        "brain": brain,
        "rim": rim,
        "interior": interior,
        "dark third": interior & (intensity <= low),
        "middle third": interior & (intensity > low) & (intensity <= high),
        "bright third": interior & (intensity > high),
    }


def measure(images: Tensor, residual: Tensor, spread: Spread) -> tuple[dict[str, float], Curves]:
    """The calibration of one law on one subject.

    Args:
        images: (n,C,H,W) in [0,1].
        residual: (n,C,H,W), intensity.
        spread: the law's expectation of it.

    Returns:
        Metrics by EVERY and, of a Gaussian law, GAUSSIAN_ONLY, and the curves of the figure.
    """
    parts = {
        name: torch.from_numpy(mask)[:, None].expand(images.shape)
        for name, mask in regions(images.numpy()).items()
    }
    brain = parts["brain"]

    def by_region(values: Tensor) -> dict[str, float]:
        return {name: values[parts[name]].mean().item() for name in REGIONS}  # NaN if empty

    size = residual.double().abs()
    covered = (size <= spread.half_width).double()
    crps, pit = spread.crps.double(), _histogram(spread.probability, brain)
    row = {
        "coverage_90": covered[brain].mean().item(),
        "coverage_90_image": covered.mean().item(),
        "crps": crps[brain].mean().item(),
        "pit_distance": float(np.abs(pit - 1 / BINS).sum() / 2),
    }
    curves: Curves = {"pit": pit, "coverage": by_region(covered), "crps": by_region(crps)}
    if spread.whitened is not None and spread.posterior_width is not None:
        white = spread.whitened.double()
        variance = radial_variance(white).mean(dim=0).numpy()
        wider = (size <= spread.posterior_width).double()
        row |= {
            "coverage_90_posterior": wider[brain].mean().item(),
            "whitened_variance": white.square().mean().item(),
            "whitened_variance_brain": white.square()[brain].mean().item(),
            "spectrum_error": float(np.abs(np.log(variance.clip(1e-12))).mean()),
        }
        curves |= {
            "variance": variance,
            "whitened_pit": _histogram(torch.special.ndtr(white), brain),
            "region_variance": by_region(white.square()),
        }
    return row, curves


def _histogram(probability: Tensor, mask: Tensor) -> np.ndarray:
    """Shares of probabilities in 20 equal bins of [0,1]; all are 1/20 where a law is right."""
    counts = torch.histc(probability[mask].double(), BINS, 0.0, 1.0).numpy()
    return counts / max(counts.sum(), 1)


def of_subject(
    images: Tensor, residual: Tensor, spreads: Mapping[str, Spread]
) -> tuple[dict[str, float], dict[str, Curves]]:
    """`measure` under every law: metrics by their names in metrics.json, and curves by law."""
    row: dict[str, float] = {}
    curves = {}
    for law, spread in spreads.items():
        measured, curves[law] = measure(images, residual, spread)
        row |= dict(zip(keys(law, list(measured)), measured.values(), strict=True))
    return row, curves


def mean_curves(curves: Sequence[Curves]) -> Curves:
    """The mean over subjects, ready for calibration.json, without regions that no subject has."""
    mean: Curves = {}
    for key, first in curves[0].items():
        if isinstance(first, dict):
            values = {name: [subject[key][name] for subject in curves] for name in REGIONS}
            mean[key] = {
                name: float(np.nanmean(v)) for name, v in values.items() if not np.isnan(v).all()
            }
        else:
            mean[key] = np.mean([subject[key] for subject in curves], axis=0).tolist()
    return mean
