"""What the page of a scored run shows; report.html says how it is laid out."""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data_prep import data_uri
from pipeline.evaluation.report.about import About
from pipeline.evaluation.report.gathering import Pair, Pictures
from pipeline.evaluation.scores import Score, groups_of, scores_of, warning_of
from pipeline.figures import image_grid
from pipeline.metrics.catalogue import GROUPS
from pipeline.metrics.statistics import Interval

# The cards at the top, of what a run has.
HEADLINE = (
    "psnr", "lpips_alex", "high_frequency_ratio", "blur_effect", "rate",
    "sample_kid_coarse", "sample_novelty", "calibration_fitted_coverage_90",
)  # fmt: skip
# Images of fewer pixels are shown enlarged, each pixel as a square: smoothing would hide blur.
SMALL_SIDE = 160
# What each figure shows, for those who do not see it.
ALTS = {
    "kernels.png": "Blur kernels of several images, a column per epoch, each with its width in "
    "pixels",
    "spectra.png": "Power spectra of the data, reconstructions and samples, and their ratio to the "
    "data",
    "calibration.png": "Coverage of 90% intervals and variance over that expected by region, "
    "distribution of residuals in their law, and variance over that expected by frequency",
    "error_bars.png": "Images, reconstructions, their errors, the standard deviations that the "
    "fitted law expects, and the ratio of the two",
}


@dataclass(frozen=True)
class Shown:
    """A pair as it is shown: names, and both images as addresses."""

    subject: str
    place: int | None
    psnr: str
    name: str
    original: str
    reconstruction: str
    width: int
    height: int


@dataclass(frozen=True)
class Page:
    """What the page is made of.

    rows: a row per subject, with its number of slices; figures: names of files in folder/figures;
    absences: metrics that were left out, each with the reason.
    """

    about: About
    metrics: Mapping[str, Interval]
    rows: Sequence[Mapping[str, Any]]
    pictures: Pictures
    figures: Collection[str]
    absences: Mapping[str, str]
    folder: Path

    @property
    def place(self) -> str:
        """What a slice is called."""
        return "image" if self.about.image_set else "slice"

    @property
    def unseen(self) -> str:
        """What the images are that stand beside samples: the model was not trained on them."""
        if self.about.image_set:
            return "unseen images"
        return f"slices of unseen {'simulated people' if self.about.simulated else 'subjects'}"

    @property
    def lead(self) -> str:
        """What was scored, and on what."""
        count = sum(row["slices"] for row in self.rows)
        noun = "block" if self.about.image_set else "subject"
        found = f"{count:,} {self.place}s of {len(self.rows):,} {noun}{'s'[: len(self.rows) != 1]}"
        return f"{self.about.what}, scored on {found}{self.about.of}."

    @property
    def parts(self) -> Iterator[tuple[str, str]]:
        """Anchors of the page and their names."""
        yield "reconstructions", "Reconstructions"
        yield "extremes", "Best and worst"
        if self.pictures.samples is not None:
            yield "samples", "Samples"
        for name in ("kernels", "spectra", "calibration"):
            if self.has(f"{name}.png"):
                yield name, name.capitalize()
        yield "scores", "All scores"
        yield "repeat", "To repeat it"

    @property
    def warning(self) -> str:
        """What must be said of intervals over few families."""
        return warning_of(self.metrics).capitalize()

    @property
    def headline(self) -> list[Score]:
        metrics = {metric.key: metric for group in GROUPS.values() for metric in group}
        return scores_of(self.metrics, [metrics[key] for key in HEADLINE])

    @property
    def groups(self) -> list[tuple[str, list[Score]]]:
        return groups_of(self.metrics)

    @property
    def more(self) -> int:
        """How many metrics are in metrics.json and not on the page."""
        return len(self.metrics) - sum(len(scores) for _, scores in self.groups)

    @property
    def absent(self) -> list[tuple[list[str], str]]:
        """Metrics that were left out, by reason."""
        reasons: dict[str, list[str]] = {}
        for key, reason in self.absences.items():
            reasons.setdefault(reason, []).append(key)
        return [(keys, reason) for reason, keys in reasons.items()]

    @property
    def small(self) -> bool:
        """Whether images are shown larger than they are."""
        return max(self.pictures.pairs[0].image.shape[-2:]) < SMALL_SIDE

    @property
    def pairs(self) -> list[Shown]:
        return [self._shown(pair) for pair in self.pictures.pairs]

    @property
    def best(self) -> list[Shown]:
        return [self._shown(pair) for pair in self.pictures.best]

    @property
    def worst(self) -> list[Shown]:
        return [self._shown(pair) for pair in self.pictures.worst]

    def _shown(self, pair: Pair) -> Shown:
        name = pair.subject if pair.place is None else f"{pair.subject}, {self.place} {pair.place}"
        height, width = pair.image.shape[-2:]
        addresses = picture(pair.image[None]), picture(pair.reconstruction[None])
        return Shown(pair.subject, pair.place, f"{pair.psnr:.2f}", name, *addresses, width, height)

    @property
    def drawn(self) -> str:
        """Where the latents of samples come from."""
        return self.pictures.drawn

    @property
    def count(self) -> int:
        """How many samples are shown."""
        return 0 if self.pictures.samples is None else len(self.pictures.samples)

    @property
    def samples(self) -> str:
        """All samples in one picture; empty where there are none."""
        return "" if self.pictures.samples is None else picture(self.pictures.samples, columns=6)

    @property
    def data(self) -> str:
        """As many images of the data."""
        return "" if self.pictures.data is None else picture(self.pictures.data, columns=6)

    def has(self, name: str) -> bool:
        """Whether this evaluation has a figure of that name."""
        return name in self.figures

    def figure(self, name: str) -> str:
        return data_uri((self.folder / "figures" / name).read_bytes())

    def alt(self, name: str) -> str:
        return ALTS[name]

    @property
    def versions(self) -> str:
        return f"sharp-vae-mri {self.about.version}, torch {torch.__version__}"


def picture(images: Tensor, columns: int = 1) -> str:
    """Images (n,C,H,W) in [0,1] side by side, as the address of a PNG; grey ones in one channel."""
    grey = images.shape[1] == 1
    # Brains lie in a black surround, which separates them; photographs need a gap.
    grid = image_grid(images, columns, gap=0 if grey else 2)
    stream = io.BytesIO()
    Image.fromarray(grid[..., 0] if grey else grid).save(stream, "PNG", optimize=True)
    return data_uri(stream.getvalue())
