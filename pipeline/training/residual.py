"""Fitting the law of the residuals to a trained model."""

import dataclasses
import math

import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.augmentation import augment
from pipeline.data.slices import SliceDataset, Store
from pipeline.losses.residual import ResidualLaw
from pipeline.models.vae import VAE
from pipeline.progress import Reporter
from pipeline.randomness import Stream, generator
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.kept import Kept

BATCH = 16
LEARNING_RATE = 5e-3
CLIP = 1.0
# The share of residuals that the validation people's factor puts within their intervals.
LEVEL = 0.9
# Validation slices that the factor is taken from, evenly spread: pixels of many are all alike.
MOST_SLICES = 512


def residual_law_of(
    checkpoint: Checkpoint, vae: VAE, config: Config, store: Store | None, any_kept: bool = False
) -> ResidualLaw | None:
    """The law of a checkpoint's residuals, on the model's device: read, or fitted now and kept.

    vae: with the checkpoint's averaged weights, which stay as they are; store: what it was trained
    on; any_kept: one that was fitted with other settings will do. None where `likelihood.residual`
    is none, or there is none and nothing to fit it to.
    """
    settings = config.likelihood
    if settings.residual == "none":
        return None
    inputs = {
        "floor": settings.residual_floor,
        "steps": settings.residual_steps,
        "seed": config.training.seed,
        "augmentation": dataclasses.asdict(config.data.augmentation),
        "flip": config.data.flip,
    }
    place = Kept(checkpoint, "residual", inputs)
    found = place.read(lambda sizes: ResidualLaw(vae.image_shape, **sizes), any_kept)
    if found is None and store is not None:
        with Reporter() as reporter:
            found = fit(vae, config, store, reporter)
        place.write(found, {"floor": settings.residual_floor})
    return None if found is None else found.to(next(vae.parameters()).device)


def fit(vae: VAE, config: Config, store: Store, reporter: Reporter) -> ResidualLaw:
    """The law of residuals of training slices, augmented and drawn as in training.

    Its factor is that of validation people's brains, where there are any. By the seed.
    """
    device = next(vae.parameters()).device
    settings, seed = config.likelihood, config.training.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        law = ResidualLaw(vae.image_shape, settings.residual_floor).to(device)
    data = SliceDataset(store, store.subjects("train"))
    flip = config.data.flip and store.plane != "sagittal"
    optimizer = torch.optim.Adam(law.parameters(), LEARNING_RATE)
    for step in range(settings.residual_steps):
        random = generator(seed, Stream.RESIDUAL, step)
        chosen = torch.randint(len(data), (BATCH,), generator=random)
        images = augment(
            data.__getitems__(chosen.tolist()), config.data.augmentation, flip, random
        ).to(device)
        noise = torch.randn((BATCH, vae.latent_size), generator=random).to(device)
        reconstruction = _reconstruct(vae, images, noise)
        residual, found = images - reconstruction, law(reconstruction)
        loss = found.nll(residual).mean() / images[0].numel()
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _decay(step / settings.residual_steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(law.parameters(), CLIP)
        optimizer.step()
        law.follow(residual, found.deviation.detach())
        reporter.update((step + 1) / (settings.residual_steps + 1), "law of the residuals")
    people = store.subjects("validation")
    if people:
        _calibrate(law, vae, SliceDataset(store, people))
    return law.eval().requires_grad_(False)


@torch.no_grad()
def _calibrate(law: ResidualLaw, vae: VAE, data: SliceDataset) -> None:
    """The factor by which brains of people who were not fitted to are covered as promised."""
    device = next(vae.parameters()).device
    count = min(len(data), MOST_SLICES)
    wanted = torch.linspace(0, len(data) - 1, count).round().long()
    residuals, unscaled = [], []
    for part in wanted.split(BATCH):
        images = data.__getitems__(part.tolist()).to(device)
        reconstruction = _reconstruct(vae, images, None)
        brain = (images > 0).any(dim=1, keepdim=True).expand_as(images)
        residuals.append((images - reconstruction)[brain].cpu())
        unscaled.append(law.unscaled(reconstruction)[brain].cpu())
    if sum(map(len, residuals)):
        law.cpu().calibrate(torch.cat(residuals), torch.cat(unscaled), LEVEL)
        law.to(device)


@torch.no_grad()
def _reconstruct(vae: VAE, images: Tensor, noise: Tensor | None) -> Tensor:
    """Of a posterior's draw, or without noise of its mean."""
    return vae.infer(images.contiguous(memory_format=torch.channels_last), noise).reconstruction


def _decay(progress: float) -> float:
    """A cosine to a fiftieth."""
    return 0.5 * (1 + math.cos(math.pi * progress)) + 0.02
