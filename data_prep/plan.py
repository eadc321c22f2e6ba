"""What a run has to do, and why: every item against what the store holds already."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_prep.common.wording import quantity
from data_prep.config import CHECKS_VERSION, PrepareConfig, pixel_keys
from data_prep.flags import ASSUMED_ORIENTATION, code_of
from data_prep.sources.source import Item, Outcome
from data_prep.store import CHECKS, OWN_DIGEST, Quarantined, Store, SubjectEntry
from data_prep.volume.plausibility import doubts, expectations

# Reasons that may be gone the next time though no file changed: such subjects are tried again.
PASSING = {"unreadable", "no_permission", "unexpected", "worker_died"}

RETRY = "it failed before"

# Keys that some outcomes depend on, and no pixel of the others.
ORIENTATION, EXPECTED = "assume_orientation", "plausibility"

# Names shown of those with one reason, where a run only sums up what it is going to do.
SHOWN = 5


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

    @property
    def only_retries(self) -> bool:
        """Whether all there is to do is to try again what failed."""
        return not self.gone and all(why.startswith(RETRY) for why in self.todo.values())

    def lines(self, noun: str, shown: int | None = SHOWN) -> list[str]:
        """Each reason with the names of its items; all names where `shown` is None."""
        lines = []
        for reason in dict.fromkeys(self.todo.values()):
            names = [name for name, why in self.todo.items() if why == reason]
            lines.append(
                f"to prepare, {reason}: {quantity(len(names), noun)}: {_some(names, shown)}"
            )
        if self.gone:
            lines.append(f"to remove: {quantity(len(self.gone), noun)}: {_some(self.gone, shown)}")
        if self.kept:
            lines.append(f"kept as they are: {quantity(len(self.kept), noun)}")
        return lines


def _some(names: Sequence[str], shown: int | None) -> str:
    more = [] if shown is None or len(names) <= shown else ["…"]
    return ", ".join([*names[: None if shown is None else shown], *more])


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
    todo: dict[str, str] = {}
    kept: dict[str, list[Outcome]] = {}
    for item in items:
        outcomes = earlier.pop(item.subject, [])
        why = "new"
        if store and outcomes:
            why = (
                changed
                or _why_again(store, outcomes, item, config.check)
                or _reconsidered(store, outcomes, config)
            )
        if why:
            todo[item.subject] = why
            continue
        place = item.assignment()
        kept[item.subject] = [
            replace(o, **place) if isinstance(o, SubjectEntry) else o for o in outcomes
        ]
    return Plan(todo, kept, tuple(earlier))


def _changed_keys(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The keys that pixels depend on and that differ, in words; "" where none does."""
    old, new = pixel_keys(before), pixel_keys(now)
    words = []
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) == new.get(key):
            continue
        what = "the program's arithmetic" if key == "transform_version" else f"prepare.{key}"
        words.append(f"{what} is {new.get(key)!r} and was {old.get(key)!r}")
    return " and ".join(words)


def _why_again(store: Store, outcomes: list[Outcome], item: Item, read: bool) -> str:
    """Why an item's earlier outcomes are not what its files would give, or "" where they are.

    read: read its shard, too.
    """
    found = item.fingerprint()
    for outcome in outcomes:
        # An image of a block has names of its own.
        named = () if outcome.subject == item.subject else ("subject", "source")
        other = [k for k in found if k not in named and getattr(outcome, k) != found[k]]
        if other:
            return "its mask changed" if other[0].startswith("mask") else "its file changed"
        if isinstance(outcome, Quarantined):
            if outcome.reason in PASSING:
                return f"{RETRY} ({outcome.reason}), which may have passed"
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
    """Why what was found of an item counts otherwise now, though no pixel would differ; or ""."""
    now, before = config.recorded(), store.manifest["configuration"]
    assumed = now.get(ORIENTATION) == before.get(ORIENTATION)
    for outcome in outcomes:
        if isinstance(outcome, Quarantined):
            if outcome.reason == "no_orientation" and not assumed:
                return f"prepare.{ORIENTATION} changed"
            if outcome.reason == "implausible" and now.get(EXPECTED) != before.get(EXPECTED):
                return f"prepare.{EXPECTED} changed"
            continue
        if not assumed and ASSUMED_ORIENTATION in map(code_of, outcome.flags):
            return f"prepare.{ORIENTATION} changed"
        flagged = doubts(outcome.findings, config.plausibility)
        rows = {row.name for row in expectations()}
        if flagged != tuple(flag for flag in outcome.flags if code_of(flag) in rows) or (
            flagged and config.plausibility.action == "quarantine"
        ):
            return f"prepare.{EXPECTED} changed"
    return ""
