"""The pieces of the report's page: everything that depends on the store, as HTML.

Whatever comes from a file is escaped here, and nowhere else is HTML made of it.
"""

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

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
from data_prep.store import SCALE, Store, SubjectEntry

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
class Page:
    """What the page is made of; subjects in the order in which they are shown."""

    store: Store
    subjects: Sequence[Subject]
    digest: str

    @property
    def image_set(self) -> bool:
        return self.store.image_set

    @property
    def noun(self) -> str:
        return "blocks" if self.image_set else "subjects"

    @property
    def pictures(self) -> str:
        return "images" if self.image_set else "slices"

    @property
    def measures(self) -> list[Measure]:
        """The columns of numbers: a photograph has no brain and no volume."""
        kept = ("slices", "mean", "sd", "saturated")
        return [one for one in MEASURES if not self.image_set or one.key in kept]


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


def _title(page: Page) -> Iterator[str]:
    yield escape(page.store.name)


def _digest(page: Page) -> Iterator[str]:
    yield page.digest


def _about(page: Page) -> Iterator[str]:
    """A line on what the pictures are, and the warning that people are simulated."""
    store = page.store
    channels, height, width = store.image_shape
    parts = [f"{height} × {width} pixels"]
    if page.image_set:
        parts.append(f"{channels} channels")
    else:
        parts += [f"of {store.spacing_mm:g} mm", store.plane, store.orientation]
    yield f"<p>{escape(', '.join(parts))}</p>"
    if store.simulated:
        yield (
            '<p class="notice">These people are <strong>simulated</strong>: deformed copies of one '
            "template, not real scans.</p>"
        )


def _cards(page: Page) -> Iterator[str]:
    """The counts at the top."""
    store = page.store
    for split in SPLITS:
        entries = store.subjects(split)
        count = sum(len(entry.slice_indices) for entry in entries)
        yield _card(split, len(entries), f"{count:,} {page.pictures}")
    if not page.image_set:
        look = sum(bool(subject.reasons) for subject in page.subjects)
        yield _card("to look at", look, "unlike the others, or noted", "look" if look else "")
    failed = len(store.quarantined)
    told = "not usable, with reasons" if failed else "every one was usable"
    yield _card("quarantined", failed, told, "bad" if failed else "")


def _card(label: str, number: int, note: str, kind: str = "") -> str:
    return (
        f'<div class="card {kind}"><dt>{escape(label)}</dt>'
        f"<dd><b>{number:,}</b> <span>{escape(note)}</span></dd></div>\n"
    )


def _quarantine(page: Page) -> Iterator[str]:
    """Who is not in the store, and why."""
    found = page.store.quarantined
    if not found:
        yield '<p class="quiet">Nothing was quarantined.</p>'
        return
    reasons = sorted(Counter(q.reason for q in found).items())
    yield "<p>" + escape(", ".join(f"{n:,} {reason}" for reason, n in reasons)) + "</p>\n"
    yield (
        '<div class="wide"><table><thead><tr><th scope="col">name</th><th scope="col">reason</th>'
        '<th scope="col">what was found</th><th scope="col">file</th></tr></thead><tbody>\n'
    )
    shown = found[: SHOWN_IMAGES if page.image_set else None]
    for one in shown:
        yield (
            f'<tr><th scope="row">{escape(one.subject)}</th><td><span class="reason">'
            f"{escape(one.reason)}</span></td><td>{escape(one.message)}</td>"
            f'<td class="path">{escape(one.source)}</td></tr>\n'
        )
    yield "</tbody></table></div>\n"
    if len(shown) < len(found):
        yield f"<p>and {len(found) - len(shown):,} more: see subjects.csv</p>\n"


def _spread(page: Page) -> Iterator[str]:
    """Per measure one line with a mark per subject; those to look at stand out."""
    if page.image_set or len(page.subjects) < 2:
        return
    yield '<section aria-labelledby="spread"><h2 id="spread">Spread</h2>\n<div class="spread">\n'
    for number, one in enumerate(MEASURES):
        values = [(s, v) for s in page.subjects if (v := one.compared(s)) is not None]
        if values:
            yield _axis(number, one, values)
    yield "</div></section>\n"


def _axis(number: int, one: Measure, values: list[tuple[Subject, float]]) -> str:
    low, high = min(v for _, v in values), max(v for _, v in values)
    width = (high - low) or 1.0
    quiet, marks = [], []
    for subject, value in values:
        x = f"{4 + 292 * (value - low) / width:.1f}"
        if abs(subject.scores[number]) > THRESHOLD:
            told = escape(f"{subject.entry.subject}: {one.shown(one.of(subject))}")
            marks.append(f'<path class="mark" d="M{x} 2v24"><title>{told}</title></path>')
        else:
            quiet.append(f"M{x} 8v12")
    ends = [one.shown(f(v for s, _ in values if (v := one.of(s)) is not None)) for f in (min, max)]
    label = f"{one.label}, {one.unit}" if one.unit else one.label
    return (
        f"<figure><figcaption>{escape(label)}</figcaption>"
        f'<svg viewBox="0 0 300 28" role="img" aria-label="{escape(label)}: from {ends[0]} to '
        f'{ends[1]}"><path class="quiet" d="{"".join(quiet)}"/>{"".join(marks)}</svg>'
        f'<div class="ends"><span>{ends[0]}</span><span>{ends[1]}</span></div></figure>\n'
    )


