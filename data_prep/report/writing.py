"""The quality report: one HTML page and a csv, made of the manifest and the shards alone.

    work/stores/<name>/report/index.html     to look at: everything is in the one file
    work/stores/<name>/report/subjects.csv   the same numbers, for programs
    work/stores/<name>/report/SHA256SUMS     of the two, as sha256sum writes and checks them

They depend on nothing but the store: no time, no path of this machine. The page carries a digest
of what it was made from, so that a report of an older store is known as such. The page is written
piece by piece, and pictures are read as they are written: memory does not grow with the
number of subjects.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.common.files import atomic_file, csv_line
from data_prep.report.page import Page, render
from data_prep.report.quality import MEASURES, Subject, compared, measured, sample_of_set
from data_prep.store import Store, canonical_digest
from data_prep.volume.plausibility import expectations

FOLDER, PAGE, TABLE, SUMS = "report", "index.html", "subjects.csv", "SHA256SUMS"

# Raised when the page or the table changes: reports of earlier versions are then made anew.
VERSION = 3

COLUMNS = (
    "status", "subject", "family", "split", "strongest", "notes",
    *(one.key for one in MEASURES),
    *(f"z_{one.key}" for one in MEASURES),
    "low", "orientation", "shape", "spacing_mm", "cropped",
    *(row.name for row in expectations()),
)  # fmt: skip


def digest(store: Store) -> str:
    """SHA-256 of all that the report shows, and of its version."""
    entries = [
        {
            "volume": str(entry.volume),
            "flags": list(entry.flags),
            "findings": entry.findings,
            "cropped": entry.cropped,
            "slices": entry.slice_indices,
        }
        for entry in store.entries
    ]
    quarantined = [[q.subject, q.source, q.reason, q.message] for q in store.quarantined]
    keys = ("image_shape", "spacing_mm", "orientation", "plane", "simulated", "name")
    about = [store.manifest[key] for key in keys]
    return canonical_digest([VERSION, store.digest, about, entries, quarantined])


def is_current(store: Store) -> bool:
    """Whether the store's report is there and was made of the store as it is now."""
    folder = store.path / FOLDER
    try:
        with (folder / PAGE).open("rb") as stream:
            head = stream.read(2000)
    except OSError:
        return False
    return f'content="{digest(store)}"'.encode() in head and not damage(store.path)


def damage(folder: Path) -> list[Path]:
    """Which of the report's files, in a store's folder, are not as they were written."""
    place = folder / FOLDER
    try:
        noted = (place / SUMS).read_bytes()
    except OSError:
        return [place / SUMS]
    sums = {name: _sum(place / name) for name in (PAGE, TABLE)}
    # The list itself has one form only, so that no byte of it is free.
    if noted == b"".join(line or b"missing" for line in sums.values()):
        return []
    return [place / n for n, line in sums.items() if not line or line not in noted] or [
        place / SUMS
    ]


def _sum(path: Path) -> bytes | None:
    """A file's line in the list of digests; None where it cannot be read."""
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
    return f"{found}  {path.name}\n".encode()


def remove(folder: Path) -> None:
    """Take the report in a store's folder away, if there is one."""
    for name in (SUMS, PAGE, TABLE):
        (folder / FOLDER / name).unlink(missing_ok=True)


def write_report(store: Store) -> None:
    """Write the csv, then the page, then their digests, each atomically.

    Raises:
        StoreError: a shard does not hold what the manifest says.
    """
    subjects = sample_of_set(store) if store.image_set else compared(measured(store))
    with atomic_file(store.path / FOLDER / TABLE) as stream:
        for row in _rows(store, subjects):
            stream.write(csv_line(row).encode())
    with atomic_file(store.path / FOLDER / PAGE) as stream:
        for piece in render(Page(store, subjects, digest(store))):
            # A path may hold bytes that are no text.
            stream.write(piece.encode("utf-8", "backslashreplace"))
    lines = [_sum(store.path / FOLDER / name) or b"" for name in (PAGE, TABLE)]
    with atomic_file(store.path / FOLDER / SUMS) as stream:
        stream.write(b"".join(lines))


def _rows(store: Store, subjects: list[Subject]) -> Iterator[list[Any]]:
    """The table: prepared subjects as on the page, numbers in full; then the quarantined."""
    yield list(COLUMNS)
    for subject in subjects:
        entry, native = subject.entry, subject.entry.volume
        yield [
            "prepared", entry.subject, entry.family, entry.split, repr(subject.strongest),
            "; ".join(subject.reasons),
            *(_number(one.of(subject)) for one in MEASURES),
            *(map(repr, subject.scores) if subject.scores else [""] * len(MEASURES)),
            *(
                (
                    repr(native.low), native.orientation, "x".join(map(str, native.shape)),
                    "x".join(map(repr, native.spacing_mm)),
                )
                if native
                else [""] * 4
            ),
            int(entry.cropped),
            *(_number(entry.findings.get(row.name)) for row in expectations()),
        ]  # fmt: skip
    for one in store.quarantined:
        rest = [""] * (len(COLUMNS) - 6)
        yield ["quarantined", one.subject, "", "", "", f"{one.reason}: {one.message}", *rest]


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)
