"""Numbers that say how good a subject's pictures are, and which subjects are outliers.

They are taken from the store's own shards, so they judge what a model is trained on; what the
volume was like before comes from the manifest.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from data_prep.store import SCALE, Store, SubjectEntry
from data_prep.volume.plausibility import words_of

# Beyond this many robust standard deviations a number is an outlier (Iglewicz and Hoaglin, How to
# Detect and Handle Outliers, 1993).
THRESHOLD = 3.5

# Fewer subjects have no reliable median: they are sorted, but none is called an outlier.
FEWEST = 8

# A value that this share of the subjects has in common is the rule, and others are reported.
COMMON = 0.8

BINS = 32

# Images of a block of photographs that are measured: a whole set may have 80 GB.
SAMPLE = 50

# The brain's rim is an edge in every picture, however blurred: sharpness is measured this many
# pixels inside.
RIM = 2


@dataclass(frozen=True)
class Quality:
    """What one shard looks like. Intensities are in [0, 1], over the pixels above 0.

    slices: how many. area_cm2: mean brain area of a slice. mean, sd: of the intensities.
    saturated: share of them at 1. sharpness: root mean square difference of neighbouring pixels
    over the standard deviation, RIM pixels within the brain's rim: about 0.1 is blurred, and noise
    without any structure has 1.4. histogram: share per bin, BINS of them from 0 to 1.
    """

    slices: int
    area_cm2: float
    mean: float
    sd: float
    saturated: float
    sharpness: float
    histogram: tuple[float, ...]


@dataclass(frozen=True)
class Subject:
    """One subject's entry and numbers; then, once compared, how far from the others and why.

    scores: per measure its robust z-score. reasons: in words, the strongest first.
    """

    entry: SubjectEntry
    quality: Quality
    scores: tuple[float, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def strongest(self) -> float:
        """The largest |z|."""
        return max(map(abs, self.scores), default=0.0)


@dataclass(frozen=True)
class Measure:
    """A number that subjects are compared by.

    of: its value for a subject, or None where it is not known. floor: the smallest deviation that
    matters; where nearly all are alike, less would make outliers of nothing. low, high: what
    may be the matter. scale: factor for the page, as for per cent. logarithmic: compared, and its
    floor meant, as log10: scanners' intensities differ by factors.
    """

    key: str
    label: str
    unit: str
    decimals: int
    floor: float
    of: Callable[[Subject], float | None]
    low: str = ""
    high: str = ""
    scale: float = 1.0
    logarithmic: bool = False

    def compared(self, subject: Subject) -> float | None:
        """The value on the scale of its floor."""
        value = self.of(subject)
        return math.log10(value) if self.logarithmic and value is not None else value

    def shown(self, value: float | None) -> str:
        """The value as text, without its unit."""
        return "–" if value is None else f"{value * self.scale:.{self.decimals}f}"


def _high(subject: Subject) -> float | None:
    """The native intensity that became 1."""
    native = subject.entry.volume
    return native.high if native and native.high > 0 else None


MEASURES = (
    Measure("slices", "slices", "", 0, 1.0, lambda s: s.quality.slices, "field of view cut off?"),
    Measure("area_cm2", "brain area", "cm²", 1, 1.0, lambda s: s.quality.area_cm2,
            "brain cut off, or mask too small?", "skull left in, or voxel size wrong?"),
    Measure("mean", "mean", "", 3, 0.01, lambda s: s.quality.mean,
            "dark: something very bright inside?", "bright: intensities cut off?"),
    Measure("sd", "contrast", "", 3, 0.005, lambda s: s.quality.sd, "flat?"),
    Measure("saturated", "saturated", "%", 2, 0.002, lambda s: s.quality.saturated,
            "", "intensities cut off?", 100.0),
    Measure("sharpness", "sharpness", "", 3, 0.005, lambda s: s.quality.sharpness,
            "blurred, or moved?", "noisy?"),
    Measure("high", "native intensity", "", 0, 0.1, _high,
            "another scanner or scaling?", "another scanner or scaling?", logarithmic=True),
)  # fmt: skip


def measure(pixels: np.ndarray, spacing_mm: float) -> Quality:
    """The numbers of one subject's shard.

    pixels: uint16 (n, C, H, W), intensity × 65535; spacing_mm: pixel size in the plane.
    """
    # A slice at a time: a memory-mapped shard of 256² may have 100 MB as floats.
    counts = np.zeros(SCALE + 1, np.int64)
    squares, pairs = 0.0, 0
    for image in pixels:
        values = np.asarray(image)
        counts += np.bincount(values.ravel(), minlength=SCALE + 1)
        inside = ndimage.binary_erosion(values > 0, np.ones((1, 3, 3), bool), iterations=RIM)
        for axis in (1, 2):
            length = values.shape[axis]
            both = inside.take(range(length - 1), axis) & inside.take(range(1, length), axis)
            difference = np.diff(values.astype(np.float64), axis=axis)[both]
            squares += float(np.square(difference / SCALE).sum())
            pairs += int(both.sum())
    counts[0] = 0
    total = int(counts.sum())
    if not total:
        return Quality(len(pixels), 0.0, 0.0, 0.0, 0.0, 0.0, (0.0,) * BINS)
    levels = np.arange(SCALE + 1) / SCALE
    # Not as dot products, whose last digits depend on the number of threads.
    mean = float((counts * levels).sum()) / total
    sd = math.sqrt(float((counts * np.square(levels - mean)).sum()) / total)
    # 65536 levels, so each bin has equally many.
    bins = counts.reshape(BINS, -1).sum(1) / total
    return Quality(
        slices=len(pixels),
        area_cm2=total / pixels.shape[1] / len(pixels) * spacing_mm**2 / 100,
        mean=mean,
        sd=sd,
        saturated=float(counts[SCALE]) / total,
        sharpness=math.sqrt(squares / pairs) / sd if pairs and sd else 0.0,
        histogram=tuple(bins.tolist()),
    )


def robust_scores(values: Sequence[float | None], floor: float) -> list[float]:
    """Distance from the median in robust standard deviations, MAD × 1.4826 and at least `floor`.

    What is not known scores 0.
    """
    given = np.array([v for v in values if v is not None], float)
    if not len(given):
        return [0.0] * len(values)
    median = float(np.median(given))
    deviation = max(1.4826 * float(np.median(np.abs(given - median))), floor)
    return [0.0 if v is None else (v - median) / deviation for v in values]


def measured(store: Store) -> list[Subject]:
    """Every entry with its numbers. Holds one slice in memory at a time.

    Of a block of photographs they are those of up to SAMPLE images, over all pixels: there is no
    background.
    """
    subjects = []
    for entry in store.entries:
        pixels: np.ndarray = store.slices(entry)
        if store.image_set:
            pixels = np.maximum(pixels[:: max(1, len(pixels) // SAMPLE)], 1)
        quality = measure(pixels, store.spacing_mm)
        subjects.append(Subject(entry, replace(quality, slices=len(entry.slice_indices))))
    return subjects


def compared(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects with scores and reasons: the most unlike the others first.

    Something that has words and no number (stored another way round, cut off, flagged) counts as
    much as the threshold.
    """
    columns, medians = [], []
    for one in MEASURES:
        given = [v for s in subjects if (v := one.of(s)) is not None]
        medians.append(float(np.median(given)) if given else 0.0)
        columns.append(robust_scores([one.compared(s) for s in subjects], one.floor))
    common = [_common([native[key] for native in map(native_words, subjects)]) for key in range(3)]
    judged = len(subjects) >= FEWEST
    sheet = []
    for subject, scores in zip(subjects, zip(*columns, strict=True), strict=True):
        reasons = _unlike(subject, scores, medians, common) if judged else []
        if subject.entry.cropped:
            reasons.append("the brain is larger than the picture: its rim is cut off")
        reasons += map(words_of, subject.entry.flags)
        sheet.append(replace(subject, scores=scores, reasons=tuple(reasons)))

    def attention(subject: Subject) -> float:
        return max(subject.strongest, THRESHOLD if subject.reasons else 0.0)

    return sorted(sheet, key=lambda s: (-attention(s), -s.strongest, s.entry.subject))


