"""The metrics by their keys in metrics.json: their headings, and which way is better."""

import math
from dataclasses import dataclass
from typing import Literal

# Which way is better: up, down, nearest to 1, nearest to the data's own value; "" for neither.
Better = Literal["up", "down", "one", "data", ""]


@dataclass(frozen=True)
class Metric:
    """A column: its key in metrics.json, its heading, which way is better, decimals shown."""

    key: str
    heading: str
    better: Better
    decimals: int


RECONSTRUCTION = (
    Metric("psnr", "PSNR, dB ↑", "up", 2),
    Metric("ssim", "SSIM ↑", "up", 3),
    Metric("lpips_alex", "LPIPS alex ↓", "down", 4),
    Metric("lpips_vgg", "LPIPS vgg ↓", "down", 4),
    Metric("kid_vgg16", "KID vgg16 ↓", "down", 4),
    Metric("fd_vgg16", "FD vgg16 ↓", "down", 2),
    Metric("fid", "FID ↓", "down", 1),
    Metric("high_frequency_ratio", "high frequencies → 1", "one", 3),
    Metric("gradient_magnitude_ratio", "gradients → 1", "one", 3),
    Metric("blur_effect", "blur effect → data", "data", 3),
    Metric("spectrum_error", "spectrum error ↓", "down", 3),
    Metric("rate", "rate, nats", "", 0),
)
SAMPLES = (
    Metric("sample_kid_vgg16", "KID vgg16 ↓", "down", 3),
    Metric("sample_fd_vgg16", "FD vgg16 ↓", "down", 1),
    Metric("sample_fid", "FID ↓", "down", 1),
    Metric("sample_kid_coarse", "KID of 4×4 means ↓", "down", 3),
    Metric("sample_novelty", "novelty → 1", "one", 2),
    Metric("sample_high_frequency_ratio", "high frequencies → 1", "one", 3),
    Metric("sample_gradient_magnitude_ratio", "gradients → 1", "one", 3),
    Metric("sample_blur_effect", "blur effect → data", "data", 3),
    Metric("sample_spectrum_error", "spectrum error ↓", "down", 3),
)
DENSITY = (Metric("elbo_bits_per_dim", "−ELBO, bits per pixel value ↓", "down", 3),)


def loss(metric: Metric, value: float, data: float = math.nan) -> float:
    """A score as a number that is smaller where the score is better.

    Args:
        metric: says which way is better.
        value: the score.
        data: the blur effect of the data, where the metric is best at it.
    """
    if metric.better == "up":
        return -value
    if metric.better == "one":
        return abs(value - 1)
    if metric.better == "data":
        return abs(value - data)
    return value
