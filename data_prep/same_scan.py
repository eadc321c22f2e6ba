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
from data_prep.split import SPLITS, split_families


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


def as_families(
    outcomes: Mapping[str, Outcome], config: SplitConfig, before: Mapping[str, str]
) -> dict[str, Outcome]:
    """The outcomes, by name, with families of copies joined, copies flagged, and splits decided.

    before: splits that subjects have and keep. A family that was in two goes where one could have
    been trained on: to train before validation before test.
    """
    entries = {name: one for name, one in outcomes.items() if isinstance(one, SubjectEntry)}
    groups = copies(entries.values())
    copied = {entry.subject for group in groups for entry in group}
    united = joined((entry.family, group[0].family) for group in groups for entry in group)
    family = {name: united.get(entry.family, entry.family) for name, entry in entries.items()}
    kept: dict[str, str] = {}
    for split in reversed(SPLITS):
        kept |= {family[name]: split for name in family if before.get(name) == split}
    splits = split_families(family.values(), config, kept)
    placed: dict[str, Outcome] = {}
    for name, entry in entries.items():
        flags = [flag for flag in entry.flags if flag != SAME_SCAN]
        flags += [SAME_SCAN] * (name in copied)
        placed[name] = replace(
            entry, family=family[name], split=splits[family[name]], flags=tuple(flags)
        )
    return {**outcomes, **placed}


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
