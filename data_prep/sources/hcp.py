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


@dataclass(frozen=True)
class Subject:
    """One image to prepare: whose it is, the family, and where image and mask lie under `root`."""

    subject: str
    family: str
    root: Path
    source: str
    mask: str = ""

    def placed(self, config: PrepareConfig) -> dict[str, Any]:
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
    try:
        found = os.stat(path) if path else None
    except OSError:
        return -1, -1
    return (found.st_size, found.st_mtime_ns) if found else (0, 0)


def discover(config: PrepareConfig) -> list[Subject]:
    """Everybody whose image exists under `config.root`, sorted by identifier.

    Raises:
        InputError: root missing or without a match; a subject's mask is looked for later, so that
            one missing mask costs one subject. A bad subjects table is told with its row.
    """
    if not config.root:
        raise InputError("prepare.root is not set: give the folder that holds the subjects")
    root = Path(config.root).expanduser().absolute()  # workers may stand elsewhere
    if not root.is_dir():
        raise InputError(f"prepare.root: there is no folder {root}")
    names = matching_subjects(root, config.template)
    if not names:
        raise InputError(
            f"prepare.root: nothing under {root} matches prepare.template '{config.template}'"
        )
    families = read_families(root, config.subjects_table, names) if config.subjects_table else {}
    return [
        Subject(
            name,
            families.get(name) or name,
            root,
            config.template.replace("{subject}", name),
            config.mask_template.replace("{subject}", name),
        )
        for name in names
    ]


def matching_subjects(root: Path, template: str) -> list[str]:
    """Identifiers, sorted, for which `template` names a file; each {subject} must be the same."""
    pieces = template.split("{subject}")
    pattern = "*".join(glob.escape(piece) for piece in pieces)
    first, *rest = (re.escape(piece) for piece in pieces)
    expression = first + f"(?P<subject>{PLAIN_NAME.pattern})" + "(?P=subject)".join(rest)
    found = set()
    for path in glob.iglob(pattern, root_dir=root):
        match = re.fullmatch(expression, path.replace(os.sep, "/"))
        if match:
            found.add(match["subject"])
    return sorted(found)


def read_families(root: Path, table: str, names: list[str]) -> dict[str, str]:
    """Family per subject from a csv with the columns Subject and, if present, Family_ID.

    A study's table lists more people than one has images of, so rows without an image are passed
    over; a table that knows nobody here is a mistake. A blank family means: not known.

    Raises:
        InputError: no such table, no Subject column, a row without or with a repeated subject,
            or none of `names` in it.
    """
    path = root / table
    families: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if "Subject" not in (reader.fieldnames or []):
                raise InputError(f"prepare.subjects_table: {path} has no column Subject")
            for row in reader:
                place = f"prepare.subjects_table: {path}, row {reader.line_num}"
                name = (row["Subject"] or "").strip()
                if not name:
                    raise InputError(f"{place} has no Subject")
                if name in families:
                    raise InputError(f"{place} names subject {name} a second time")
                families[name] = (row.get("Family_ID") or "").strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"prepare.subjects_table: {path} cannot be read: {error}") from None
    if not families.keys() & set(names):
        raise InputError(
            f"prepare.subjects_table: {path} names none of the {len(names)} subjects found, "
            f"the first of which is {names[0]}"
        )
    return families
