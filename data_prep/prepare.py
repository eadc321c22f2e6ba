"""The stage: discover, verify, transform, split, write."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.config import PrepareConfig
from data_prep.errors import InputError
from data_prep.executor import run_all, worker_count
from data_prep.progress import progress
from data_prep.sources import celeba, cifar10, volumes
from data_prep.sources.source import Item, Job, Outcome, Source
from data_prep.store import (
    MANIFEST,
    Quarantined,
    Store,
    StoreError,
    SubjectEntry,
    configuration_digest,
    write_manifest,
)
from data_prep.summary import Report, counted, summary

__all__ = ["Report", "prepare", "summary"]

# What is done so far, while it is being done: an interrupted run goes on from here.
PARTIAL = "manifest.partial.json"
SECONDS_BETWEEN_PARTIALS = 20.0

# Reasons that may be gone the next time: such subjects are tried again, others only once changed.
PASSING = {
    "unreadable",
    "missing",
    "broken_link",
    "no_permission",
    "unexpected",
    "worker_died",
}


def _print(line: str) -> None:
    print(line, flush=True)  # a pipe would hold progress back


def prepare(config: PrepareConfig, work: Path, say: Callable[[str], None] = _print) -> Report:
    """Bring the store work/stores/<config.name> up to date with its sources.

    Only items (subjects, blocks of images) whose files or relevant keys changed are transformed;
    shards of those that are gone are removed. Where nothing changed, nothing is written.

    Raises:
        InputError: name missing, sources not found, or not one usable subject.
    """
    if not config.name:
        raise InputError("prepare.name is not set: name the store, or give --config FILE")
    folder = work / "stores" / config.name
    source = _find(config, work, say)
    before, finished = _existing(folder)
    kept = _reusable(before, source.items, config) if before else {}
    todo = [item for item in source.items if item.subject not in kept]
    outcomes = {o.subject: o for found in kept.values() for o in found}
    if not todo and finished and before and _unchanged(before, outcomes, config):
        return Report(before, 0, False)

    def save(filename: str) -> None:
        results = outcomes.values()
        write_manifest(
            folder,
            name=config.name,
            simulated=source.simulated,
            configuration=config.recorded(),
            image_shape=source.image_shape,
            spacing_mm=source.spacing_mm,
            orientation=source.orientation,
            plane=source.plane,
            subjects=[r for r in results if isinstance(r, SubjectEntry)],
            quarantined=[r for r in results if isinstance(r, Quarantined)],
            filename=filename,
        )

    # From here to the end there is no manifest.json: nobody reads a store that is half old.
    save(PARTIAL)
    (folder / MANIFEST).unlink(missing_ok=True)
    saved = time.monotonic()
    jobs = [Job(item, config, folder) for item in todo]
    results = run_all(source.transform, jobs, worker_count(config.workers), _died)
    try:
        for found in progress(results, len(jobs), "preparing", say):
            outcomes |= {outcome.subject: outcome for outcome in found}
            if time.monotonic() - saved > SECONDS_BETWEEN_PARTIALS:
                save(PARTIAL)
                saved = time.monotonic()
    except KeyboardInterrupt:
        save(PARTIAL)
        raise
    shards = {o.shard for o in outcomes.values() if isinstance(o, SubjectEntry)}
    for file in (folder / "slices").glob("*"):
        if f"slices/{file.name}" not in shards:
            file.unlink()
    if not shards:
        reasons = Counter(o.reason for o in outcomes.values() if isinstance(o, Quarantined))
        first = next(o for o in outcomes.values() if isinstance(o, Quarantined))
        (folder / PARTIAL).unlink()
        raise InputError(
            f"not one of {len(outcomes)} {source.noun} could be prepared ({counted(reasons)}); "
            f"the first: {first.subject}: {first.message}"
        )
    save(MANIFEST)
    (folder / PARTIAL).unlink()
    return Report(Store.open(folder), len(jobs), True)


def _find(config: PrepareConfig, work: Path, say: Callable[[str], None]) -> Source:
    if config.source == "celeba":
        return celeba.find(config, say)
    if config.source == "cifar10":
        return cifar10.find(config, say)
    return volumes.find(config, work / "raw" / config.name, say)


def _died(job: Job) -> list[Outcome]:
    message = "the worker process died on it, perhaps for want of memory"
    return [Quarantined(**job.item.fingerprint(), reason="worker_died", message=message)]


def _existing(folder: Path) -> tuple[Store | None, bool]:
    """The store as an earlier run left it, and whether that run came to its end."""
    for filename, finished in ((MANIFEST, True), (PARTIAL, False)):
        if (folder / filename).exists():
            try:
                return Store.open(folder, filename, check_shards=False), finished
            except StoreError as error:
                if "schema version" in str(error):
                    raise  # made by another version of this program: not ours to overwrite
    return None, False


def _outcomes(store: Store) -> dict[str, Outcome]:
    everybody: list[Outcome] = [*store.entries, *store.quarantined]
    return {outcome.subject: outcome for outcome in everybody}


def _reusable(
    store: Store, items: Sequence[Item], config: PrepareConfig
) -> dict[str, list[Outcome]]:
    """Per item the earlier outcomes, where all still hold: same relevant keys, same files, shard
    in place. Families and splits are as they are now."""
    earlier = dict(store.manifest["configuration"])
    for key in ("split", "subjects_table"):
        earlier.pop(key, None)
    if isinstance(earlier.get("cohort"), dict):
        earlier["cohort"] = {"seed": earlier["cohort"].get("seed")}
    if earlier != config.pixel_keys():
        return {}
    known: dict[str, list[Outcome]] = {}
    for outcome in _outcomes(store).values():
        # Images missing from a block are BLOCK/FILE and belong to it.
        known.setdefault(outcome.subject.split("/")[0], []).append(outcome)
    kept: dict[str, list[Outcome]] = {}
    for item in items:
        outcomes = known.get(item.subject, [])
        if outcomes and _hold(store, outcomes, item):
            place = item.placed(config)
            kept[item.subject] = [
                replace(o, **place) if isinstance(o, SubjectEntry) else o for o in outcomes
            ]
    return kept


def _hold(store: Store, outcomes: list[Outcome], item: Item) -> bool:
    """Whether an item's earlier outcomes are still what its files would give."""
    found = item.fingerprint()
    for outcome in outcomes:
        usable = (
            store.shard_problem(outcome) is None
            if isinstance(outcome, SubjectEntry)
            else outcome.reason not in PASSING
        )
        # An image of a block has names of its own.
        named = () if outcome.subject == item.subject else ("subject", "source")
        same = all(getattr(outcome, key) == found[key] for key in found if key not in named)
        if not usable or not same:
            return False
    return True


def _unchanged(store: Store, outcomes: dict[str, Outcome], config: PrepareConfig) -> bool:
    return (
        _outcomes(store) == outcomes
        and store.manifest["configuration"] == config.recorded()
        and store.manifest["configuration_digest"] == configuration_digest(config.recorded())
    )
