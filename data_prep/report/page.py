"""What the report's page shows of a store; report.html says how it is laid out."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from data_prep.common.pages import data_uri, page_templates
from data_prep.config import PrepareConfig, where_keys
from data_prep.report.quality import (
    BINS,
    FEWEST,
    MEASURES,
    THRESHOLD,
    Measure,
    Subject,
    orientation,
    shape,
    voxel,
)
from data_prep.split import SPLITS
from data_prep.store import SCALE, Quarantined, Store, SubjectEntry
from data_prep.volume.plausibility import expectations

# A contact strip: this many pictures of at most this many pixels, in one file of 5 to 8 kB.
PICTURES, SIDE, JPEG_QUALITY = 7, 64, 60

# Of a set's quarantined images; the csv has them all.
SHOWN_IMAGES = 500

# From the first slice to the last.
DIRECTIONS = {
    "axial": "from inferior to superior",
    "coronal": "from posterior to anterior",
    "sagittal": "from left to right",
}


@dataclass(frozen=True)
class Axis:
    """A measure's line in the spread: `quiet` a path of marks, `marks` (x, text) of outliers."""

    label: str
    low: str
    high: str
    quiet: str
    marks: list[tuple[str, str]]


@dataclass(frozen=True)
class Expected:
    """A row of the plausibility table, as the page shows it."""

    label: str
    range: str
    found: str
    beyond: int
    source: str


@dataclass(frozen=True)
class Page:
    """What the page is made of; subjects in the order in which they are shown."""

    store: Store
    subjects: Sequence[Subject]
    digest: str

    @property
    def image_set(self) -> bool:
        return self.store.image_set

    @property
    def judged(self) -> bool:
        """Whether there are enough subjects to call one of them an outlier."""
        return len(self.subjects) >= FEWEST

    @property
    def noun(self) -> str:
        return "blocks" if self.image_set else "subjects"

    @property
    def pictures(self) -> str:
        return "images" if self.image_set else "slices"

    @property
    def direction(self) -> str:
        """From the first picture of a strip to the last."""
        return DIRECTIONS.get(self.store.plane, "in their order")

    @property
    def about(self) -> str:
        """What the pictures are."""
        channels, height, width = self.store.image_shape
        parts = [f"{height} × {width} pixels"]
        if self.image_set:
            parts.append(f"{channels} channels")
        else:
            parts += [f"of {self.store.spacing_mm:g} mm", self.store.plane, self.store.orientation]
        return ", ".join(parts)

    @property
    def cards(self) -> Iterator[tuple[str, int, str, str]]:
        """The counts at the top: label, number, note and the card's class."""
        for split in SPLITS:
            entries = self.store.subjects(split)
            count = sum(len(entry.slice_indices) for entry in entries)
            yield split, len(entries), f"{count:,} {self.pictures}", ""
        if not self.image_set:
            look = sum(bool(subject.reasons) for subject in self.subjects)
            yield "to look at", look, "unlike the others, or noted", "look" if look else ""
        failed = len(self.store.quarantined)
        note = "not usable, with reasons" if failed else "every one was usable"
        yield "quarantined", failed, note, "bad" if failed else ""

    @property
    def reasons(self) -> str:
        """How many were quarantined for which reason."""
        counts = Counter(one.reason for one in self.store.quarantined)
        return ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.items()))

    @property
    def shown_quarantined(self) -> Sequence[Quarantined]:
        return self.store.quarantined[: SHOWN_IMAGES if self.image_set else None]

    @property
    def spread(self) -> bool:
        """Whether subjects are compared by number: one alone is like nobody."""
        return not self.image_set and len(self.subjects) > 1

    @cached_property
    def _members(self) -> Counter[str]:
        """Subjects of the store by family."""
        return Counter(entry.family for entry in self.store.entries)

    def family(self, entry: SubjectEntry) -> str:
        """Name of a family with several subjects here, without a "family-" in front; else ""."""
        shared = not self.image_set and self._members[entry.family] > 1
        return entry.family.removeprefix("family-") if shared else ""

    @property
    def axes(self) -> Iterator[Axis]:
        """Per measure one line with a mark per subject; outliers stand out."""
        for number, one in enumerate(MEASURES):
            values = [(s, v) for s in self.subjects if (v := one.compared(s)) is not None]
            if values:
                yield _axis(number, one, values)

    @property
    def median(self) -> str:
        """The histogram that stands behind all others, as a path."""
        histograms = [subject.quality.histogram for subject in self.subjects]
        return outline(np.median(histograms, axis=0)) if histograms else ""

    @property
    def measures(self) -> list[Measure]:
        """The columns of numbers: a photograph has no brain and no volume."""
        kept = ("slices", "mean", "sd", "saturated")
        return [one for one in MEASURES if not self.image_set or one.key in kept]

    @property
    def measure_labels(self) -> Iterator[str]:
        for one in self.measures:
            yield _labelled(one, self.pictures if one.key == "slices" else one.label)

    def count(self, subject: Subject) -> int:
        """How many pictures are in a subject's strip."""
        return min(PICTURES, subject.quality.slices)

    def strip(self, subject: Subject) -> str:
        """The contact strip, read as it is shown: a JPEG file as the address of an image."""
        return data_uri(strip(self.store, subject.entry), "image/jpeg")

    def numbers(self, subject: Subject) -> Iterator[tuple[str, float | None, bool]]:
        """Per measure the text, the value, and whether it is an outlier."""
        scores = dict(zip(MEASURES, subject.scores, strict=False))
        for one in self.measures:
            value = one.of(subject)
            outlier = self.judged and abs(scores.get(one, 0)) > THRESHOLD
            yield one.shown(value), value, outlier

    def native(self, subject: Subject) -> tuple[str, ...]:
        """Lines on the volume as it is on disk."""
        if not subject.entry.volume:
            return ("–",)
        return str(orientation(subject)), f"{voxel(subject)} mm", str(shape(subject))

    @property
    def expected(self) -> Iterator[Expected]:
        """What was expected of every brain, and what was found."""
        given = self.store.manifest["configuration"].get("plausibility", {})
        for row in expectations():
            values = [
                s.entry.findings[row.name] for s in self.subjects if row.name in s.entry.findings
            ]
            if values:
                low, high = given.get(row.name, row.default)
                yield Expected(
                    f"{row.metadata['label']}, {row.metadata['unit']}",
                    f"{low:,g} to {high:,g}",
                    f"{min(values):,g} to {max(values):,g}",
                    sum(not low <= value <= high for value in values),
                    row.metadata["source"],
                )

    @property
    def settings(self) -> Iterator[tuple[str, str]]:
        """The configuration, without the keys that only say where files lie."""
        for key, value in sorted(self.store.manifest["configuration"].items()):
            if key not in where_keys(PrepareConfig):
                if isinstance(value, dict):
                    value = ", ".join(f"{k} {v}" for k, v in value.items() if v != "")
                yield key, str(value) or "–"


