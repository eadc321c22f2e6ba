"""The quality report: one HTML page and a csv, made of the manifest and the shards alone.

    work/stores/<name>/report/index.html     to look at: everything is in the one file
    work/stores/<name>/report/subjects.csv   the same numbers, for programs
    work/stores/<name>/report/SHA256SUMS     of the two, as sha256sum writes and checks them

They depend on nothing but the store: no time, no path of this machine. The page carries a digest
of what it was made from, so that a report of an older store is known as such. It is written
piece by piece, and pictures are read as they are written: memory does not grow with the
number of subjects.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.common.files import atomic_file, csv_line, sha256_of
from data_prep.common.pages import data_uri, page_templates
from data_prep.config import PrepareConfig, where_keys
from data_prep.report.quality import (
    BINS,
    FEWEST,
    MEASURES,
    THRESHOLD,
    Measure,
    Subject,
    compared,
    measured,
    native_words,
)
from data_prep.store import SCALE, SPLITS, Store, SubjectEntry, canonical_digest
from data_prep.volume.plausibility import expectations

FOLDER, PAGE, TABLE, SUMS = "report", "index.html", "subjects.csv", "SHA256SUMS"

# Raised when the page or the table changes: reports of earlier versions are then made anew.
VERSION = 3

# A contact strip: this many pictures of at most this many pixels, in one file of 5 to 8 kB.
PICTURES, SIDE, JPEG_QUALITY = 7, 64, 60

# Of a set's quarantined images; the csv has them all.
SHOWN_IMAGES = 500

# A photograph has no brain and no volume.
OF_IMAGES = ("slices", "mean", "sd", "saturated")

# From the first slice to the last.
DIRECTIONS = {
    "axial": "from inferior to superior",
    "coronal": "from posterior to anterior",
    "sagittal": "from left to right",
}


def digest(store: Store) -> str:
    """SHA-256 of all that the report shows, and of its version."""
    shown = ("flags", "findings", "cropped")
    entries = [
        {key: getattr(entry, key) for key in shown}
        | {"volume": str(entry.volume), "slices": entry.slice_indices}
        for entry in store.entries
    ]
    quarantined = [[q.subject, q.source, q.reason, q.message] for q in store.quarantined]
    keys = ("image_shape", "spacing_mm", "orientation", "plane", "simulated", "name")
    about = [store.manifest[key] for key in keys]
    return canonical_digest([VERSION, store.digest, about, entries, quarantined])


def is_current(store: Store) -> bool:
    """True if the store's report is there, whole, and made of the store as it is now."""
    try:
        with (store.path / FOLDER / PAGE).open("rb") as stream:
            head = stream.read(2000)
    except OSError:
        return False
    return f'content="{digest(store)}"'.encode() in head and not damage(store.path)


def damage(folder: Path) -> list[Path]:
    """The report's files, in a store's folder, that are not as they were written."""
    place = folder / FOLDER
    try:
        noted = (place / SUMS).read_bytes().decode("ascii", "replace")
    except OSError:
        return [place / SUMS]
    # The list itself has one form only, so that no byte of it is free.
    if noted == _sums(place):
        return []
    lines = _sums(place).splitlines(keepends=True)
    return [place / line.split()[-1] for line in lines if line not in noted] or [place / SUMS]


def _sums(place: Path) -> str:
    """The report's files with their digests, as the list has them."""
    return "".join(f"{sha256_of(place / name)}  {name}\n" for name in (PAGE, TABLE))


def write_report(store: Store) -> None:
    """Write the csv, then the page, then their digests, each atomically.

    Raises:
        StoreError: a shard does not hold what the manifest says.
    """
    subjects = measured(store)
    if not store.image_set:  # blocks are mixtures of independent images
        subjects = compared(subjects)
    with atomic_file(store.path / FOLDER / TABLE) as stream:
        for row in _rows(store, subjects):
            stream.write(csv_line(row).encode())
    with atomic_file(store.path / FOLDER / PAGE) as stream:
        for piece in _html(store, subjects):
            # A path may hold bytes that are no text.
            stream.write(piece.encode("utf-8", "backslashreplace"))
    with atomic_file(store.path / FOLDER / SUMS) as stream:
        stream.write(_sums(store.path / FOLDER).encode())


