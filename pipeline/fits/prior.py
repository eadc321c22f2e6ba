"""Fitting the prior of samples to a trained model."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from data_prep.common.progress import Reporter
from pipeline.config import Config
from pipeline.data.augmentation import augment
from pipeline.data.config import AugmentationConfig
from pipeline.data.slices import SliceDataset, Store
from pipeline.models.config import PriorConfig
from pipeline.models.prior import LatentPrior, pieces_of
from pipeline.models.vae import VAE
from pipeline.randomness import Stream, generator

BATCH = 64
# Images are compared averaged over so many pixels each way: anatomy, not texture.
FACTOR = 4


def fit_prior(vae: VAE, config: Config, store: Store, reporter: Reporter) -> LatentPrior:
    """The prior of samples, on the CPU.

    vae: with the checkpoint's averaged weights; store: what it was trained on.
    """
    data = SliceDataset(store, store.subjects("train"))
    flip = config.data.flip and store.plane != "sagittal"
    device = next(vae.parameters()).device
    candidates = Candidates(data, config.prior, config.data.augmentation, flip, device)
    averaged = []
    for number in range(len(candidates)):
        averaged.append(functional.avg_pool2d(candidates.batch(number), FACTOR).flatten(1).cpu())
        reporter.update(0.6 * (number + 1) / len(candidates), "prior: training slices")
    rows = groups(torch.cat(averaged), candidates.subjects, config.prior)
    reporter.update(0.8, "prior: latents of similar slices")
    return fit(vae, candidates, rows, config.prior)


def weaker(augmentation: AugmentationConfig, share: float) -> AugmentationConfig:
    """The same augmentation with every range that share of its size."""
    ranges = ("rotation_degrees", "scale", "translation", "shear", "elastic", "gamma", "gain")
    smaller = {name: share * getattr(augmentation, name) for name in ranges}
    return dataclasses.replace(augmentation, **smaller)


class Candidates:
    """Deformed training images in batches, made when they are asked for, the same every time.

    Every slice comes as often as another, but for one. All by the seed, whose random numbers are
    drawn on the CPU; images are deformed on `device`.
    """

    def __init__(
        self,
        data: SliceDataset,
        settings: PriorConfig,
        augmentation: AugmentationConfig,
        flip: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        self._data, self._flip, self._seed, self._device = data, flip, settings.seed, device
        self._augmentation = weaker(augmentation, settings.augmentation)
        random = generator(settings.seed, Stream.PRIOR, 0)
        rounds = -(-settings.images // len(data))
        order = torch.cat([torch.randperm(len(data), generator=random) for _ in range(rounds)])
        self._batches = order[: settings.images].split(BATCH)
        self.subjects = torch.from_numpy(data.subject_of)[order[: settings.images]]
        """The subject of each (n,)."""

    def __len__(self) -> int:
        """Batches."""
        return len(self._batches)

    def batch(self, number: int) -> Tensor:
        """Images (b,C,H,W), the number × BATCH-th first."""
        images = self._data.__getitems__(self._batches[number].tolist()).to(self._device)
        random = generator(self._seed, Stream.PRIOR, number + 1)
        return augment(images, self._augmentation, self._flip, random)

    def some(self, indices: Tensor) -> Iterator[Tensor]:
        """Images at sorted, distinct indices, batch by batch."""
        for number in (indices // BATCH).unique().tolist():
            yield self.batch(number)[indices[indices // BATCH == number] % BATCH]


def groups(averaged: Tensor, subjects: Tensor, settings: PriorConfig) -> Tensor:
    """Indices (K,m) of averaged images (n,·) that look alike, each row of other subjects.

    The first of a row is drawn by chance; the others are the nearest to it of subjects that the row
    has not yet, by squared difference. Where there are fewer subjects than `settings.subjects`, m
    is as many as there are, but at least 2: then of one twice.
    """
    random = generator(settings.seed, Stream.PRIOR_GROUPS, 0)
    count = min(settings.pieces, len(averaged))
    first = torch.randperm(len(averaged), generator=random)[:count]
    members = max(2, min(settings.subjects, len(subjects.unique())))
    rows, names = [], subjects.tolist()
    for index in first.tolist():
        near = torch.cdist(averaged[index][None], averaged)[0].argsort().tolist()
        nearest = {names[index]: index}
        for other in near:
            if len(nearest) == members:
                break
            nearest.setdefault(names[other], other)
        row = [*nearest.values()]
        rows.append(row + [other for other in near if other not in row][: members - len(row)])
    return torch.tensor(rows)


@torch.no_grad()
def fit(vae: VAE, candidates: Candidates, rows: Tensor, settings: PriorConfig) -> LatentPrior:
    """The prior of groups of candidates, rows (K,m) of their indices.

    The candidates are on the model's device; the prior is on the CPU.
    """
    distinct, place = rows.unique(return_inverse=True)
    means, deviations = [], []
    for images in candidates.some(distinct):
        posterior = vae.encode(images.contiguous(memory_format=torch.channels_last))
        means.append(posterior.mean.cpu())
        deviations.append((0.5 * posterior.log_variance).exp().cpu())
    random = generator(settings.seed, Stream.PRIOR_MIXING, 0)
    return pieces_of(torch.cat(means)[place], torch.cat(deviations)[place], random).eval()
