"""Scores of pairs of an image and its reconstruction, wherever the reconstruction came from."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.metrics import sharpness
from pipeline.metrics.fidelity import psnr, ssim
from pipeline.metrics.perceptual import PerceptualDistance


def slice_scores(
    images: Tensor, reconstructions: Tensor, distances: Mapping[str, PerceptualDistance]
) -> dict[str, Tensor]:
    """Scores of each slice (B,): images, reconstructions (B,C,H,W) in [0,1]."""
    return {
        "psnr": psnr(images, reconstructions),
        "ssim": ssim(images, reconstructions),
        **{name: distance(images, reconstructions) for name, distance in distances.items()},
        "blur_effect": sharpness.blur_effect(reconstructions),
        "blur_effect_data": sharpness.blur_effect(images),
    }


def subject_scores(
    images: Tensor, reconstructions: Tensor
) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
    """Scores of all slices (n,C,H,W) of a subject together, and the mean radial power of both."""
    row = {
        key: sharpness.ratio_of_means(measure(images), measure(reconstructions))
        for key, measure in sharpness.RATIOS.items()
    }
    power, reconstructed = (sharpness.radial_power(x) for x in (images, reconstructions))
    row["spectrum_error"] = sharpness.spectrum_error(power, reconstructed)
    return row, (power, reconstructed)


def mean_of(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means over a subject's slices of scores that were taken batch by batch."""
    return {key: float(torch.cat([part[key] for part in parts]).mean()) for key in parts[0]}