def render(page: Page) -> Iterator[str]:
    """The page as HTML, piece by piece: memory does not grow with the number of subjects."""
    yield from (
        page_templates("data_prep.report")
        .get_template("report.html")
        .generate(
            page=page,
            store=page.store,
            outline=outline,
            side=SIDE,
            fewest=FEWEST,
            threshold=THRESHOLD,
        )
    )


def _axis(number: int, one: Measure, values: list[tuple[Subject, float]]) -> Axis:
    low, high = min(v for _, v in values), max(v for _, v in values)
    width = (high - low) or 1.0
    quiet, marks = [], []
    for subject, value in values:
        x = f"{4 + 292 * (value - low) / width:.1f}"
        if abs(subject.scores[number]) > THRESHOLD:
            marks.append((x, f"{subject.entry.subject}: {one.shown(one.of(subject))}"))
        else:
            quiet.append(f"M{x} 8v12")
    shown = [v for subject, _ in values if (v := one.of(subject)) is not None]
    ends = one.shown(min(shown)), one.shown(max(shown))
    return Axis(_labelled(one, one.label), *ends, "".join(quiet), marks)


def _labelled(one: Measure, label: str) -> str:
    return f"{label}, {one.unit}" if one.unit else label


def outline(shares: Sequence[float] | np.ndarray) -> str:
    """A histogram as an SVG path, 96 x 40; shares above three times an even one are cut."""
    points = [
        f"{96 * (i + 0.5) / BINS:.4g} {40 - min(40.0, 40 * float(v) * BINS / 3):.3g}"
        for i, v in enumerate(shares)
    ]
    return f"M1.5 40L{'L'.join(points)}L94.5 40Z"


def strip(store: Store, entry: SubjectEntry) -> bytes:
    """PICTURES slices of a subject side by side, evenly through its shard, as a JPEG file."""
    pixels = store.slices(entry)
    places = ((np.arange(PICTURES) + 0.5) * len(pixels) / PICTURES).astype(int)
    pictures = [_picture(pixels[place]) for place in sorted({*places.tolist()})]
    sheet = Image.new(pictures[0].mode, (SIDE * len(pictures), SIDE))
    for number, picture in enumerate(pictures):
        room = (SIDE - picture.width) // 2, (SIDE - picture.height) // 2
        sheet.paste(picture, (SIDE * number + room[0], room[1]))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return stream.getvalue()


def _picture(pixels: np.ndarray) -> Image.Image:
    """uint16 (C, H, W) as a picture of at most SIDE x SIDE; small ones by whole factors larger."""
    values = np.round(pixels.astype(np.float32) * (255 / SCALE)).astype(np.uint8)
    image = Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))
    factor = SIDE // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return image
