"""Fitting the law of the residuals to a trained model."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from data_prep.common.progress import Reporter
from pipeline.config import Config
from pipeline.data.slices import SliceDataset, Store, evenly_spread
from pipeline.losses.residual import ResidualLaw, at_edge
from pipeline.models.vae import VAE
from pipeline.randomness import Stream, generator

BATCH = 16
LEARNING_RATE = 5e-3
CLIP = 1.0
# The share of residuals that the factors put within their intervals.
LEVEL = 0.9
# Folds of families, a law without each.
FOLDS = 2
# Slices that law and factors are fitted to: pixels of more are all alike.
MOST_SLICES = 1024
# A factor of fewer pixels than this is not known well: one for all pixels takes its place.
FEWEST = 1000


def fit_residual(vae: VAE, config: Config, store: Store, reporter: Reporter) -> ResidualLaw:
    """The law of the residuals of subjects outside the training: it must be right for them.

    Fitted to all validation families; training subjects serve where there are none, whose residuals
    are smaller. Its two factors are those of the families it was fitted to (`factors_of`), times
    what such factors lack for families that a law has not seen: families are dealt to FOLDS folds,
    a law is fitted without each, and its factors for that fold are divided by those for the
    others. In the product over folds families that are harder to draw cancel (cross-conformal
    prediction, Vovk, Annals of Mathematics and Artificial Intelligence 2015, but for the ratio: two
    fits may share residuals differently between scale and spectrum, so that the factor of one is
    no factor of the other). Of a single family there is no ratio. All reconstructions decode the
    posterior's mean. By the seed.
    """
    device = next(vae.parameters()).device
    settings, seed = config.likelihood, config.training.seed
    data = SliceDataset(store, store.subjects("validation") or store.subjects("train"))
    images, reconstructions, families = _pairs(vae, data, device)
    count = int(families.max()) + 1
    folds = min(FOLDS, count)
    flip = config.data.flip and store.plane != "sagittal"
    done, total = 0, settings.residual_steps * (1 + folds * (folds > 1)) + 1

    def fitted(rows: Tensor) -> ResidualLaw:
        def drawn(step: int) -> tuple[Tensor, Tensor]:
            nonlocal done
            random = generator(seed, Stream.RESIDUAL, step)
            chosen = rows[torch.randint(len(rows), (BATCH,), generator=random)]
            image, reconstruction = images[chosen].to(device), reconstructions[chosen].to(device)
            if flip and torch.rand((), generator=random) < 0.5:
                image, reconstruction = image.flip(-1), reconstruction.flip(-1)
            done += 1
            reporter.update(done / total, "law of the residuals")
            return image - reconstruction, reconstruction

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            law = ResidualLaw(vae.image_shape, settings.residual_floor).to(device)
        learn(law.to(memory_format=torch.channels_last), drawn, settings.residual_steps)
        return law.eval().requires_grad_(False)

    def needed(law: ResidualLaw, kept: Tensor) -> Tensor:
        """Factors of a law for families by their numbers."""
        chosen = [families == family for family in kept.unique()]
        return factors_of(
            [_needed(law, images[rows], reconstructions[rows], device) for rows in chosen], LEVEL
        )

    law = fitted(torch.arange(len(images)))
    factors = needed(law, families)
    for fold in range(folds if folds > 1 else 0):
        held = families % folds == fold
        unseen = fitted((~held).nonzero()[:, 0])
        factors *= (needed(unseen, families[held]) / needed(unseen, families[~held])) ** (1 / folds)
    law.factors.copy_(factors)
    return law


@torch.no_grad()
def _needed(
    law: ResidualLaw, images: Tensor, reconstructions: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The least factors of brain pixels whose intervals hold the residual: within, at the edge."""
    within, edge = [], []
    for image, reconstruction in zip(
        images.split(BATCH), reconstructions.split(BATCH), strict=True
    ):
        image, reconstruction = image.to(device), reconstruction.to(device)
        least = law.least_factors(reconstruction, image - reconstruction, LEVEL)
        brain = (image > 0).any(dim=1, keepdim=True).expand_as(image)
        rim = at_edge(reconstruction).expand_as(image)
        within.append(least[brain & ~rim].cpu())
        edge.append(least[brain & rim].cpu())
    return torch.cat(within), torch.cat(edge)


def factors_of(needed: Sequence[tuple[Tensor, Tensor]], level: float) -> Tensor:
    """The factors (2,) with which a share `level` of pixels lies within its interval.

    The share is a mean over families, each of the same weight however many pixels it has, as the
    next subject will be of another family (pooling of distribution functions: Dunn, Wasserman,
    Ramdas, Distribution-free prediction sets for two-layer hierarchical models, JASA 2023). Within
    and at the edge apart (Mondrian: Vovk et al. 2003); of too few pixels of either, all have one
    factor. At least 0.1; 1 where there is no pixel.

    Args:
        needed: of each family, the least factors of pixels within and at the edge.
        level: between 0 and 1.
    """
    groups = [[part for part in column if len(part)] for column in zip(*needed, strict=True)]
    if min(sum(map(len, group)) for group in groups) < FEWEST:
        groups = [[both for pair in needed if len(both := torch.cat(pair))]] * 2
    factors = torch.ones(2)
    for place, group in enumerate(groups):
        if not group:
            continue
        values, order = torch.cat(group).sort()
        weights = torch.cat([torch.full((len(part),), 1 / len(part)).double() for part in group])
        share = weights[order].cumsum(0) / len(group)
        first = int(torch.searchsorted(share, level))
        factors[place] = values[min(first, len(values) - 1)].clamp_min(0.1)
    return factors


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


@torch.no_grad()
def _pairs(vae: VAE, data: SliceDataset, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Slices, evenly spread, their reconstructions, (n,C,H,W) each, and families' numbers (n,)."""
    wanted = evenly_spread(len(data), MOST_SLICES)
    images, made = data.__getitems__(wanted), []
    for part in images.split(BATCH):
        given = part.to(device).contiguous(memory_format=torch.channels_last)
        made.append(vae.infer(given).reconstruction.cpu().contiguous())
    return images, torch.cat(made), data.families_of(wanted)


def _schedule(step: int, steps: int) -> float:
    """Up over the first tenth, and a cosine to a fiftieth.

    At the full rate Adam's first steps overshoot, by some seeds and on some machines; at twice
    the rate they drive the sigmoid to where it has no gradient.
    """
    warm = min(1.0, (step + 1) / (0.1 * steps))
    return warm * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.02)
