"""The metrics by their keys in metrics.json: names, units, what they mean, which way is better."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Which way is better: up, down, nearest to 1, to the data's own value or to 90%; "" for neither.
Better = Literal["up", "down", "one", "data", "ninety", ""]
# An arrow and words for each.
BETTER: dict[str, tuple[str, str]] = {
    "up": ("↑", "higher is better"),
    "down": ("↓", "lower is better"),
    "one": ("→ 1", "better near 1"),
    "data": ("→ data", "better near the data"),
    "ninety": ("→ 0.9", "better near 0.9"),
    "": ("", "compare scores at one rate"),
}


@dataclass(frozen=True)
class Metric:
    """A score: its key in metrics.json, its name, which way is better, decimals shown.

    data: what the originals have, the key of another metric or a number; None where that is not
    defined. headline: whether it is of the few that matter most, which stand at the head of a
    report, in figures of comparisons and with the training run in MLflow.
    """

    key: str
    name: str
    better: Better
    decimals: int
    data: str | float | None = None
    unit: str = ""
    headline: bool = False

    @property
    def meaning(self) -> str:
        """In one line."""
        return MEANING.get(self.key) or MEANING[self.key.removeprefix("sample_")]

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def heading(self) -> str:
        """Of a column: name, unit and arrow."""
        return f"{self.label} {self.arrow}".rstrip()

    @property
    def arrow(self) -> str:
        return BETTER[self.better][0]

    @property
    def words(self) -> str:
        """Which way is better."""
        return BETTER[self.better][1]

    def of_data(self, means: Mapping[str, float | None]) -> str:
        """The originals' own value: an exact number, or of another metric; "" where unknown."""
        if isinstance(self.data, str):
            return self.shown(means[self.data]) if self.data in means else ""
        return "" if self.data is None else f"{self.data:g}"

    def shown(self, value: float | None) -> str:
        """A value with this metric's decimals; – where there is none."""
        if value is None or math.isnan(value):
            return "–"
        text = f"{value:.{self.decimals}f}"
        return text if float(text) else text.removeprefix("-")


MEANING = {
    "psnr": "error of a pixel on a logarithmic scale: 6 dB more is half the error",
    "ssim": "structural similarity in windows; 1 is identical",
    "lpips_alex": "how different a network, tuned to human judgements, finds the two images",
    "lpips_vgg": "the same by a larger network",
    "kid_vgg16": "distance of all reconstructions from all originals, by a network's features",
    "fd_vgg16": "the same by means and covariances; grows where images are few",
    "fid": "Fréchet distance of InceptionV3's features",
    "high_frequency_ratio": "power at 0.25 cycles/pixel and above over the data's; below 1 is blur",
    "gradient_magnitude_ratio": "strength of edges over that of the data; below 1 is blur",
    "blur_effect": "perceptual blur from 0 to 1, of the image alone",
    "spectrum_error": "mean distance of the power spectra, in nats, over all frequencies",
    "rate": "information that the latent carries of an image",
    "sample_kid_vgg16": "distance of samples from the data, by a network's features",
    "sample_kid_coarse": "distance of the anatomy alone, without texture",
    "sample_nearest": "distance to subjects trained on over that to unseen ones; 0 are copies",
    "sample_copies": "share of samples three times nearer to one trained subject than to the next",
    "sample_flagged": "share of samples nearer to who was trained on than 95% of unseen slices are",
    "sample_copies_found": "the same of deformed training slices: how many copies this test finds",
    "sample_membership": "chance that a trained slice is nearer to a sample than an unseen one is",
    "sample_membership_control": "the same attack between those trained on; range of 95% of draws",
    "elbo_bits_per_dim": "bound on an image's negative log-likelihood under the term's own law",
    "elbo_bits_per_dim_fitted": "the same under the law that was fitted to the residuals",
    "calibration_fitted_coverage_90": "share of the brain's pixels within intervals that hold 90%",
    "calibration_fitted_whitened_variance_brain": "size of errors over that expected; >1: too sure",
    "calibration_coverage_90": "the same under the law that the decoder was trained with",
    "calibration_whitened_variance_brain": "the same under the law that it was trained with",
}
"""What a score says, in one line; samples' scores mean what those of reconstructions do."""

