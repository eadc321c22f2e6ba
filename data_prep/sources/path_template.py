"""Subjects found by a path template: the HCP layout, BIDS, or any other with one image each."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import InputError
from data_prep.common.files import expanded
from data_prep.common.names import as_path, joined, printable, same
from data_prep.config import PrepareConfig
from data_prep.sources import freesurfer
from data_prep.sources.families import Families, read_families
from data_prep.sources.matching import Match, search
from data_prep.volume.verify import files_of

# Of what is left out, by name; a dry run shows all.
SHOWN = 20
WITHOUT = ("folder holds no image", "folders hold no image")
AVERAGES = ("average of many people is left out", "averages of many people are left out")
TEMPLATES = ("template of time points is left out", "templates of time points are left out")
NO_TABLE = (
    "no prepare.subjects_table: each subject counts as a family of its own, so relatives may fall "
    "into two splits",
)


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
        source, mask = _status(self.source_path), _status(self.mask_path)
        return {
            "subject": self.subject,
            "source": self.source,
            "source_bytes": source[0],
            "source_mtime_ns": source[1],
            "mask": self.mask,
            "mask_bytes": mask[0],
            "mask_mtime_ns": mask[1],
        }

    @property
    def source_path(self) -> Path:
        return self.root / as_path(self.source)

    @property
    def mask_path(self) -> Path | None:
        return self.root / as_path(self.mask) if self.mask else None


def _status(path: Path | None) -> tuple[int, int]:
    """Size in bytes and latest time in ns, of both files of a pair; -1 where one is not there."""
    try:
        found = [os.stat(file) for file in files_of(path)] if path else []
    except OSError:
        return -1, -1
    sizes, times = ([s.st_size for s in found], [s.st_mtime_ns for s in found])
    return sum(sizes), max(times, default=0)


@dataclass(frozen=True)
class Discovered:
    """What there is to prepare, sorted by subject, and what the user should know beside it."""

    subjects: Sequence[Subject]
    notes: Sequence[str] = ()


def discover(config: PrepareConfig) -> Discovered:
    """Every subject whose image exists under `config.root`.

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
    found = search(root, config.template)
    names = {match.subject for match in found.matches}
    points = freesurfer.listed_points(root, config.template, names | set(found.without))
    averages = sorted(filter(freesurfer.is_average, names))
    templates = sorted(freesurfer.templates(names, points))
    notes = [
        *_left_out(found.without, WITHOUT, config.dry_run),
        *_left_out(averages, AVERAGES, config.dry_run),
        *_left_out(templates, TEMPLATES, config.dry_run),
    ]
    matches = [m for m in found.matches if m.subject not in {*averages, *templates}]
    if not matches:
        raise InputError(
            f"prepare.root: nothing under {root} matches prepare.template '{config.template}'"
            + "".join(f"; {note}" for note in notes)
            + _nearby(root, config.template)
        )
    families = _families(root, config, sorted({printable(m.subject) for m in matches}), points)
    subjects: dict[str, Subject] = {}
    for match in matches:
        subject = _subject(match, root, config, families.of)
        if subject.subject in subjects:
            raise InputError(
                f"prepare.template: {subjects[subject.subject].source} and {subject.source} would "
                f"both be called {subject.subject}"
            )
        subjects[subject.subject] = subject
    return Discovered([subjects[name] for name in sorted(subjects)], [*notes, *families.notes])


def _nearby(root: Path, template: str) -> str:
    """Where the template would find images: a folder one level up or down."""
    with suppress(OSError):
        below = sorted(folder for folder in root.iterdir() if folder.is_dir())
        for folder in (root.parent, *below[:SHOWN]):
            if search(folder, template).matches:
                return f"; did you mean --prepare.root {folder}?"
    return ""


def _left_out(names: Sequence[str], what: tuple[str, str], all_shown: bool) -> list[str]:
    """A note with the names of what is left out, if anything is."""
    shown = [printable(name) for name in (names if all_shown else names[:SHOWN])]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    one_or_many = what[len(names) > 1]
    return [f"{len(names)} {one_or_many}: {', '.join(shown)}{more}"] if names else []


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
    root: Path,
    config: PrepareConfig,
    owners: Sequence[str],
    points: Mapping[str, tuple[str, ...]],
) -> Families:
    """The family of each subject: by the table, else its own; FreeSurfer's time points are one."""
    alike = {owner: freesurfer.origins(owner) for owner in owners}
    for base, members in points.items():
        for member in members:
            if member in alike:
                alike[member] = (base, *alike[member])
    known = read_families(root, config, alike) if config.subjects_table else Families({}, NO_TABLE)

    def named(name: str) -> str:
        return known.of.get(same(name)) or name

    pairs = [(named(owner), named(one)) for owner, others in alike.items() for one in others]
    bases = [others[0] for others in alike.values() if others]
    one = joined(pairs, [family for family in known.of.values() if family] or bases)
    return Families({o: one.get(named(o), named(o)) for o in owners}, known.notes)
