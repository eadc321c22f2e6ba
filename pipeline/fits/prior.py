"""Fitting the prior of samples to a trained model."""

import dataclasses
from collections.abc import Callable, Iterator

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

Notice = Callable[[float, str], None]


def weaker(augmentation: AugmentationConfig, share: float) -> AugmentationConfig:
    """The same augmentation with every range that share of its size."""
    ranges = ("rotation_degrees", "scale", "translation", "shear", "elastic", "gamma", "gain")
    smaller = {name: share * getattr(augmentation, name) for name in ranges}
    return dataclasses.replace(augmentation, **smaller)


class Candidates:
    """Deformed training images, made when they are asked for: item i is the same every time.

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
        self._data, self._flip, self._seed = data, flip, settings.seed
        self._device = device
        self._augmentation = weaker(augmentation, settings.augmentation)
        random = generator(settings.seed, Stream.PRIOR, 0)
        rounds = -(-settings.images // len(data))
        order = torch.cat([torch.randperm(len(data), generator=random) for _ in range(rounds)])
        self._batches = order[: settings.images].split(BATCH)
        self.subjects = torch.from_numpy(data.subject_of)[order[: settings.images]]
        """The subject of each (n,)."""

    def _batch(self, number: int) -> Tensor:
        images = self._data.__getitems__(self._batches[number].tolist()).to(self._device)
        random = generator(self._seed, Stream.PRIOR, number + 1)
        return augment(images, self._augmentation, self._flip, random)

    def averaged(self, notice: Notice) -> Tensor:
        """All of them over FACTOR² pixels, as vectors (n,·)."""
        found = []
        for number in range(len(self._batches)):
            found.append(functional.avg_pool2d(self._batch(number), FACTOR).flatten(1).cpu())
            notice(0.6 * (number + 1) / len(self._batches), "prior: training slices")
        return torch.cat(found)

    def some(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images at sorted, distinct indices, batch by batch: (their indices, (b,C,H,W))."""
        for number in (indices // BATCH).unique().tolist():
            chosen = indices[indices // BATCH == number]
            yield chosen, self._batch(number)[chosen % BATCH]


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
    rows = []
    for index in first.tolist():
        near = torch.cdist(averaged[index][None], averaged)[0].argsort()
        row: list[int] = []
        seen: set[int] = set()
        for other in [index, *near.tolist()]:
            if int(subjects[other]) not in seen:
                row.append(other)
                seen.add(int(subjects[other]))
            if len(row) == members:
                break
        row += [other for other in near.tolist() if other not in row][: members - len(row)]
        rows.append(row)
    return torch.tensor(rows)


@torch.no_grad()
def fit(vae: VAE, candidates: Candidates, rows: Tensor, settings: PriorConfig) -> LatentPrior:
    """The prior of groups of candidates, rows (K,m) of their indices.

    The candidates are on the model's device; the prior is on the CPU.
    """
    distinct, place = rows.unique(return_inverse=True)
    parts = []
    for _, images in candidates.some(distinct):
        posterior = vae.encode(images.contiguous(memory_format=torch.channels_last))
        parts.append((posterior.mean.cpu(), (0.5 * posterior.log_variance).exp().cpu()))
    means, deviations = (torch.cat(column) for column in zip(*parts, strict=True))
    random = generator(settings.seed, Stream.PRIOR_MIXING, 0)
    return pieces_of(means[place], deviations[place], random).eval()


def fit_prior(vae: VAE, config: Config, store: Store, reporter: Reporter) -> LatentPrior:
    """The prior of samples, on the CPU.

    vae: with the checkpoint's averaged weights; store: what it was trained on.
    """
    data = SliceDataset(store, store.subjects("train"))
    flip = config.data.flip and store.plane != "sagittal"
    device = next(vae.parameters()).device
    candidates = Candidates(data, config.prior, config.data.augmentation, flip, device)
    averaged = candidates.averaged(reporter.update)
    rows = groups(averaged, candidates.subjects, config.prior)
    reporter.update(0.8, "prior: latents of similar slices")
    return fit(vae, candidates, rows, config.prior)
