"""Maps of where an image differs from what a model of healthy anatomy expects, and their scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.analysis.baselines import gradient
from pipeline.analysis.solver import gaussian
from pipeline.losses.law import Law
from pipeline.models.vae import Posterior

Tail = Literal["both", "dark", "bright"]

# Images at once.
BATCH = 32
# Intensity a step: Adam's steps do not depend on the gradient's size, which σ and C change a lot.
STEP = 0.01
# Of the total variation, to be differentiable at 0; intensity.
SMOOTH = 1e-3


class NormativeModel(Protocol):
    """The parts of a decoder package that are used here."""

    def encode(self, image: Tensor) -> Posterior: ...
    def decode(self, latent: Tensor) -> Tensor: ...
    def up_to(self, latent: Tensor, side: int) -> Tensor: ...
    def law(self, latent: Tensor, /, decoded: Tensor | None = None) -> Law: ...
    def log_likelihood(self, image: Tensor, latent: Tensor) -> Tensor: ...


@torch.no_grad()
def deviations(
    model: NormativeModel,
    images: Tensor,
    finest: int = 0,
    baseline: NormativeModel | None = None,
) -> dict[str, Tensor]:
    """Image − reconstruction, so dark is negative: (n,1,H,W) by name, on the CPU.

    "whitened": C^(-1/2) S⁻¹ of it under the model's law, in standard deviations: an error counts
    for less where the decoder often errs. "residual" and "baseline_residual": intensity.

    Args:
        model: of healthy anatomy; decodes the posterior's mean.
        images: (n,1,H,W) in [0,1].
        finest: side of the finest level whose latents are used; 0 = all.
        baseline: another model, which needs no law.

    Raises:
        ValueError: the model's law is not Gaussian.
    """
    parts: dict[str, list[Tensor]] = {}
    for batch in images.split(BATCH):
        latent = _latent(model, batch, finest)
        decoded = model.decode(latent)
        law = gaussian(model.law(latent, decoded=decoded))
        maps = {"whitened": law.whiten(batch - decoded), "residual": batch - decoded}
        if baseline is not None:
            other = baseline.decode(_latent(baseline, batch, finest))
            maps["baseline_residual"] = batch - other
        for name, values in maps.items():
            parts.setdefault(name, []).append(values.cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def _latent(model: NormativeModel, images: Tensor, finest: int) -> Tensor:
    latent = model.encode(images).mean
    return model.up_to(latent, finest) if finest else latent


def one_sided(signed: Tensor, tail: Tail) -> Tensor:
    """How unexpected a signed deviation is, at least 0: both ways, only dark, or only bright."""
    if tail == "both":
        return signed.abs()
    return (signed if tail == "bright" else -signed).clamp_min(0)


def total_variation(image: Tensor) -> Tensor:
    """Sum over pixels of the length of the forward difference, isotropic: (B,C,H,W) -> (B,).

    Rudin, Osher, Fatemi 1992; intensity units. Smoothed, less the smoothing's own value, so that a
    constant image has 0.
    """
    length = (gradient(image).square().sum(dim=0) + SMOOTH**2).sqrt() - SMOOTH
    return length.sum(dim=(1, 2, 3))


def restore(
    model: NormativeModel,
    images: Tensor,
    steps: int,
    tv: float = 1.0,
    progress: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """The healthy images nearest to images (n,1,H,W) in [0,1]; deterministic.

    Chen, You, Tezcan, Konukoglu, Unsupervised lesion detection via image restoration with a
    normative prior, Medical Image Analysis 64, 2020 (arXiv 2005.00031): x maximises

        ELBO(x) − w · TV(x − y),   ELBO(x) = log p(x|z) − KL(q(z|x) ‖ p(z)),   z the mean of q(z|x)

    where y is what was measured: the prior p(x), here bounded by the ELBO, pulls x towards healthy
    anatomy, and the total variation favours changes that are connected, as lesions are.

    Args:
        model: of healthy anatomy.
        images: y.
        steps: of Adam (Kingma & Ba 2015), its step falling linearly to 0; 0 gives the images back.
        tv: w in units of one over the root of the law's mean variance a pixel, so that it means the
            same for every model.
        progress: gets the share that is done.
    """
    restored = []
    batches = images.split(BATCH)
    for index, measured in enumerate(batches):
        with torch.no_grad():
            law = model.law(model.encode(measured).mean)
            variance = law.standard_deviation(measured.shape).square()
            weight = tv / variance.mean(dim=(1, 2, 3)).sqrt()
        image = measured.clone().requires_grad_()
        optimizer = torch.optim.Adam([image], lr=STEP)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = STEP * (1 - step / steps)
            posterior = model.encode(image)
            elbo = model.log_likelihood(image, posterior.mean) - posterior.rate()
            loss = (weight * total_variation(image - measured) - elbo).sum()
            (image.grad,) = torch.autograd.grad(loss, image)
            optimizer.step()
            with torch.no_grad():
                image.clamp_(0, 1)
            progress((index + (step + 1) / steps) / len(batches))
        restored.append(image.detach().cpu())
    return torch.cat(restored)


@dataclass(frozen=True)
class Detection:
    """auroc: 0.5 is chance; average_precision: the share of lesion voxels is chance.

    best_dice: the highest over all thresholds, a bound on that of any one; threshold: where it is
    reached, in the map's units.
    """

    auroc: float | None
    average_precision: float | None
    best_dice: float | None
    threshold: float | None


def detect(score: np.ndarray, lesion: np.ndarray) -> Detection:
    """How well {score >= t} finds lesions, voxel by voxel, over all t.

    Score (n,) float, lesion (n,) bool, both of the brain's voxels. None without both classes. Dice
    is 2 |A ∩ B| / (|A| + |B|) (Ecology 26, 1945). Raises ValueError where they do not match.
    """
    if score.shape != lesion.shape or score.ndim != 1:
        raise ValueError(f"score {score.shape} and lesion {lesion.shape} must be (n,) both")
    if lesion.all() or not lesion.any():
        return Detection(None, None, None, None)
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # a threshold takes all equal scores
    taken, hits = np.flatnonzero(last) + 1, np.cumsum(lesion[order])[last]
    recall, false = hits / hits[-1], (taken - hits) / (len(score) - hits[-1])
    dice = 2 * hits / (taken + hits[-1])
    best = int(np.argmax(dice))
    return Detection(
        auroc=float(np.trapezoid(np.append(0, recall), np.append(0, false))),
        average_precision=float((np.diff(recall, prepend=0) * hits / taken).sum()),
        best_dice=float(dice[best]),
        threshold=float(ordered[last][best]),
    )
