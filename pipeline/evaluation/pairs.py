"""Scores of pairs of an image and its reconstruction, wherever the reconstruction came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.slices import evenly_spread
from pipeline.evaluation.networks import Networks
from pipeline.metrics import sharpness
from pipeline.metrics.distribution import ImageSets, Kind
from pipeline.metrics.fidelity import brain_psnr, psnr, ssim
from pipeline.metrics.statistics import Interval, aggregate, single

# Slices of a subject that the floor is measured on.
FLOOR_SLICES = 8
# Columns of the table that are no scores.
LABELS = ("subject", "family", "split", "slices")
# Of the best slices and of the worst, each of another subject.
KEPT = 4


@dataclass(frozen=True)
class Pair:
    """A slice and its reconstruction, (C,H,W) in [0,1].

    place: the slice's number in its volume, where that is known; psnr: dB, of the whole slice or,
    of extremes, what they are chosen by.
    """

    subject: str
    place: int | None
    psnr: float
    image: Tensor
    reconstruction: Tensor


def mean_of(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Means over a subject's slices of scores (B,) that were taken batch by batch."""
    return {
        key: float(torch.cat([batch[key] for batch in batches]).double().mean())
        for key in batches[0]
    }


def floor_of(images: Tensor, mean: Tensor, networks: Networks) -> dict[str, float]:
    """Scores of the mean slice (C,H,W) in place of reconstructions of images (n,C,H,W).

    A run that is not above them has learned nothing.
    """
    some = images[evenly_spread(len(images), FLOOR_SLICES)]
    same = mean.expand_as(some).contiguous()
    found = {"floor_psnr": psnr(some, same), "floor_ssim": ssim(some, same)}
    found |= {f"floor_{key}": distance(some, same) for key, distance in networks.distances.items()}
    return mean_of([found])


@dataclass
class Tally:
    """What was scored so far, subject by subject.

    rows: each subject's labels and scores; powers: mean radial power (n_bins,) of its images and
    of their reconstructions; shown: its middle slice; best, worst: of all slices, at most one of a
    subject, for a single odd volume would fill the row; sets: all images, for the metrics that
    compare sets. image_set: whether they are photographs, which have no brain to choose by.
    """

    networks: Networks
    image_set: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    powers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    shown: list[Pair] = field(default_factory=list)
    best: list[Pair] = field(default_factory=list)
    worst: list[Pair] = field(default_factory=list)
    sets: list[ImageSets] = field(init=False)

    def __post_init__(self) -> None:
        self.sets = self.networks.image_sets()

    def compare(self, kind: Kind, images: Tensor) -> None:
        """Add images (B,C,H,W) of one kind to the sets."""
        for compared in self.sets:
            compared.add(kind, images)

    def slice_scores(self, images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
        """Scores (B,) of a batch in [0,1], (B,C,H,W) each, which is added to the sets."""
        self.compare("data", images)
        self.compare("reconstruction", reconstructions)
        distances = self.networks.distances.items()
        return {
            "psnr": psnr(images, reconstructions),
            "ssim": ssim(images, reconstructions),
            **{name: distance(images, reconstructions) for name, distance in distances},
            "blur_effect": sharpness.blur_effect(reconstructions),
            "blur_effect_data": sharpness.blur_effect(images),
        }

    def add(
        self,
        labels: Mapping[str, object],
        scores: Mapping[str, float],
        images: Tensor,
        made: Tensor,
        places: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Add a subject's row and return it, which may get more scores.

        Args:
            labels: the subject's name, its family, and what else is of LABELS.
            scores: those that were taken slice by slice.
            images: (n,C,H,W), all slices of the subject, on the CPU.
            made: their reconstructions, of the same shape.
            places: the numbers of the slices in their volume.
        """
        row = {**labels, "slices": len(images), **scores}
        for key, measure in sharpness.RATIOS.items():
            row[key] = sharpness.ratio_of_means(measure(images), measure(made))
        power, reconstructed = (sharpness.radial_power(x) for x in (images, made))
        row["spectrum_error"] = sharpness.spectrum_error(power, reconstructed)
        self.powers.append((power.mean(dim=0), reconstructed.mean(dim=0)))
        self.rows.append(row)
        whole = psnr(images, made)

        def pair(number: int, by: Tensor) -> Pair:
            place = places[number] if places else None
            # Copies: a view would keep all slices of the subject.
            pictures = images[number].clone(), made[number].clone()
            return Pair(str(labels["subject"]), place, by[number].item(), *pictures)

        self.shown.append(pair(len(images) // 2, whole))
        by = whole if self.image_set else brain_psnr(images, made)  # NaN where there is no brain
        if not by.isnan().all():
            self.best.append(pair(int(by.nan_to_num(-torch.inf).argmax()), by))
            self.worst.append(pair(int(by.nan_to_num(torch.inf).argmin()), by))
        self.best = sorted(self.best, key=lambda extreme: -extreme.psnr)[:KEPT]
        self.worst = sorted(self.worst, key=lambda extreme: extreme.psnr)[:KEPT]
        return row

    def metrics(self, seed: int) -> dict[str, Interval]:
        """Means over families with their intervals, and the distances between sets of images.

        families: how many there are. seed: of subsets.
        """
        families = [row["family"] for row in self.rows]
        scored = [key for key in self.rows[0] if key not in LABELS]
        values = {key: np.array([row[key] for row in self.rows]) for key in scored}
        metrics = aggregate(values, families)
        metrics["families"] = single(len(set(families)))
        for compared in self.sets:
            metrics |= compared.scores(seed)
        return metrics