def _rows(store: Store, subjects: list[Subject]) -> Iterator[list[Any]]:
    """The table: prepared subjects as on the page, numbers in full; then the quarantined."""
    keys, rows = [one.key for one in MEASURES], [row.name for row in expectations()]
    columns = ["status", "subject", "family", "split", "strongest", "notes", *keys]
    columns += [*(f"z_{key}" for key in keys), "low", "orientation", "shape", "spacing_mm"]
    columns += ["cropped", *rows]
    yield columns
    for subject in subjects:
        entry, volume = subject.entry, subject.entry.volume
        row = {
            "status": "prepared",
            "subject": entry.subject,
            "family": entry.family,
            "split": entry.split,
            "strongest": repr(subject.strongest),
            "notes": "; ".join(subject.reasons),
            "cropped": int(entry.cropped),
            **{one.key: _number(one.of(subject)) for one in MEASURES},
            **{f"z_{key}": repr(z) for key, z in zip(keys, subject.scores, strict=False)},
            **{name: _number(entry.findings.get(name)) for name in rows},
        }
        if volume:
            row |= {"low": repr(volume.low), "orientation": volume.orientation}
            row["shape"] = "x".join(map(str, volume.shape))
            row["spacing_mm"] = "x".join(map(repr, volume.spacing_mm))
        yield [row.get(column, "") for column in columns]
    for one in store.quarantined:
        notes = f"{one.reason}: {one.message}"
        row = {"status": "quarantined", "subject": one.subject, "notes": notes}
        yield [row.get(column, "") for column in columns]


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _html(store: Store, subjects: Sequence[Subject]) -> Iterator[str]:
    """The page, piece by piece; report.html says how it is laid out."""
    images = store.image_set
    measures = [one for one in MEASURES if not images or one.key in OF_IMAGES]
    members = Counter(entry.family for entry in store.entries)
    judged = len(subjects) >= FEWEST
    histograms = [subject.quality.histogram for subject in subjects]

    def family(entry: SubjectEntry) -> str:
        shared = not images and members[entry.family] > 1
        return entry.family.removeprefix("family-") if shared else ""

    def numbers(subject: Subject) -> Iterator[tuple[str, float | None, bool]]:
        """Per measure the text, the value, and whether it is an outlier."""
        scores = dict(zip(MEASURES, subject.scores, strict=False))
        for one in measures:
            value = one.of(subject)
            yield one.shown(value), value, judged and abs(scores.get(one, 0)) > THRESHOLD

    yield from (
        page_templates("data_prep.report")
        .get_template("report.html")
        .generate(
            store=store,
            subjects=subjects,
            digest=digest(store),
            noun="blocks" if images else "subjects",
            pictures="images" if images else "slices",
            direction=DIRECTIONS.get(store.plane, "in their order"),
            cards=_cards(store, subjects),
            reasons=Counter(one.reason for one in store.quarantined),
            quarantined=store.quarantined[: SHOWN_IMAGES if images else None],
            # One alone is like nobody.
            axes=[] if images or len(subjects) < 2 else list(_axes(subjects)),
            judged=judged,
            fewest=FEWEST,
            threshold=THRESHOLD,
            median=outline(np.median(histograms, axis=0)) if histograms else "",
            labels=[_labelled(one, pictures=images) for one in measures],
            family=family,
            numbers=numbers,
            native=native_words,
            outline=outline,
            strip=lambda entry: data_uri(strip(store, entry), "image/jpeg"),
            count=lambda entry: min(PICTURES, len(entry.slice_indices)),
            side=SIDE,
            expected=list(_expected(store)),
            settings=list(_settings(store)),
        )
    )


def _cards(store: Store, subjects: Sequence[Subject]) -> Iterator[tuple[str, int, str, str]]:
    """The counts at the top: label, number, note and the card's class."""
    for split in SPLITS:
        entries = store.subjects(split)
        count = sum(len(entry.slice_indices) for entry in entries)
        yield split, len(entries), f"{count:,} {'images' if store.image_set else 'slices'}", ""
    if not store.image_set:
        look = sum(bool(subject.reasons) for subject in subjects)
        yield "to look at", look, "unlike the others, or noted", "look" if look else ""
    failed = len(store.quarantined)
    note = "not usable, with reasons" if failed else "every one was usable"
    yield "quarantined", failed, note, "bad" if failed else ""


def _axes(subjects: Sequence[Subject]) -> Iterator[tuple[str, str, str, str, list[Any]]]:
    """Per measure a line with a mark per subject: label, both ends, a path of the quiet marks, and
    (x, text) of the outliers."""
    for number, one in enumerate(MEASURES):
        values = [(s, v) for s in subjects if (v := one.compared(s)) is not None]
        if not values:
            continue
        low, high = (end(v for _, v in values) for end in (min, max))
        quiet, marks = [], []
        for subject, value in values:
            x = f"{4 + 292 * (value - low) / ((high - low) or 1.0):.1f}"
            if abs(subject.scores[number]) > THRESHOLD:
                marks.append((x, f"{subject.entry.subject}: {one.shown(one.of(subject))}"))
            else:
                quiet.append(f"M{x} 8v12")
        shown = [v for subject, _ in values if (v := one.of(subject)) is not None]
        ends = one.shown(min(shown)), one.shown(max(shown))
        yield _labelled(one), *ends, "".join(quiet), marks


def _labelled(one: Measure, pictures: bool = False) -> str:
    label = "images" if pictures and one.key == "slices" else one.label
    return f"{label}, {one.unit}" if one.unit else label


def _expected(store: Store) -> Iterator[tuple[str, str, str, int, str]]:
    """The table of plausibility: measure, its range, that of the store, subjects beyond, source."""
    given = store.manifest["configuration"].get("plausibility", {})
    for row in expectations():
        values = [e.findings[row.name] for e in store.entries if row.name in e.findings]
        if values:
            low, high = given.get(row.name, row.default)
            label = f"{row.metadata['label']}, {row.metadata['unit']}"
            usual, seen = f"{low:,g} to {high:,g}", f"{min(values):,g} to {max(values):,g}"
            beyond = sum(not low <= value <= high for value in values)
            yield label, usual, seen, beyond, row.metadata["source"]


def _settings(store: Store) -> Iterator[tuple[str, str]]:
    """The configuration, without the keys that only say where files lie."""
    for key, value in sorted(store.manifest["configuration"].items()):
        if key not in where_keys(PrepareConfig):
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v}" for k, v in value.items() if v != "")
            yield key, str(value) or "–"


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
