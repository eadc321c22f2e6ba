"""Scores of pairs of an image and its reconstruction, wherever the reconstruction came from."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import EvaluationConfig
from pipeline.data.slices import evenly_spread
from pipeline.errors import InputError
from pipeline.evaluation.calibration import Spread
from pipeline.metrics import sharpness
from pipeline.metrics.distribution import ImageSets, Kind
from pipeline.metrics.fidelity import brain_psnr, psnr, ssim
from pipeline.metrics.perceptual import (
    InceptionFeatures,
    Network,
    PerceptualDistance,
    WeightsNotFound,
    inception_weights,
)
from pipeline.metrics.statistics import LABELS, Interval, aggregate, single

log = logging.getLogger(__name__)

# Slices of a subject that the floor is measured on.
FLOOR_SLICES = 8
# Of the best slices and of the worst, each of another subject.
KEPT = 4
VGG, INCEPTION = ("kid_vgg16", "fd_vgg16"), ("fid",)


@dataclass
class Networks:
    """LPIPS by metric name, Inception, and the metrics whose weights are not here, and why."""

    distances: dict[str, PerceptualDistance] = field(default_factory=dict)
    inception: InceptionFeatures | None = None
    absent: dict[str, str] = field(default_factory=dict)


def load_networks(settings: EvaluationConfig) -> Networks:
    """The pretrained networks whose weights are here; a line is logged for each that is not.

    Raises InputError, naming the key, where weights that were asked for by path can't be used:
    leaving the metric out would hide the mistake.
    """
    networks = Networks()
    which: list[tuple[Network, Sequence[str]]] = [("alex", ()), ("vgg", VGG)]
    for network, sets in which:
        name = f"lpips_{network}"
        weights = getattr(settings, f"{name}_weights")
        try:
            networks.distances[name] = PerceptualDistance(network, weights, settings.download)
        except WeightsNotFound as error:
            if weights:
                raise InputError(f"evaluation.{name}_weights: {error}") from error
            _leave_out(networks, [name, *sets, *(f"sample_{key}" for key in sets)], error)
    try:
        path = inception_weights(settings.inception_weights, settings.download)
        networks.inception = InceptionFeatures(path)
    except WeightsNotFound as error:
        if settings.inception_weights:
            raise InputError(f"evaluation.inception_weights: {error}") from error
        # Few have these weights, and KID and FD do without: no need to hear of every way each time.
        ways = "evaluation.inception_weights or evaluation.download true give them"
        _leave_out(networks, ["fid", "sample_fid"], error, f"{error.short} ({ways})")
    return networks


def _leave_out(
    networks: Networks, keys: Sequence[str], error: WeightsNotFound, line: str = ""
) -> None:
    log.warning("left out: %s; %s", ", ".join(keys), line or error)
    networks.absent |= dict.fromkeys(keys, str(error))


@dataclass(frozen=True)
class Scored:
    """Slices that were scored.

    images, reconstructions: (n,C,H,W) in [0,1], on the CPU; scores: (n,) by metric; spreads: what
    each law expected of the residuals.
    """

    images: Tensor
    reconstructions: Tensor
    scores: Mapping[str, Tensor]
    spreads: Mapping[str, Spread] = field(default_factory=dict)

    @staticmethod
    def joined(parts: Sequence["Scored"]) -> "Scored":
        """All slices of some batches."""
        first = parts[0]
        return Scored(
            torch.cat([part.images for part in parts]),
            torch.cat([part.reconstructions for part in parts]),
            {key: torch.cat([part.scores[key] for part in parts]) for key in first.scores},
            {law: Spread.joined([part.spreads[law] for part in parts]) for law in first.spreads},
        )


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


def floor_of(images: Tensor, mean: Tensor, networks: Networks) -> dict[str, float]:
    """Scores of the mean slice (C,H,W) in place of reconstructions of images (n,C,H,W).

    A run that is not above them has learned nothing.
    """
    some = images[evenly_spread(len(images), FLOOR_SLICES)]
    same = mean.expand_as(some).contiguous()
    scores = {"psnr": psnr(some, same), "ssim": ssim(some, same)}
    scores |= {key: distance(some, same) for key, distance in networks.distances.items()}
    return {f"floor_{key}": float(values.double().mean()) for key, values in scores.items()}


class Tally:
    """The table of subjects, and what a report shows of them.

    rows: each subject's labels and scores; powers: mean radial power (n_bins,) of its images and
    of their reconstructions; shown: its middle slice; best, worst: of all slices, at most one of a
    subject, for a single odd volume would fill the row.
    """

    def __init__(self, networks: Networks, image_set: bool = False) -> None:
        """image_set: whether images are photographs, which have no brain to choose by."""
        self.networks, self.image_set = networks, image_set
        self.rows: list[dict[str, Any]] = []
        self.powers: list[tuple[Tensor, Tensor]] = []
        self.shown: list[Pair] = []
        self.best: list[Pair] = []
        self.worst: list[Pair] = []
        self._vgg = self._inception = None
        if vgg := networks.distances.get("lpips_vgg"):
            self._vgg = ImageSets(vgg.size, {"kid": VGG[0], "frechet": VGG[1]})
        if networks.inception:
            self._inception = ImageSets(networks.inception.size, {"frechet": INCEPTION[0]})

    def add_samples(self, images: Tensor) -> None:
        """Add draws of the prior (B,C,H,W) to the sets of images that are compared."""
        if self._vgg:
            self._vgg.add("sample", self.networks.distances["lpips_vgg"].features(images))
        self._add_inception("sample", images)

    def _add_inception(self, kind: Kind, images: Tensor) -> None:
        if self._inception and self.networks.inception:
            self._inception.add(kind, self.networks.inception.features(images))

    def score(
        self,
        images: Tensor,
        made: Tensor,
        more: Mapping[str, Tensor] | None = None,
        spreads: Mapping[str, Spread] | None = None,
    ) -> Scored:
        """Score a batch in [0,1], (B,C,H,W) each, and add it to the sets that are compared.

        more, spreads: what else is known of these slices.
        """
        scores = {"psnr": psnr(images, made), "ssim": ssim(images, made)}
        for name, network in self.networks.distances.items():
            scores[name], features, others = network.compare(images, made)
            if name == "lpips_vgg" and self._vgg:
                self._vgg.add("data", features)
                self._vgg.add("reconstruction", others)
        self._add_inception("data", images)
        self._add_inception("reconstruction", made)
        scores["blur_effect"] = sharpness.blur_effect(made)
        scores["blur_effect_data"] = sharpness.blur_effect(images)
        return Scored(images.cpu(), made.cpu(), scores | dict(more or {}), spreads or {})

    def add(
        self, labels: Mapping[str, object], scored: Scored, places: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Add a subject's row and return it, which may get more scores.

        Args:
            labels: the subject's name, its family, and what else is of LABELS.
            scored: all slices of the subject.
            places: the numbers of the slices in their volume.
        """
        images, made = scored.images, scored.reconstructions
        means = {key: float(values.double().mean()) for key, values in scored.scores.items()}
        row = {**labels, "slices": len(images), **means}
        for key, measure in sharpness.RATIOS.items():
            row[key] = sharpness.ratio_of_means(measure(images), measure(made))
        power, reconstructed = (sharpness.radial_power(x) for x in (images, made))
        row["spectrum_error"] = sharpness.spectrum_error(power, reconstructed)
        self.powers.append((power.mean(dim=0), reconstructed.mean(dim=0)))
        self.rows.append(row)

        def pair(number: int, by: Tensor) -> Pair:
            place = places[number] if places else None
            # Copies: a view would keep all slices of the subject.
            pictures = images[number].clone(), made[number].clone()
            return Pair(str(labels["subject"]), place, by[number].item(), *pictures)

        whole = scored.scores["psnr"]
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
        metrics = aggregate(values, families) | {"families": single(len(set(families)))}
        for sets in (self._vgg, self._inception):
            metrics |= sets.scores(seed) if sets else {}
        return metrics
