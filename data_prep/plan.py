"""What a run has to do, and why; which subjects are one family; and the split of every family."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_prep.common.names import joined
from data_prep.common.wording import quantity
from data_prep.config import CHECKS_VERSION, PrepareConfig, SplitConfig, pixel_keys
from data_prep.sources.source import Item, Outcome
from data_prep.store import CHECKS, OWN_DIGEST, SPLITS, Quarantined, Store, SubjectEntry
from data_prep.volume.plausibility import (
    ASSUMED_ORIENTATION,
    SAME_SCAN,
    code_of,
    doubts,
    expectations,
)

# Reasons that may be gone the next time though no file changed: such subjects are tried again.
PASSING = {"unreadable", "no_permission", "unexpected", "worker_died"}

# Keys that some outcomes depend on, and no pixel of the others.
ORIENTATION, EXPECTED = "assume_orientation", "plausibility"

# Names shown of those with one reason, where a run only sums up what it is going to do.
SHOWN = 5

# From so many families on, the hash alone decides: shares hold well enough on average, and stores
# of one study that were made at different times agree.
MANY = 500


@dataclass(frozen=True)
class Plan:
    """What to do about each item, by its name in the store.

    todo: why it is made (anew). kept: outcomes of an earlier run that still hold, with
    the families that they have now and no splits yet. gone: names that the store has and the
    source has no more.
    """

    todo: dict[str, str]
    kept: dict[str, list[Outcome]]
    gone: tuple[str, ...]

    def lines(self, noun: str, shown: int | None = SHOWN) -> list[str]:
        """Each reason with the names of its items; all names where `shown` is None."""

        def told(what: str, names: Sequence[str]) -> str:
            more = [] if shown is None or len(names) <= shown else ["…"]
            return f"{what}: {quantity(len(names), noun)}: {', '.join([*names[:shown], *more])}"

        lines = []
        for reason in dict.fromkeys(self.todo.values()):
            names = [name for name, why in self.todo.items() if why == reason]
            lines.append(told(f"to prepare, {reason}", names))
        if self.gone:
            lines.append(told("to remove", self.gone))
        if self.kept:
            lines.append(f"kept as they are: {quantity(len(self.kept), noun)}")
        return lines


def make_plan(store: Store | None, items: Sequence[Item], config: PrepareConfig) -> Plan:
    """Decide about every item. store: what an earlier run left, finished or not, if anything.

    An item is made again where a key that its pixels depend on, its files, or the version of the
    arithmetic changed, where its shard is not as the manifest says (prepare.check: byte for byte),
    or where it failed for a reason that may have passed.
    """
    earlier: dict[str, list[Outcome]] = {}
    changed = ""
    if store is not None:
        for outcome in store.outcomes:
            # Images missing from a block are BLOCK/FILE and belong to it.
            earlier.setdefault(outcome.subject.split("/")[0], []).append(outcome)
        changed = _changed_keys(store.manifest["configuration"], config.recorded())
    plan = Plan({}, {}, ())
    for item in items:
        outcomes = earlier.pop(item.subject, [])
        why = "new"
        if store and outcomes:
            again = _why_again(store, outcomes, item, config.check)
            why = changed or again or _reconsidered(store, outcomes, config)
        if why:
            plan.todo[item.subject] = why
            continue
        place = item.assignment()
        plan.kept[item.subject] = [
            replace(o, **place) if isinstance(o, SubjectEntry) else o for o in outcomes
        ]
    return replace(plan, gone=tuple(earlier))


def _changed_keys(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The keys that pixels depend on and that differ, in words; "" where none does."""
    old, new = pixel_keys(before), pixel_keys(now)
    words = []
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) != new.get(key):
            own = "the program's arithmetic" if key == "transform_version" else f"prepare.{key}"
            words.append(f"{own} is {new.get(key)!r} and was {old.get(key)!r}")
    return " and ".join(words)


def _why_again(store: Store, outcomes: list[Outcome], item: Item, read: bool) -> str:
    """Why an item's earlier outcomes are not what its files would give, or "" where they are.

    read: read its shard, too.
    """
    now = item.fingerprint()
    for outcome in outcomes:
        # An image of a block has names of its own.
        named = () if outcome.subject == item.subject else ("subject", "source")
        other = [k for k in now if k not in named and getattr(outcome, k) != now[k]]
        if other:
            return "its mask changed" if other[0].startswith("mask") else "its file changed"
        if isinstance(outcome, Quarantined):
            if outcome.reason in PASSING:
                return f"it failed before ({outcome.reason}), which may have passed"
            if OWN_DIGEST not in store.manifest:
                return "an earlier version of this program refused it"
        elif store.shard_problem(outcome):
            return "its shard is missing or cut"
        elif read and store.shard_problem(outcome, read=True):
            return "its shard is damaged"
        elif not store.image_set and outcome.volume is None:
            return "an earlier version of this program prepared it"
    if not store.image_set and store.manifest.get(CHECKS) != CHECKS_VERSION:
        return "an earlier version of this program checked it"
    return ""


