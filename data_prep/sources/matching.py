"""What a path template names under a folder; nothing is left out for its name's sake."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_prep.common.errors import InputError
from data_prep.common.names import as_text

KEY = re.compile(r"(\{subject\}|\{session\})")

# What a path that leads to nothing answers; all else is a folder that cannot be looked into.
NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True)
class Match:
    """An image, or a folder that cannot be looked into. Names are as on disk (names.as_text).

    session: "" without one. folder: the one that is closed, relative to the root, and why: the
    system's words; "" for an image.
    """

    subject: str
    session: str = ""
    folder: str = ""
    why: str = ""


def search(root: Path, template: str) -> tuple[list[Match], list[str]]:
    """All that a template names, sorted, and subjects' folders that hold no image, by path.

    Each {subject} must be the same, and each {session}. They stand for one or more characters of
    a file or folder name, whatever these are; as in a shell, names that begin with a dot are
    hidden. Folders and links that lead nowhere are matches too: they are reported, not skipped.

    Raises:
        InputError: the folder of all subjects cannot be looked into, or a name can be read in two
            ways.
    """
    parts = PurePosixPath(template).parts
    walk = _Walk(root, parts)
    greedy, lazy = (re.compile(_expression("/".join(parts), how), re.S) for how in ("", "?"))
    matches, owners = set(), set()
    for path in map(as_text, walk.paths(root, 0)):
        match = greedy.fullmatch(path)
        if not match:
            continue
        groups, other = match.groupdict(), lazy.fullmatch(path)
        if "_ses-" in groups["subject"] or other is None or other.groupdict() != groups:
            raise InputError(
                f"prepare.template: where does the session begin in {path}? Sessions "
                "of one subject would count as several: write {session} where the session is, "
                "with a folder or ses- before it"
            )
        matches.add(Match(groups["subject"], groups.get("session", "")))
        owners.add(walk.owner(path))
    for folder, why in walk.closed:
        depth = 0 if folder == "." else len(folder.split("/"))
        match = re.fullmatch(_expression("/".join(parts[:depth])), folder, re.S)
        groups = match.groupdict() if match else {}
        if "subject" not in groups:
            raise InputError(
                f"prepare.root: its folder {folder} cannot be entered ({why}): change its "
                "permissions, or correct prepare.root or prepare.template"
            )
        matches.add(Match(groups["subject"], groups.get("session", ""), folder, why))
        owners.add(walk.owner(folder))
    order = sorted(matches, key=lambda one: (one.subject, one.session, one.folder))
    return order, sorted({as_text(owner) for owner in walk.owners} - owners)


def _expression(template: str, how: str = "") -> str:
    """A regular expression for a template; how: "?" prefers the shortest names."""
    expression, seen = "", set()
    for piece in KEY.split(template):
        group = piece[1:-1]
        if not KEY.fullmatch(piece):
            expression += re.escape(piece)
        else:
            expression += f"(?P={group})" if group in seen else f"(?P<{group}>[^/]+{how})"
            seen.add(group)
    return expression


class _Walk:
    """Follows a template part by part and notes what it cannot look into.

    closed: such folders, and why. owners: folders at the level of {subject}. All are paths
    relative to the root.
    """

    def __init__(self, root: Path, parts: tuple[str, ...]) -> None:
        self.root, self.parts = root, parts
        self.level = next(n for n, part in enumerate(parts) if "{subject}" in part)
        self.closed: list[tuple[str, str]] = []
        self.owners: list[str] = []

    def owner(self, path: str) -> str:
        """The part of a path that ends at the level of {subject}."""
        return "/".join(path.split("/")[: self.level + 1])

    def paths(self, folder: Path, depth: int) -> Iterator[str]:
        """Paths that the parts from `depth` on lead to, below a folder."""
        try:
            for name in self._names(folder, self.parts[depth]):
                path = folder / name
                relative = path.relative_to(self.root).as_posix()
                if depth == len(self.parts) - 1:
                    yield relative
                elif not stat.S_ISREG(path.lstat().st_mode):
                    if depth == self.level:
                        self.owners.append(relative)
                    yield from self.paths(path, depth + 1)
        except OSError as error:
            if error.errno not in NOWHERE:
                words = error.strerror or str(error)
                self.closed.append((as_text(folder.relative_to(self.root).as_posix()), words))

    def _names(self, folder: Path, part: str) -> list[str]:
        """The names in a folder that a part of the template stands for."""
        if not KEY.search(part):
            try:
                (folder / part).lstat()
            except FileNotFoundError:
                with os.scandir(folder):  # raises OSError where the folder may hide it
                    return []
            return [part]
        pattern = re.compile(_expression(part), re.S)
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        shown = [name for name in names if part[0] == "." or name[0] != "."]
        return sorted(name for name in shown if pattern.fullmatch(name))
