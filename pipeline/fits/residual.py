"""Fitting the law of the residuals to a trained model."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.slices import SliceDataset, Store, SubjectEntry
from pipeline.losses.residual import ResidualLaw
from pipeline.models.vae import VAE
from pipeline.progress import Reporter
from pipeline.randomness import Stream, generator

BATCH = 16
LEARNING_RATE = 5e-3
CLIP = 1.0
# The share of residuals that the factors put within their intervals.
LEVEL = 0.9
# Slices that law and factor are fitted to, each: pixels of more are all alike.
MOST_SLICES = 1024


def fit_residual(vae: VAE, config: Config, store: Store, reporter: Reporter) -> ResidualLaw:
    """The law of the residuals of subjects outside the training: it must be right for them.

    Fitted to three fifths of the validation families, its factors the others'. If there is one
    family, it serves both; if there is none, training subjects do, whose residuals are smaller.
    All reconstructions decode the posterior's mean. By the seed.
    """
    device = next(vae.parameters()).device
    settings, seed = config.likelihood, config.training.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        law = ResidualLaw(vae.image_shape, settings.residual_floor).to(device)
    law.to(memory_format=torch.channels_last)
    fitted_to, others = halves(store.subjects("validation") or store.subjects("train"))
    images, reconstructions = _pairs(vae, SliceDataset(store, fitted_to), device)
    flip = config.data.flip and store.plane != "sagittal"

    def drawn(step: int) -> tuple[Tensor, Tensor]:
        random = generator(seed, Stream.RESIDUAL, step)
        chosen = torch.randint(len(images), (BATCH,), generator=random)
        image, reconstruction = images[chosen].to(device), reconstructions[chosen].to(device)
        if flip and torch.rand((), generator=random) < 0.5:
            image, reconstruction = image.flip(-1), reconstruction.flip(-1)
        reporter.update((step + 1) / (settings.residual_steps + 1), "law of the residuals")
        return image - reconstruction, reconstruction

    learn(law, drawn, settings.residual_steps)
    _calibrate(law, *_pairs(vae, SliceDataset(store, others), device), device)
    return law.eval().requires_grad_(False)


def learn(law: ResidualLaw, drawn: Callable[[int], tuple[Tensor, Tensor]], steps: int) -> None:
    """Fit a law by Adam. drawn: residuals and reconstructions (B,C,H,W) of a step."""
    optimizer = torch.optim.Adam(law.parameters(), LEARNING_RATE)
    for step in range(steps):
        residual, reconstruction = drawn(step)
        if step == 0:
            law.begin(residual)
        found = law(reconstruction.contiguous(memory_format=torch.channels_last))
        loss = found.nll(residual).mean() / residual[0].numel()
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _schedule(step, steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(law.parameters(), CLIP)
        optimizer.step()
        law.follow(residual, found.deviation.detach())


def halves(subjects: list[SubjectEntry]) -> tuple[list[SubjectEntry], list[SubjectEntry]]:
    """Three fifths of the families, and the others; all twice if there is one family."""
    families = list(dict.fromkeys(entry.family for entry in subjects))
    first = set(families[: max(1, min(math.ceil(0.6 * len(families)), len(families) - 1))])
    one = [entry for entry in subjects if entry.family in first]
    return one, [entry for entry in subjects if entry.family not in first] or one


@torch.no_grad()
def _pairs(vae: VAE, data: SliceDataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Slices, evenly spread, and their reconstructions, on the CPU: (n,C,H,W) each."""
    wanted = torch.linspace(0, len(data) - 1, min(len(data), MOST_SLICES)).round().long()
    images, reconstructions = [], []
    for part in wanted.split(BATCH):
        image = data.__getitems__(part.tolist())
        given = image.to(device).contiguous(memory_format=torch.channels_last)
        images.append(image)
        reconstructions.append(vae.infer(given).reconstruction.cpu().contiguous())
    return torch.cat(images), torch.cat(reconstructions)


@torch.no_grad()
def _calibrate(
    law: ResidualLaw, images: Tensor, reconstructions: Tensor, device: torch.device
) -> None:
    """The factors with which brains are covered as promised."""
    brain = (images > 0).any(dim=1, keepdim=True).expand_as(images)
    if brain.any():
        law.cpu().calibrate(reconstructions, images - reconstructions, brain, LEVEL)
        law.to(device)


def _schedule(step: int, steps: int) -> float:
    """Up over the first tenth, and a cosine to a fiftieth.

    At the full rate Adam's first steps overshoot, by some seeds and on some machines; at twice
    the rate they drive the sigmoid to where it has no gradient.
    """
    warm = min(1.0, (step + 1) / (0.1 * steps))
    return warm * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.02)
