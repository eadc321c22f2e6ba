"""Subjects found by a path template: the HCP layout, BIDS, or any other with one image each."""

import csv
import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.config import PLAIN_NAME, PrepareConfig
from data_prep.errors import InputError
from data_prep.split import split_of
from data_prep.volume.pairs import files_of


@dataclass(frozen=True)
class Subject:
    """One image to prepare: its subject, the family, and where image and mask lie under `root`."""

    subject: str
    family: str
    root: Path
    source: str
    mask: str = ""

    def assignment(self, config: PrepareConfig) -> dict[str, Any]:
        """The entry's keys that can change without rewriting a pixel: family and split."""
        return {"family": self.family, "split": split_of(self.family, config.split)}

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
        return self.root / self.source

    @property
    def mask_path(self) -> Path | None:
        return self.root / self.mask if self.mask else None


def _status(path: Path | None) -> tuple[int, int]:
    """Size in bytes and latest time in ns, of both files of a pair; -1 where one is not there."""
    try:
        found = [os.stat(file) for file in files_of(path)] if path else []
    except OSError:
        return -1, -1
    sizes, times = ([s.st_size for s in found], [s.st_mtime_ns for s in found])
    return sum(sizes), max(times, default=0)


def discover(config: PrepareConfig) -> list[Subject]:
    """Every subject whose image exists under `config.root`, sorted by identifier.

    Raises:
        InputError: root missing or without a match; a subject's mask is looked for later, so that
            one missing mask costs one subject. An error in the subjects table names its row.
    """
    if not config.root:
        raise InputError("prepare.root is not set: give the folder that holds the subjects")
    try:
        root = Path(config.root).expanduser().absolute()  # workers may stand elsewhere
    except RuntimeError as error:
        raise InputError(f"prepare.root: {config.root}: {error}") from None
    if not root.is_dir():
        raise InputError(f"prepare.root: there is no folder {root}")
    names = matching_subjects(root, config.template)
    if not names:
        raise InputError(
            f"prepare.root: nothing under {root} matches prepare.template '{config.template}'"
        )
    subjects = sorted({subject for subject, _ in names})
    families = read_families(root, config, subjects) if config.subjects_table else {}
    found: dict[str, Subject] = {}
    for owner, session in names:
        name = f"{owner}_{session}" if session else owner
        # All sessions of a subject are one family, so that they are in one split.
        subject = Subject(
            name,
            families.get(owner) or owner,
            root,
            *(_filled(t, owner, session) for t in (config.template, config.mask_template)),
        )
        if name in found:
            raise InputError(
                f"prepare.template: {found[name].source} and {subject.source} would both be "
                f"called {name}"
            )
        found[name] = subject
    return [found[name] for name in sorted(found)]


def _filled(template: str, subject: str, session: str) -> str:
    return template.replace("{subject}", subject).replace("{session}", session)


def matching_subjects(root: Path, template: str) -> list[tuple[str, str]]:
    """(subject, session), sorted, for which `template` names something; session "" without one.

    Each {subject} must be the same, and each {session}. Folders and links that lead nowhere are
    listed too: they are reported, not skipped.
    """
    pieces = re.split(r"(\{subject\}|\{session\})", template)
    keys = ("{subject}", "{session}")
    pattern = "".join("*" if piece in keys else glob.escape(piece) for piece in pieces)
    expression, seen = "", set()
    for piece in pieces:
        if piece not in keys:
            expression += re.escape(piece)
            continue
        group = piece[1:-1]
        expression += f"(?P={group})" if group in seen else f"(?P<{group}>{PLAIN_NAME.pattern})"
        seen.add(group)
    lazy = expression.replace(PLAIN_NAME.pattern, PLAIN_NAME.pattern + "?")
    found = set()
    for path in glob.iglob(pattern, root_dir=root):
        match = re.fullmatch(expression, path.replace(os.sep, "/"))
        if match:
            groups = match.groupdict()
            found.add((groups["subject"], groups.get("session", "")))
            other = re.fullmatch(lazy, path.replace(os.sep, "/"))
            if "_ses-" in groups["subject"] or other is None or other.groupdict() != groups:
                raise InputError(
                    f"prepare.template: where does the session begin in {path}? Sessions "
                    "of one subject would count as several: write {session} where the session is, "
                    "with a folder or ses- before it"
                )
    return sorted(found)


def read_families(root: Path, config: PrepareConfig, names: list[str]) -> dict[str, str]:
    """Family per subject from a csv with the columns Subject and Family_ID; blank: not known.

    A subject that is not among `names` is an error, or skipped where
    prepare.subjects_table_extra says so, as a study's table may list more subjects than have
    images; a table with none of them is an error in any case.

    Raises:
        InputError: no such table, a column missing, a row without, with a repeated or with an
            unknown subject, or one of `names` missing in the table.
    """
    table, with_image = config.subjects_table, set(names)
    unknown = ""
    path = root / table
    families: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if "Subject" not in (reader.fieldnames or []):
                raise InputError(f"prepare.subjects_table: {path} has no column Subject")
            if "Family_ID" not in (reader.fieldnames or []):
                raise InputError(
                    f"prepare.subjects_table: {path} has no column Family_ID; leave the table out "
                    "where families are not known"
                )
            for row in reader:
                place = f"prepare.subjects_table: {path}, row {reader.line_num}"
                name = (row["Subject"] or "").strip()
                if not name:
                    raise InputError(f"{place} has no Subject")
                if name in families:
                    raise InputError(f"{place} names subject {name} a second time")
                families[name] = (row["Family_ID"] or "").strip()
                if name not in with_image and not unknown:
                    unknown = f"{place} names subject {name}, which has no image"
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"prepare.subjects_table: {path} cannot be read: {error}") from None
    if not families.keys() & with_image:
        raise InputError(
            f"prepare.subjects_table: {path} names none of the {len(names)} subjects found, "
            f"the first of which is {names[0]}"
        )
    if unknown and config.subjects_table_extra == "refuse":
        raise InputError(
            f"{unknown}: remove the row, correct prepare.template, or set "
            "prepare.subjects_table_extra to ignore"
        )
    absent = [name for name in names if name not in families]
    if absent:
        raise InputError(
            f"prepare.subjects_table: {path} has no row for {len(absent)} of the subjects found, "
            f"the first of which is {absent[0]}: add them, with a blank Family_ID where the family "
            "is not known, as siblings could end up in different splits otherwise"
        )
    return families
