"""The metrics by their keys in metrics.json: names, units, what they mean, which way is better."""

import math
from dataclasses import dataclass
from typing import Literal

# Which way is better: up, down, nearest to 1, to the data's own value or to 90%; "" for neither.
Better = Literal["up", "down", "one", "data", "ninety", ""]
ARROWS: dict[str, str] = {
    "up": "↑", "down": "↓", "one": "→ 1", "data": "→ data", "ninety": "→ 0.9", "": "",
}  # fmt: skip
WORDS: dict[str, str] = {
    "up": "higher is better",
    "down": "lower is better",
    "one": "better near 1",
    "data": "better near the data",
    "ninety": "better near 0.9",
    "": "compare scores at one rate",
}


@dataclass(frozen=True)
class Metric:
    """A score: its key in metrics.json, its name, which way is better, decimals shown, its unit.

    meaning: in one line. data: what the originals have, the key of another metric or a number;
    None where that is not defined. headline: whether it is of the few that stand at the head of a
    report and with the training run in MLflow.
    """

    key: str
    name: str
    better: Better
    decimals: int
    unit: str = ""
    meaning: str = ""
    data: str | float | None = None
    headline: bool = False

    @property
    def heading(self) -> str:
        """Of a column: name, unit and arrow."""
        return self.label + (f" {self.arrow}" if self.better else "")

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def arrow(self) -> str:
        return ARROWS[self.better]

    @property
    def words(self) -> str:
        """Which way is better."""
        return WORDS[self.better]

    def shown(self, value: float | None) -> str:
        """A value with this metric's decimals; – where there is none."""
        if value is None or math.isnan(value):
            return "–"
        text = f"{value:.{self.decimals}f}"
        return text if float(text) else text.removeprefix("-")


