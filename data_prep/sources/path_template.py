"""Subjects found by a path template: the HCP layout, BIDS, or any other with one image each.

Beside subjects FreeSurfer puts averages of many people, and its longitudinal stream (Reuter 2012)
makes a template BASE of a person's time points POINT, and images POINT.long.BASE; the folder of the
template lists its time points in the file base-tps.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import InputError
from data_prep.common.files import expanded
from data_prep.common.names import as_path, joined, printable, same
from data_prep.config import PrepareConfig
from data_prep.sources.families import read_families
from data_prep.sources.matching import Match, search
from data_prep.volume.verify import files_of

# Of what is left out, by name; a dry run shows all.
SHOWN = 20
WITHOUT = ("folder holds no image", "folders hold no image")
AVERAGES = ("average of many people is left out", "averages of many people are left out")
TEMPLATES = ("template of time points is left out", "templates of time points are left out")
NO_TABLE = (
    "no prepare.subjects_table: each subject counts as a family of its own, so relatives may fall "
    "into two splits"
)

# Folders that come with FreeSurfer or are linked into every folder of subjects: no persons.
AVERAGE = re.compile(r"fsaverage.*|cvs_avg35.*|[lr]h\.EC_average|V1_average")

# An image of its longitudinal stream, and names of a template that say nothing of whose it is.
LONG = re.compile(r"(?P<point>.+)\.long\.(?P<base>.+)", re.S)
GENERIC = {"base", "template"}


@dataclass(frozen=True)
class Subject:
    """One image to prepare: its subject, the family, and where image and mask lie under `root`.

    closed: why its folder cannot be entered; its image is not known then.
    """

    subject: str
    family: str
    root: Path
    source: str
    mask: str = ""
    closed: str = ""

    def assignment(self) -> dict[str, Any]:
        """The entry's family; its split is decided when all families are known."""
        return {"family": self.family, "split": ""}

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and times of the files: equal ones count as unchanged."""
        keys: dict[str, Any] = {"subject": self.subject}
        for kind, name, path in (
            ("source", self.source, self.source_path),
            ("mask", self.mask, self.mask_path),
        ):
            size, time = _status(path)
            keys |= {kind: name, f"{kind}_bytes": size, f"{kind}_mtime_ns": time}
        return keys

    @property
    def source_path(self) -> Path:
        """The image."""
        return self.root / as_path(self.source)

    @property
    def mask_path(self) -> Path | None:
        """The mask, if there should be one."""
        return self.root / as_path(self.mask) if self.mask else None


def _status(path: Path | None) -> tuple[int, int]:
    """Size in bytes and latest time in ns, of both files of a pair; -1 where one is not there."""
    try:
        status = [os.stat(file) for file in files_of(path)] if path else []
    except OSError:
        return -1, -1
    return sum(s.st_size for s in status), max((s.st_mtime_ns for s in status), default=0)


def discover(config: PrepareConfig) -> tuple[list[Subject], list[str]]:
    """Every subject whose image exists under `config.root`, sorted, and what the user should know.

    All sessions of a subject are one family, and so are the time points of FreeSurfer's
    longitudinal stream. Its templates, and averages of many people, are left out.

    Raises:
        InputError: root missing or without a match; a subject's mask is looked for later, so that
            one missing mask costs one subject. An error in the subjects table names its row.
    """
    if not config.root:
        raise InputError("prepare.root is not set: give the folder that holds the subjects")
    root = expanded(config.root, "prepare.root").absolute()  # workers may stand elsewhere
    if not root.is_dir():
        raise InputError(f"prepare.root: there is no folder {root}")
    matches, without = search(root, config.template)
    names = {match.subject for match in matches}
    points = _listed_points(root, config.template, names | set(without))
    averages = {name for name in names if AVERAGE.fullmatch(name)}
    bases = {long["base"] for name in names if (long := LONG.fullmatch(name))}
    bases |= {base for base, listed in points.items() if names & set(listed)}
    templates = names & bases
    shown = None if config.dry_run else SHOWN
    notes = [
        *_left_out(without, WITHOUT, shown),
        *_left_out(averages, AVERAGES, shown),
        *_left_out(templates, TEMPLATES, shown),
    ]
    matches = [match for match in matches if match.subject not in averages | templates]
    if not matches:
        raise InputError(
            f"prepare.root: nothing under {root} matches prepare.template '{config.template}'"
            + "".join(f"; {note}" for note in notes)
            + _nearby(root, config.template)
        )
    families, told = _families(root, config, {printable(m.subject) for m in matches}, points)
    subjects: dict[str, Subject] = {}
    for match in matches:
        subject = _subject(match, root, config, families)
        if subject.subject in subjects:
            raise InputError(
                f"prepare.template: {subjects[subject.subject].source} and {subject.source} would "
                f"both be called {subject.subject}"
            )
        subjects[subject.subject] = subject
    return [subjects[name] for name in sorted(subjects)], [*notes, *told]


def _listed_points(root: Path, template: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Time points of the templates among `names`, as FreeSurfer lists them."""
    start, _, rest = template.partition("{subject}")
    points = {}
    for name in names if rest.startswith("/mri/") else ():  # else it is not FreeSurfer's
        with suppress(OSError):
            text = (root / f"{start}{name}" / "base-tps").read_text("utf-8", "replace")
            points[name] = text.split()
    return points


