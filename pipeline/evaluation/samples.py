"""Are samples anatomy, and are they new?

Both are measured at low resolution, on images averaged over 4×4 pixels, which keep the anatomy and
lose the texture. Training slices, real ones of other subjects, are scored beside the samples.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.metrics import sharpness
from pipeline.metrics.distribution import FeatureNetwork, kernel_distance
from pipeline.metrics.statistics import Interval, single

FACTOR = 4
# VGG16 needs 32 pixels, and more than the averaged images have: they are enlarged smoothly.
SEEN_SIDE = 32
BATCH = 64


class PriorSamples:
    """Images drawn from the prior, (n,C,H,W) on the CPU, and how sharp they are.

    power: mean radial power (n_bins,).
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.power = sharpness.radial_power(images).mean(dim=0)
        self._detail = {key: measure(images) for key, measure in sharpness.RATIOS.items()}

    def beside(self, images: Tensor, power: Tensor) -> dict[str, float]:
        """Their sharpness by that of a subject's images (n,C,H,W), of mean radial power `power`."""
        found = {
            f"sample_{key}": sharpness.ratio_of_means(measure(images), self._detail[key])
            for key, measure in sharpness.RATIOS.items()
        }
        error = sharpness.spectrum_error(power[None], self.power[None])
        return found | {"sample_spectrum_error": error}


def coarse(images: Tensor) -> Tensor:
    """(n,C,H,W) -> (n,C,H/4,W/4), the mean of every 4×4 pixels."""
    return functional.avg_pool2d(images, FACTOR)


def nearest(images: Tensor, training: Tensor) -> Tensor:
    """Root mean square difference of each image from the nearest training image: (n,).

    Both (·,C,H,W), the training's as they are and mirrored left to right.
    """
    both = torch.cat([training, training.flip(-1)]).flatten(1)
    pixels = both.shape[1] ** 0.5
    parts = [torch.cdist(part.flatten(1), both).amin(dim=1) for part in images.split(BATCH)]
    return torch.cat(parts) / pixels


def novelty(sampled: Tensor, held_out: Tensor, training: Tensor) -> float:
    """How far samples are from the nearest training slice, as a share of what held-out slices are.

    Means of `nearest`, of averaged images (n,C,h,w). 1: as new as another subject; towards 0:
    copies of training slices; far above 1: unlike any subject. Mirrored copies count as copies.
    """
    return (nearest(sampled, training).mean() / nearest(held_out, training).mean()).item()


def coarse_features(network: FeatureNetwork, averaged: Tensor, device: torch.device) -> Tensor:
    """Features (n,size) of averaged images (n,C,h,w), enlarged to 32 pixels or more."""
    side = max(SEEN_SIDE, averaged.shape[-1])
    found = []
    for part in averaged.split(BATCH):
        large = functional.interpolate(part, size=side, mode="bilinear", align_corners=False)
        found.append(network.features(large.to(device)).double().cpu())
    return torch.cat(found)


def sample_scores(
    sampled: Tensor,
    held_out: Tensor,
    training: Tensor | None,
    network: FeatureNetwork | None,
    device: torch.device,
    seed: int,
) -> dict[str, Interval]:
    """Scores of samples at low resolution; all images averaged, (n,C,h,w), on the CPU.

    sample_novelty (needs training), sample_kid_coarse (needs network), and training_kid_coarse of
    as many training slices (needs both).
    """
    found: dict[str, Interval] = {}
    if training is not None:
        found["sample_novelty"] = single(novelty(sampled, held_out, training))
    if network is not None and min(len(sampled), len(held_out)) >= 2:
        real = coarse_features(network, held_out, device)
        sets = {"sample": sampled}
        if training is not None and len(training) >= 2:
            sets["training"] = spread(training, len(sampled))
        for name, images in sets.items():
            features = coarse_features(network, images, device)
            found[f"{name}_kid_coarse"] = single(kernel_distance(real, features, seed))
    return found


def spread(images: Tensor, count: int) -> Tensor:
    """At most `count` of the images, evenly spread."""
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()
    return images[chosen]