RECONSTRUCTION = (
    Metric(
        "psnr", "PSNR", "up", 2, "dB",
        "error of a pixel on a logarithmic scale: 6 dB more is half the error", headline=True,
    ),
    Metric(
        "ssim", "SSIM", "up", 3, "", "structural similarity in windows; 1 is identical", 1.0,
        headline=True,
    ),
    Metric(
        "lpips_alex", "LPIPS alex", "down", 4, "",
        "how different a network, tuned to human judgements, finds the two images", 0.0,
        headline=True,
    ),
    Metric("lpips_vgg", "LPIPS vgg", "down", 4, "", "the same by a larger network", 0.0),
    Metric(
        "kid_vgg16", "KID vgg16", "down", 4, "",
        "distance of all reconstructions from all originals, by a network's features", 0.0,
    ),
    Metric(
        "fd_vgg16", "FD vgg16", "down", 2, "",
        "the same by means and covariances; grows where images are few", 0.0,
    ),
    Metric(
        "fid", "FID", "down", 1, "", "Fréchet distance of InceptionV3's features", 0.0,
    ),
    Metric(
        "high_frequency_ratio", "high frequencies", "one", 3, "",
        "power of fine detail (0.25 cycles/pixel and above) over that of the data; below 1 is blur",
        1.0, headline=True,
    ),
    Metric(
        "gradient_magnitude_ratio", "gradients", "one", 3, "",
        "strength of edges over that of the data; below 1 is blur", 1.0,
    ),
    Metric(
        "blur_effect", "blur effect", "data", 3, "",
        "perceptual blur from 0 to 1, of the image alone", "blur_effect_data", headline=True,
    ),
    Metric(
        "spectrum_error", "spectrum error", "down", 3, "",
        "mean distance of the power spectra, in nats, over all frequencies", 0.0,
    ),
    Metric(
        "rate", "rate", "", 0, "nats",
        "information that the latent carries of an image", headline=True,
    ),
)  # fmt: skip
SAMPLES = (
    Metric(
        "sample_kid_vgg16", "KID vgg16", "down", 3, "",
        "distance of samples from the data, by a network's features", 0.0,
    ),
    Metric(
        "sample_fd_vgg16", "FD vgg16", "down", 1, "",
        "the same by means and covariances; grows where images are few", 0.0,
    ),
    Metric(
        "sample_fid", "FID", "down", 1, "", "Fréchet distance of InceptionV3's features", 0.0,
    ),
    Metric(
        "sample_kid_coarse", "KID of 4×4 means", "down", 3, "",
        "distance of the anatomy alone, without texture", "training_kid_coarse", headline=True,
    ),
    Metric(
        "sample_high_frequency_ratio", "high frequencies", "one", 3, "",
        "power of fine detail over that of the data; below 1 is blur", 1.0,
    ),
    Metric(
        "sample_gradient_magnitude_ratio", "gradients", "one", 3, "",
        "strength of edges over that of the data; below 1 is blur", 1.0,
    ),
    Metric(
        "sample_blur_effect", "blur effect", "data", 3, "",
        "perceptual blur from 0 to 1, of the image alone", "blur_effect_data",
    ),
    Metric(
        "sample_spectrum_error", "spectrum error", "down", 3, "",
        "mean distance of the power spectra, in nats, over all frequencies", 0.0,
    ),
)  # fmt: skip
MEMORISATION = (
    Metric(
        "sample_nearest", "nearest trained on", "one", 2, "",
        "distance to subjects trained on over that to unseen ones; below 1 nearer, 0 copies", 1.0,
    ),
    Metric(
        "sample_copies", "copies", "down", 3, "",
        "share of samples three times nearer to one subject trained on than to the next", 0.0,
    ),
    Metric(
        "sample_flagged", "flagged as deformed copies", "down", 3, "",
        "share of samples nearer to who was trained on than 95% of unseen slices are", 0.05,
        headline=True,
    ),
    Metric(
        "sample_copies_found", "planted copies flagged", "up", 3, "",
        "the same of deformed training slices: how many copies this test finds", 1.0,
    ),
    Metric(
        "sample_membership", "membership attack", "down", 3, "",
        "chance that a slice trained on is nearer to a sample than an unseen one is", 0.5,
    ),
    Metric(
        "sample_membership_control", "its range by chance", "", 3, "",
        "the same attack between those trained on; the range of 95% of draws",
    ),
)  # fmt: skip
DENSITY = (
    Metric(
        "elbo_bits_per_dim", "−ELBO", "down", 3, "bits/dim",
        "bound on the negative log-likelihood of an image under the term's own law", headline=True,
    ),
)  # fmt: skip
FITTED_DENSITY = (
    Metric(
        "elbo_bits_per_dim_fitted", "−ELBO, fitted law", "down", 3, "bits/dim",
        "the same under the law that was fitted to the residuals",
    ),
)  # fmt: skip
CALIBRATION = (
    Metric(
        "calibration_fitted_coverage_90", "within 90% intervals, fitted law", "ninety", 3, "",
        "share of the brain's pixels that lie in the interval which should hold 90% of them", 0.9,
        headline=True,
    ),
    Metric(
        "calibration_fitted_whitened_variance_brain", "whitened variance, fitted law", "one", 3, "",
        "size of the brain's errors over that expected; above 1 the law is too sure", 1.0,
    ),
    Metric(
        "calibration_coverage_90", "within 90% intervals, term's law", "ninety", 3, "",
        "the same under the law that the decoder was trained with", 0.9,
    ),
    Metric(
        "calibration_whitened_variance_brain", "whitened variance, term's law", "one", 3, "",
        "the same under the law that the decoder was trained with", 1.0,
    ),
)  # fmt: skip
GROUPS: dict[str, tuple[Metric, ...]] = {
    "Reconstructions": RECONSTRUCTION,
    "Samples from the prior": SAMPLES,
    "Whether samples are copies": MEMORISATION,
    "Likelihood and calibration": (*DENSITY, *FITTED_DENSITY, *CALIBRATION),
}
"""The scores that people read, by what they are of; metrics.json has more."""
HEADLINE = tuple(metric for group in GROUPS.values() for metric in group if metric.headline)
