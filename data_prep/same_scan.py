"""One scan under two names: its subjects are one family, so that no split knows another's scan.

A scan counts as the same where its file is (SHA-256 of the source), or where its slices are: a file
that was compressed again, or whose header alone differs, gives the same pixels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from data_prep.common.names import joined
from data_prep.config import SplitConfig
from data_prep.entries import SubjectEntry
from data_prep.flags import SAME_SCAN
from data_prep.sources.source import Outcome
from data_prep.split import split_of


def copies(entries: Iterable[SubjectEntry]) -> list[list[SubjectEntry]]:
    """Entries of one scan under several names, sorted by subject."""
    entries = sorted(entries, key=lambda entry: entry.subject)
    first: dict[str, str] = {}
    pairs = [
        (entry.subject, first.setdefault(digest, entry.subject))
        for entry in entries
        for digest in (f"file {entry.source_sha256}", f"pixels {entry.shard_sha256}")
    ]
    groups: dict[str, list[SubjectEntry]] = {}
    names = joined(pairs)
    for entry in entries:
        groups.setdefault(names[entry.subject], []).append(entry)
    return [group for group in groups.values() if len(group) > 1]


def as_families(outcomes: Mapping[str, Outcome], split: SplitConfig) -> dict[str, Outcome]:
    """The outcomes, by name, with the families of copies joined and the copies flagged.

    The first name in order names the joined family, which decides the split of all its members.
    """
    entries = [one for one in outcomes.values() if isinstance(one, SubjectEntry)]
    groups = copies(entries)
    copied = {entry.subject for group in groups for entry in group}
    family = joined((one.family, group[0].family) for group in groups for one in group)

    def placed(entry: SubjectEntry) -> SubjectEntry:
        flags = [flag for flag in entry.flags if flag != SAME_SCAN]
        flags += [SAME_SCAN] * (entry.subject in copied)
        entry = replace(entry, flags=tuple(flags))
        if name := family.get(entry.family):
            entry = replace(entry, family=name, split=split_of(name, split))
        return entry

    return {
        name: placed(one) if isinstance(one, SubjectEntry) else one
        for name, one in outcomes.items()
    }


def described(entries: Iterable[SubjectEntry], shown: int) -> list[str]:
    """Lines on the copies among a store's entries."""
    groups = copies(entries)
    lines = [
        f"{' and '.join(entry.subject for entry in group)} are one scan, and so one family, in "
        f"{group[0].split}"
        for group in groups[:shown]
    ]
    if len(groups) > shown:
        lines.append(f"and {len(groups) - shown} more scans have several names")
    if groups:
        lines.append("  a scan that is there twice counts twice: take one of its files away")
    return lines