def _nearby(root: Path, template: str) -> str:
    """Where the template would find images: a folder one level up or down."""
    with suppress(OSError):
        below = sorted(folder for folder in root.iterdir() if folder.is_dir())
        for folder in (root.parent, *below[:SHOWN]):
            if search(folder, template)[0]:
                return f"; did you mean --prepare.root {folder}?"
    return ""


def _left_out(names: Iterable[str], what: tuple[str, str], limit: int | None) -> list[str]:
    """A note with the names of what is left out, if anything is."""
    every = sorted(map(printable, names))
    more = f" and {len(every) - len(every[:limit])} more" if len(every) > len(every[:limit]) else ""
    words = what[len(every) > 1]
    return [f"{len(every)} {words}: {', '.join(every[:limit])}{more}"] if every else []


def _subject(
    match: Match, root: Path, config: PrepareConfig, families: Mapping[str, str]
) -> Subject:
    owner, session = printable(match.subject), printable(match.session)
    name = f"{owner}_{session}" if session else owner
    if match.folder:
        closed = f"{match.folder} cannot be entered: {match.why}"
        return Subject(name, families[owner], root, match.folder, closed=closed)
    source, mask = (
        template.replace("{subject}", match.subject).replace("{session}", match.session)
        for template in (config.template, config.mask_template)
    )
    return Subject(name, families[owner], root, source, mask)


def _families(
    root: Path, config: PrepareConfig, owners: Iterable[str], points: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], list[str]]:
    """The family of each subject: by the table, else its own; FreeSurfer's time points are one."""
    alike: dict[str, tuple[str, ...]] = {}
    for owner in sorted(owners):
        alike[owner] = ()
        if long := LONG.fullmatch(owner):
            generic = long["base"].lower() in GENERIC
            alike[owner] = (long["point"],) if generic else (long["base"], long["point"])
    for base, members in points.items():
        for member in members:
            if member in alike:
                alike[member] = (base, *alike[member])
    known: dict[str, str] = {}
    notes = [NO_TABLE]
    if config.subjects_table:
        known, notes = read_families(root, config, alike)

    def named(name: str) -> str:
        return known.get(same(name)) or name

    pairs = [(named(owner), named(other)) for owner, others in alike.items() for other in others]
    bases = [others[0] for others in alike.values() if others]
    united = joined(pairs, [family for family in known.values() if family] or bases)
    return {owner: united.get(named(owner), named(owner)) for owner in alike}, notes
