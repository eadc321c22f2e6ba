"""Scores of pairs of an image and its reconstruction, wherever the reconstruction came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.config import EvaluationConfig
from pipeline.data.slices import evenly_spread
from pipeline.evaluation import figures
from pipeline.evaluation.networks import Networks
from pipeline.evaluation.report.gathering import Extremes, Pair, Pictures, pair_of
from pipeline.metrics import sharpness
from pipeline.metrics.distribution import ImageSets, Kind
from pipeline.metrics.fidelity import brain_psnr, psnr, ssim
from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.metrics.statistics import Interval, aggregate, single

# Columns of the table that are no scores.
LABELS = ("subject", "family", "split", "slices")
SHOWN_SUBJECTS = 8


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


def mean_of(batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means over a subject's slices of scores that were taken batch by batch."""
    return {
        key: float(torch.cat([one[key] for one in batches]).double().mean()) for key in batches[0]
    }


@dataclass
class Tally:
    """What was scored so far, subject by subject.

    rows: each subject's labels and scores; powers: mean radial power (n_bins,) of its images and
    of their reconstructions; shown: its middle slice; extremes: the best and worst of all slices;
    sets: all images, for the metrics that compare sets. image_set: whether they are photographs,
    which have no brain to choose the extremes by.
    """

    networks: Networks
    image_set: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    powers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    shown: list[Pair] = field(default_factory=list)
    extremes: Extremes = field(default_factory=Extremes)
    sets: list[ImageSets] = field(init=False)

    def __post_init__(self) -> None:
        self.sets = self.networks.image_sets()

    def compare(self, kind: Kind, images: Tensor) -> None:
        """Add images (B,C,H,W) of one kind to the sets."""
        for compared in self.sets:
            compared.add(kind, images)

    def slice_scores(self, images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
        """`slice_scores` of a batch (B,C,H,W), which is added to the sets."""
        self.compare("data", images)
        self.compare("reconstruction", reconstructions)
        return slice_scores(images, reconstructions, self.networks.distances)

    def add(
        self,
        labels: Mapping[str, object],
        scores: Mapping[str, float],
        images: Tensor,
        reconstructions: Tensor,
        places: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Add a subject's row and return it, which may get more scores.

        Args:
            labels: the subject's name and what else is of LABELS.
            scores: those that were taken slice by slice.
            images: (n,C,H,W), all slices of the subject, on the CPU.
            reconstructions: of the same shape.
            places: the numbers of the slices in their volume.
        """
        row = {**labels, "slices": len(images), **scores}
        for key, measure in sharpness.RATIOS.items():
            row[key] = sharpness.ratio_of_means(measure(images), measure(reconstructions))
        power, reconstructed = (sharpness.radial_power(x) for x in (images, reconstructions))
        row["spectrum_error"] = sharpness.spectrum_error(power, reconstructed)
        self.powers.append((power.mean(dim=0), reconstructed.mean(dim=0)))
        subject, slices = str(labels["subject"]), psnr(images, reconstructions)
        middle = len(images) // 2
        self.shown.append(pair_of(subject, middle, images, reconstructions, slices, places))
        chosen_by = slices if self.image_set else brain_psnr(images, reconstructions)
        self.extremes.add(subject, images, reconstructions, chosen_by, places)
        self.rows.append(row)
        return row

    @property
    def subjects(self) -> list[str]:
        """Names, in the order in which they were added."""
        return [row["subject"] for row in self.rows]

    def metrics(self, settings: EvaluationConfig) -> dict[str, Interval]:
        """Means over families with their intervals, and the distances between sets of images.

        families: how many there are; subjects of unknown family are one each.
        """
        families = [str(row.get("family") or row["subject"]) for row in self.rows]
        scored = [key for key in self.rows[0] if key not in LABELS]
        values = {key: np.array([row[key] for row in self.rows]) for key in scored}
        metrics = aggregate(values, families)
        metrics["families"] = single(len(set(families)))
        for compared in self.sets:
            metrics |= compared.scores(settings.seed)
        return metrics

    def figures(self, of: str, **powers: Tensor) -> dict[str, Figure]:
        """Reconstructions of at most eight subjects, evenly spread, and spectra of all.

        of: whose they are, for the titles; powers: name to radial power (n_bins,) to draw beside,
        "_" for a space.
        """
        chosen = evenly_spread(len(self.shown), SHOWN_SUBJECTS)
        images, made = self.pictures(chosen)
        data, reconstruction = (torch.stack(x).mean(dim=0) for x in zip(*self.powers, strict=True))
        more = {name.replace("_", " "): power for name, power in powers.items()}
        return {
            "reconstructions.png": figures.reconstructions(
                images,
                made,
                [self.subjects[number] for number in chosen],
                f"Reconstructions of {of}",
            ),
            "spectra.png": figures.spectra(
                sharpness.frequencies(*images.shape[-2:]),
                {"data": data, "reconstruction": reconstruction, **more},
                f"Radial power spectra, {of}",
            ),
        }

    def pictures(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """The middle slices of subjects by their number, and the reconstructions: (n,C,H,W)."""
        pairs = [self.shown[number] for number in chosen]
        return (
            torch.stack([pair.image for pair in pairs]),
            torch.stack([pair.reconstruction for pair in pairs]),
        )

    def report(self) -> Pictures:
        """What the report shows of reconstructions."""
        chosen = evenly_spread(len(self.shown), SHOWN_SUBJECTS)
        pairs = [self.shown[number] for number in chosen]
        return Pictures(pairs, self.extremes.best, self.extremes.worst)