RECONSTRUCTION = (
    Metric("psnr", "PSNR", "up", 2, unit="dB", headline=True),
    Metric("ssim", "SSIM", "up", 3, 1.0, headline=True),
    Metric("lpips_alex", "LPIPS alex", "down", 4, 0.0, headline=True),
    Metric("lpips_vgg", "LPIPS vgg", "down", 4, 0.0),
    Metric("kid_vgg16", "KID vgg16", "down", 4, 0.0),
    Metric("fd_vgg16", "FD vgg16", "down", 2, 0.0),
    Metric("fid", "FID", "down", 1, 0.0),
    Metric("high_frequency_ratio", "high frequencies", "one", 3, 1.0, headline=True),
    Metric("gradient_magnitude_ratio", "gradients", "one", 3, 1.0),
    Metric("blur_effect", "blur effect", "data", 3, "blur_effect_data", headline=True),
    Metric("spectrum_error", "spectrum error", "down", 3, 0.0),
    Metric("rate", "rate", "", 0, unit="nats", headline=True),
)
COARSE = "training_kid_coarse"
SAMPLES = (
    Metric("sample_kid_vgg16", "KID vgg16", "down", 3, 0.0),
    Metric("sample_fd_vgg16", "FD vgg16", "down", 1, 0.0),
    Metric("sample_fid", "FID", "down", 1, 0.0),
    Metric("sample_kid_coarse", "KID of 4×4 means", "down", 3, COARSE, headline=True),
    Metric("sample_high_frequency_ratio", "high frequencies", "one", 3, 1.0),
    Metric("sample_gradient_magnitude_ratio", "gradients", "one", 3, 1.0),
    Metric("sample_blur_effect", "blur effect", "data", 3, "blur_effect_data"),
    Metric("sample_spectrum_error", "spectrum error", "down", 3, 0.0),
)
MEMORISATION = (
    Metric("sample_nearest", "nearest trained on", "one", 2, 1.0),
    Metric("sample_copies", "copies", "down", 3, 0.0),
    Metric("sample_flagged", "flagged as deformed copies", "down", 3, 0.05, headline=True),
    Metric("sample_copies_found", "planted copies flagged", "up", 3, 1.0),
    Metric("sample_membership", "membership attack", "down", 3, 0.5),
    Metric("sample_membership_control", "its range by chance", "", 3),
)
COVERED, WHITENED = "within 90% intervals", "whitened variance"
LIKELIHOOD = (
    Metric("elbo_bits_per_dim", "−ELBO", "down", 3, unit="bits/dim", headline=True),
    Metric("elbo_bits_per_dim_fitted", "−ELBO, fitted law", "down", 3, unit="bits/dim"),
    Metric(
        "calibration_fitted_coverage_90", f"{COVERED}, fitted law", "ninety", 3, 0.9, headline=True
    ),
    Metric("calibration_fitted_whitened_variance_brain", f"{WHITENED}, fitted law", "one", 3, 1.0),
    Metric("calibration_coverage_90", f"{COVERED}, term's law", "ninety", 3, 0.9),
    Metric("calibration_whitened_variance_brain", f"{WHITENED}, term's law", "one", 3, 1.0),
)
GROUPS: dict[str, tuple[Metric, ...]] = {
    "Reconstructions": RECONSTRUCTION,
    "Samples from the prior": SAMPLES,
    "Whether samples are copies": MEMORISATION,
    "Likelihood and calibration": LIKELIHOOD,
}
"""The scores that people read, by what they are of; metrics.json has more."""
HEADLINE = tuple(metric for group in GROUPS.values() for metric in group if metric.headline)
