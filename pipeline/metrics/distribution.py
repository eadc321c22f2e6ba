"""How far apart two sets of images are: kernel and Fréchet distance of deep features.

Both compare distributions: reconstructions, or samples from the prior, with originals. With
Inception features they are called KID and FID; with other features they have other names,
because values under different networks can't be compared.
"""

import logging
from statistics import fmean
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from pipeline.metrics.statistics import Interval, single

log = logging.getLogger(__name__)

# As in the KID paper: estimates of 100 subsets of at most 1,000 are averaged.
SUBSETS, SUBSET_SIZE = 100, 1000
Kind = Literal["data", "reconstruction", "sample"]
Metric = Literal["kid", "frechet"]
PREFIXES: dict[Kind, str] = {"reconstruction": "", "sample": "sample_"}


class _Given(nn.Module):
    """In place of torchmetrics' network: the features were computed before, once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def _check(data: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Features as float64 on the CPU. Raises ValueError unless (N,d), (N',d), finite, N, N' ≥ 2."""
    for features in (data, other):
        if features.ndim != 2 or len(features) < 2 or not features.is_floating_point():
            got = f"{tuple(features.shape)} of {features.dtype}"
            raise ValueError(f"features must be (N,d), floating point, N at least 2: got {got}")
        if not features.isfinite().all():
            raise ValueError("features must be finite")
    if data.shape[1] != other.shape[1]:
        raise ValueError(f"features differ in number: {data.shape[1]} and {other.shape[1]}")
    return data.double().cpu(), other.double().cpu()


def kernel_distance(
    data: Float[Tensor, "N d"], other: Float[Tensor, "M d"], seed: int = 0, paired: bool = False
) -> float:
    """Squared maximum mean discrepancy under (xᵀy/d + 1)³, unbiased, so it can be below 0.

    Bińkowski, Sutherland, Arbel, Gretton, Demystifying MMD GANs, ICLR 2018. Two sets of one size up
    to 1,000 are compared whole. Otherwise it is the mean of 100 subsets, of 1,000 or of the smaller
    set's size, that depend on the seed and on the sets' sizes alone.

    Args:
        data: features of originals.
        other: features of the images to compare.
        seed: of the subsets.
        paired: whether other[i] belongs to data[i], as a reconstruction does. An image is not
            independent of its own, and more like it than like others, so these pairs are left out:
            with them a perfect reconstruction would be below 0, by more the fewer images there are.

    Returns:
        A squared distance without unit; around 0 for two draws of one distribution, and 0 for a set
        paired with itself.

    Raises:
        ValueError: other shapes, fewer than 2 images, features that are not finite, or pairs of
            sets of two sizes.
    """
    data, other = _check(data, other)
    if paired and len(data) != len(other):
        raise ValueError(f"pairs need sets of one size: {len(data)} and {len(other)}")
    size = min(len(data), len(other), SUBSET_SIZE)
    if len(data) == len(other) == size:
        return _discrepancy(data, other, paired)
    random = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(SUBSETS):
        left = torch.randperm(len(data), generator=random)[:size]
        right = left if paired else torch.randperm(len(other), generator=random)[:size]
        distances.append(_discrepancy(data[left], other[right], paired))
    return fmean(distances)


def _discrepancy(x: Tensor, y: Tensor, paired: bool) -> float:
    """Unbiased squared MMD of features (n,d), with the pairs' own terms left out if paired."""

    def mean(a: Tensor, b: Tensor, apart: bool) -> Tensor:
        values = (a @ b.T / a.shape[1] + 1) ** 3
        if not apart:
            return values.mean()
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    return (mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, paired)).item()


def frechet_distance(data: Float[Tensor, "N d"], other: Float[Tensor, "M d"]) -> float:
    """Squared Fréchet distance of two Gaussians with the features' means and covariances.

    Heusel et al. 2017 (see `InceptionFeatures`), through torchmetrics, in float64. Its expectation
    falls with the number of images, most where they are fewer than features: compare at equal ones.
    Pairs share what an image is by chance, so of reconstructions it is smaller than of as many
    independent images, and 0 for perfect ones: compare it with other reconstructions alone.

    Args:
        data: features of originals.
        other: features of the images to compare.

    Returns:
        A squared distance in the features' unit; 0, up to rounding, for equal sets.

    Raises:
        ValueError: other shapes, fewer than 2 images, or features that are not finite.
    """
    data, other = _check(data, other)
    metric = FrechetInceptionDistance(feature=_Given(data.shape[1]))
    metric.update(data, real=True)
    metric.update(other, real=False)
    return metric.compute().item()


class ImageSets:
    """Features of originals, reconstructions and prior samples under one network, and scores."""

    def __init__(self, size: int, names: dict[Metric, str]) -> None:
        """size: of the features (n,size); names: what each metric is called with them."""
        self._size, self._names = size, names
        self._features: dict[Kind, list[Tensor]] = {}

    def add(self, kind: Kind, features: Float[Tensor, "B d"]) -> None:
        """Add images to a set by their features."""
        self._features.setdefault(kind, []).append(features.double().cpu())

    def scores(self, seed: int) -> dict[str, Interval]:
        """Each metric of the reconstructions and prior samples (`sample_`) that were added.

        One number belongs to all subjects together, so low and high are None. The mean is also None
        where a set has one image only. Warns where a Fréchet distance is biased.
        """
        sets = {kind: torch.cat(parts) for kind, parts in self._features.items()}
        data, scores = sets["data"], {}
        for kind, prefix in PREFIXES.items():
            for metric, name in self._names.items() if kind in sets else ():
                value = None
                if min(len(data), len(sets[kind])) < 2:
                    pass
                elif metric == "kid":
                    value = kernel_distance(data, sets[kind], seed, kind == "reconstruction")
                else:
                    value = frechet_distance(data, sets[kind])
                scores[prefix + name] = single(value)
        frechet = self._names.get("frechet")
        if frechet is not None and min(map(len, sets.values())) < self._size:
            few = ", ".join(f"{len(images)} of {kind}" for kind, images in sets.items())
            log.warning(
                "%s and sample_%s are biased: there are fewer images (%s) than feature dimensions "
                "(%d). Compare only scores of equally many images",
                *(frechet, frechet, few, self._size),
            )
        return scores