def _unlike(
    subject: Subject, scores: Sequence[float], medians: Sequence[float], common: Sequence[str]
) -> list[str]:
    """A sentence for each score beyond the threshold, the strongest first, and for each property
    that nearly all others share."""
    beyond = []
    for one, score, median in zip(MEASURES, scores, medians, strict=True):
        if abs(score) > THRESHOLD:
            side, hint = ("below", one.low) if score < 0 else ("above", one.high)
            unit = f" {one.unit}" if one.unit else ""
            text = (
                f"{one.label} {one.shown(one.of(subject))}{unit}: {abs(score):.1f} deviations "
                f"{side} the others' {one.shown(median)}{unit}"
            )
            beyond.append((-abs(score), f"{text} – {hint}" if hint else text))
    reasons = [text for _, text in sorted(beyond, key=lambda pair: pair[0])]
    words = (("voxels of", " mm"), ("volume of", " voxels"), ("stored as", ""))
    for own, rule, (label, unit) in zip(native_words(subject), common, words, strict=True):
        if rule and own and own != rule:
            reasons.append(f"{label} {own}{unit}, most others {rule}{unit}")
    return reasons


def native_words(subject: Subject) -> tuple[str, str, str]:
    """A volume as it is on disk: voxel size in mm ("1 × 1 × 1.25"), shape, orientation; or ""."""
    native = subject.entry.volume
    if not native:
        return "", "", ""
    sizes = " × ".join(f"{v:.3g}" for v in native.spacing_mm)
    return sizes, " × ".join(map(str, native.shape)), native.orientation


def _common(values: Sequence[str]) -> str:
    """The value that nearly all share, or ""."""
    counts = Counter(value for value in values if value)
    for value, number in counts.most_common(1):
        if number >= COMMON * counts.total():
            return value
    return ""
