"""How sharp samples are, and whether they are anatomy.

Anatomy is measured on images averaged over 4×4 pixels, which keep it and lose the texture. Training
slices, real ones of other subjects, are scored beside the samples.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.slices import evenly_spread
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

    sample_kid_coarse, and training_kid_coarse of as many training slices; none without a network.
    """
    if network is None or min(len(sampled), len(held_out)) < 2:
        return {}
    real = coarse_features(network, held_out, device)
    sets = {"sample": sampled}
    if training is not None and len(training) >= 2:
        sets["training"] = training[evenly_spread(len(training), len(sampled))]
    return {
        f"{name}_kid_coarse": single(
            kernel_distance(real, coarse_features(network, images, device), seed)
        )
        for name, images in sets.items()
    }