def _reconsidered(store: Store, outcomes: list[Outcome], config: PrepareConfig) -> str:
    """Why an item's findings count otherwise now, though no pixel would differ; or ""."""
    now, before = config.recorded(), store.manifest["configuration"]
    assumed, expected = (now.get(key) == before.get(key) for key in (ORIENTATION, EXPECTED))
    rows = {row.name for row in expectations()}
    for outcome in outcomes:
        if isinstance(outcome, Quarantined):
            oriented = outcome.reason != "no_orientation"
            plausible = outcome.reason != "implausible" or expected
        else:
            oriented = ASSUMED_ORIENTATION not in map(code_of, outcome.flags)
            flagged = doubts(outcome.findings, config.plausibility)
            plausible = flagged == tuple(f for f in outcome.flags if code_of(f) in rows)
            plausible &= not flagged or config.plausibility.action != "quarantine"
        if not oriented and not assumed:
            return f"prepare.{ORIENTATION} changed"
        if not plausible:
            return f"prepare.{EXPECTED} changed"
    return ""


def copies(entries: Iterable[SubjectEntry]) -> list[list[SubjectEntry]]:
    """Entries of one scan under several names, sorted by subject.

    A scan counts as the same where its file is (SHA-256 of the source), or where its slices are: a
    file that was compressed again, or whose header alone differs, gives the same pixels.
    """
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


def with_splits(
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
        split = splits[family[name]]
        placed[name] = replace(entry, family=family[name], split=split, flags=tuple(flags))
    return {**outcomes, **placed}


def uniform(family: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on `salt` and `family` only: the first 53 bits of SHA-256."""
    digest = hashlib.sha256(f"{salt}\0{family}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of(family: str, config: SplitConfig) -> str:
    """The split ("train", "validation", "test") of a family among MANY, whoever the others are."""
    position = uniform(family, config.salt)
    if position < config.train:
        return "train"
    # A share of exactly zero must stay empty even where 0.7 + 0.3 is not quite 1 in binary.
    if position < config.train + config.validation or config.test == 0:
        return "validation" if config.validation > 0 else "train"
    return "test"


def split_families(
    families: Iterable[str], config: SplitConfig, kept: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The split of every family, filled to the shares in the order of a hash of their names.

    Below MANY families, the numbers are the shares' to within one family (largest remainder), and
    each split with a share has a family where there are enough. Families that are `kept` in the
    split that they had do not move; new ones fill what lacks most. With folds nothing is kept: the
    set of families alone decides, so that each is tested in exactly one fold.
    """
    kept = {} if kept is None or config.fold else dict(kept)
    new = sorted(set(families) - set(kept), key=lambda name: (uniform(name, config.salt), name))
    if config.fold:
        # The n-th of k equal parts is for testing; what follows it, in a circle, is the others'.
        number, folds = config.folds
        start, stop = ((n * len(new) + folds - 1) // folds for n in (number - 1, number))
        rest = {split: config.shares[split] / (1 - 1 / folds) for split in SPLITS[:2]}
        tested = dict.fromkeys(new[start:stop], SPLITS[2])
        return tested | _filled([*new[stop:], *new[:start]], rest, {})
    if len(new) + len(kept) >= MANY:
        return kept | {family: split_of(family, config) for family in new}
    return kept | _filled(new, config.shares, kept)


def _filled(
    ordered: Sequence[str], shares: Mapping[str, float], kept: Mapping[str, str]
) -> dict[str, str]:
    """The families in order, cut where the splits have what the shares leave them beside `kept`."""
    shares = {split: share for split, share in shares.items() if share}
    families, counts = len(ordered) + len(kept), Counter(kept.values())
    for _ in ordered:
        counts[max(shares, key=lambda s: (not counts[s], shares[s] * families - counts[s]))] += 1
    room = counts - Counter(kept.values())
    return dict(zip(ordered, (s for s in SPLITS for _ in range(room[s])), strict=True))