def _rule(page: Page) -> Iterator[str]:
    """What the order and the verdicts mean."""
    if page.image_set:
        yield "In the order of the set. Numbers are of a sample of each block's images."
    elif len(page.subjects) < FEWEST:
        yield (
            f"Most unlike the others first. With fewer than {FEWEST} subjects there is no middle "
            "to judge by: numbers are compared, and nobody is called an outlier."
        )
    else:
        yield (
            "Most unlike the others first. <i>z</i> is the largest distance of any of the numbers "
            "from their median, in robust standard deviations (1.4826 × median absolute "
            f"deviation); beyond {THRESHOLD:g} the reason is told. Such a subject need not be "
            "bad: look at it."
        )


def _median(page: Page) -> Iterator[str]:
    """The histogram that stands behind all others."""
    if page.subjects:
        median = np.median([s.quality.histogram for s in page.subjects], axis=0)
        yield f'<path id="median" d="{_outline(median)}"/>'


def _outline(shares: Sequence[float] | np.ndarray) -> str:
    """A histogram as a path, 96 x 40; shares above three times an even one are cut."""
    points = [
        f"{96 * (i + 0.5) / BINS:.4g} {40 - min(40.0, 40 * float(v) * BINS / 3):.3g}"
        for i, v in enumerate(shares)
    ]
    return f"M1.5 40L{'L'.join(points)}L94.5 40Z"


def _heads(page: Page) -> Iterator[str]:
    """The table's head; numbers sort from the largest, words from A."""
    columns = [("subject" if not page.image_set else "block", "text", "")]
    if not page.image_set:
        columns.append(("z", "number", "largest robust z-score"))
    yield _head(*columns[0], "")
    for label, kind, title in columns[1:]:
        yield _head(label, kind, title, ' aria-sort="descending"')
    yield f'<th scope="col">{page.pictures}</th><th scope="col">intensities</th>'
    for one in page.measures:
        label = page.pictures if one.key == "slices" else one.label
        yield _head(f"{label}, {one.unit}" if one.unit else label, "number", "", "")
    if not page.image_set:
        yield _head("on disk", "text", "orientation, voxel size, shape", "")


def _head(label: str, kind: str, title: str, more: str) -> str:
    hint = f' title="{escape(title)}"' if title else ""
    return (
        f'<th scope="col" data-kind="{kind}"{more}><button type="button"{hint}>{escape(label)}'
        "</button></th>"
    )


def _rows(page: Page) -> Iterator[str]:
    """A row per subject, its pictures read as it is written."""
    where = DIRECTIONS.get(page.store.plane, "in their order")
    for subject in page.subjects:
        yield _row(page, subject, where)


def _row(page: Page, subject: Subject, where: str) -> str:
    entry, quality = subject.entry, subject.quality
    name = escape(entry.subject)
    family = f"family {entry.family}" if entry.family != entry.subject else ""
    image = base64.b64encode(strip(page.store, entry)).decode()
    count = min(PICTURES, quality.slices)
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in subject.reasons)
    cells = [
        f'<tr data-split="{entry.split}"{" data-look" if subject.reasons else ""}>'
        f'<th scope="row"><span class="name">{name}</span><span class="split">{entry.split}</span>'
        f'<span class="family">{escape(family if not page.image_set else "")}</span></th>'
    ]
    if not page.image_set:
        cells.append(_cell(f"{subject.strongest:.1f}", subject.strongest, bool(subject.reasons)))
    cells.append(
        f'<td class="sheet"><div class="strip"><img loading="lazy" decoding="async" '
        f'width="{SIDE * count}" height="{SIDE}" alt="{count} {page.pictures} of {name}, {where}" '
        f'src="data:image/jpeg;base64,{image}"></div>'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</td>"
        '<td><svg class="hist" viewBox="0 0 96 40" role="img" aria-label="histogram">'
        f'<use href="#median"/><path d="{_outline(quality.histogram)}"/></svg></td>'
    )
    scores = dict(zip(MEASURES, subject.scores, strict=False))
    judged = len(page.subjects) >= FEWEST
    for one in page.measures:
        value = one.of(subject)
        cells.append(_cell(one.shown(value), value, judged and abs(scores.get(one, 0)) > THRESHOLD))
    if not page.image_set:
        if entry.volume:
            lines = (orientation(subject), f"{voxel(subject)} mm", shape(subject))
            native = "<br>".join(escape(str(line)) for line in lines)
        else:
            native = "–"
        cells.append(f'<td class="native">{native}</td>')
    return "".join(cells) + "</tr>\n"


def _cell(text: str, value: float | None, strange: bool = False) -> str:
    number = "" if value is None else f' data-v="{value:.6g}"'
    return f'<td class="number{" strange" if strange else ""}"{number}>{text}</td>'


def _noun(page: Page) -> Iterator[str]:
    yield page.noun


def _settings(page: Page) -> Iterator[str]:
    """The configuration, without what says where this machine keeps files."""
    for key, value in sorted(page.store.manifest["configuration"].items()):
        if key not in where_keys(PrepareConfig):
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v}" for k, v in value.items() if v != "")
            yield f"<dt>{escape(key)}</dt><dd>{escape(str(value)) or '–'}</dd>\n"
    yield f"<dt>digest of the store</dt><dd><code>{page.store.digest}</code></dd>\n"


# By their names in report.html.
PIECES: dict[str, Callable[[Page], Iterator[str]]] = {
    "title": _title,
    "digest": _digest,
    "about": _about,
    "cards": _cards,
    "quarantine": _quarantine,
    "spread": _spread,
    "rule": _rule,
    "median": _median,
    "heads": _heads,
    "rows": _rows,
    "noun": _noun,
    "settings": _settings,
}
