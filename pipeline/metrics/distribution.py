"""How far apart two sets of images are: kernel and Fréchet distance of deep features.

Both compare distributions, not pairs: reconstructions, or samples from the prior, with originals.
With Inception features they are called KID and FID; with other features they have other names,
because values under different networks can't be compared.
"""

import logging
import warnings
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from pipeline.metrics.statistics import Interval, single

log = logging.getLogger(__name__)

# As in the KID paper: estimates of 100 subsets of at most 1,000 are averaged.
SUBSETS, SUBSET_SIZE = 100, 1000
Kind = Literal["data", "reconstruction", "sample"]
Metric = Literal["kid", "frechet"]
PREFIXES: dict[Kind, str] = {"reconstruction": "", "sample": "sample_"}


class FeatureNetwork(Protocol):
    """Gives each image `size` features."""

    size: int

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B d"]:
        """The features of images in [0,1]."""


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
            raise ValueError(
                f"features must be (N,d), floating point, N at least 2: got "
                f"{tuple(features.shape)} of {features.dtype}"
            )
        if not features.isfinite().all():
            raise ValueError("features must be finite")
    if data.shape[1] != other.shape[1]:
        raise ValueError(f"features differ in number: {data.shape[1]} and {other.shape[1]}")
    return data.double().cpu(), other.double().cpu()


def kernel_distance(
    data: Float[Tensor, "N d"], other: Float[Tensor, "M d"], seed: int = 0
) -> float:
    """Squared maximum mean discrepancy under (xᵀy/d + 1)³, unbiased, so it can be below 0.

    Bińkowski, Sutherland, Arbel, Gretton, Demystifying MMD GANs, ICLR 2018, through torchmetrics.
    Two sets of one size up to 1,000 are compared whole. Otherwise it is the mean of 100 subsets,
    of 1,000 or of the smaller set's size, that depend on the seed and on the sets' sizes alone.

    Args:
        data: features of originals.
        other: features of the images to compare.
        seed: of the subsets.

    Returns:
        A squared distance without unit; around 0 for two draws of one distribution.

    Raises:
        ValueError: other shapes, fewer than 2 images, or features that are not finite.
    """
    data, other = _check(data, other)
    size = min(len(data), len(other), SUBSET_SIZE)
    whole = len(data) == len(other) == size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features: so do we
        metric = KernelInceptionDistance(
            feature=_Given(data.shape[1]), subsets=1 if whole else SUBSETS, subset_size=size
        )
    metric.update(data, real=True)
    metric.update(other, real=False)
    # It draws from torch's own generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return metric.compute()[0].item()


def frechet_distance(data: Float[Tensor, "N d"], other: Float[Tensor, "M d"]) -> float:
    """Squared Fréchet distance of two Gaussians with the features' means and covariances.

    Heusel et al. 2017 (see `inception`), through torchmetrics, in float64. Its expectation falls
    with the number of images, most where they are fewer than features: compare at equal numbers.

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
    """Features of originals, reconstructions and prior samples under one network, and scores.

    Every image passes the network once, as it comes along.
    """

    def __init__(self, network: FeatureNetwork, names: dict[Metric, str]) -> None:
        """names: what each metric is called with this network's features."""
        self._network = network
        self._names = names
        self._features: dict[Kind, list[Tensor]] = {"data": [], "reconstruction": [], "sample": []}

    def add(self, kind: Kind, images: Float[Tensor, "B C H W"]) -> None:
        """Add images in [0,1] to a set. Raises ValueError where the network refuses them."""
        self._features[kind].append(self._network.features(images).double().cpu())

    def scores(self, seed: int) -> dict[str, Interval]:
        """Each metric of the reconstructions and prior samples (`sample_`) that were added.

        One number belongs to all subjects together, so low and high are None. The mean is also None
        where a set has one image only. Warns where a Fréchet distance is biased.
        """
        sets = {kind: torch.cat(found) for kind, found in self._features.items() if found}
        data, found = sets["data"], {}
        for kind, prefix in PREFIXES.items():
            if kind not in sets:
                continue
            other = sets[kind]
            for metric, name in self._names.items():
                value = None
                if min(len(data), len(other)) >= 2:
                    value = (
                        kernel_distance(data, other, seed)
                        if metric == "kid"
                        else frechet_distance(data, other)
                    )
                found[prefix + name] = single(value)
        self._warn({kind: len(images) for kind, images in sets.items()})
        return found

    def _warn(self, counts: dict[Kind, int]) -> None:
        name, size = self._names.get("frechet"), self._network.size
        if name is not None and min(counts.values()) < size:
            few = ", ".join(f"{count} of {kind}" for kind, count in counts.items())
            log.warning(
                "%s and sample_%s are biased: there are fewer images (%s) than feature dimensions "
                "(%d). Compare only scores of equally many images", name, name, few, size,
            )  # fmt: skip
