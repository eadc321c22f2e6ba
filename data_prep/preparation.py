"""The stage, from top to bottom: find, plan, transform, split, write, report."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import locked
from data_prep.common.progress import print_line, progress
from data_prep.common.wording import quantity
from data_prep.config import IMAGE_SETS, PrepareConfig
from data_prep.executors.local import run_all
from data_prep.plan import Plan, make_plan, with_splits
from data_prep.report import page
from data_prep.sources import image_sets, volumes
from data_prep.sources.source import Job, Outcome, Source
from data_prep.store import (
    MANIFEST,
    Quarantined,
    Store,
    StoreError,
    SubjectEntry,
    manifest_bytes,
    new_manifest,
    write_manifest,
)
from data_prep.summary import Prepared, counted, summary

__all__ = ["Prepared", "list_work", "prepare", "summary"]

# Outcomes of a run that did not come to its end, as a manifest; the next run keeps them.
PARTIAL = "manifest.partial.json"
SECONDS_BETWEEN_PARTIALS = 20.0


def prepare(
    config: PrepareConfig,
    work: Path,
    notify: Callable[[str], None] = print_line,
    source: Source | None = None,
) -> Prepared:
    """Bring the store work/stores/<config.name> up to date with its sources.

    source: one of your own, in place of the one that the configuration names.

    Only items (subjects, blocks of images) whose files or relevant keys changed are transformed.
    Their new shards lie beside the old ones, which go once the new manifest has replaced the old:
    at any moment, and after any crash, the store is readable as it was or as it will be. Where
    nothing changed, nothing is written, but for a quality report that is missing or older.

    Raises:
        InputError: name missing, sources not found, another process at this store, or no usable
            subject.
    """
    folder = _folder(config, work)
    source = source or _find(config, work, notify)
    lock = folder.with_name(f".{config.name}.lock")
    busy = (
        f"another process is preparing this store (it holds {lock}): wait for its end, or choose "
        "another prepare.name"
    )
    for note in source.notes:
        notify(note)
    with locked(lock, busy):
        if source.begin:
            source.begin(notify)

        # Plan: what earlier runs left, and what it lacks.
        earlier = _earlier(folder, notify)
        plan, finished = _plan(earlier, source, config), earlier.get(MANIFEST)
        outcomes = {outcome.subject: outcome for kept in plan.kept.values() for outcome in kept}
        if earlier and (plan.todo or plan.gone):
            for line in plan.lines(source.noun):
                notify(line)

        def write_partial() -> None:
            write_manifest(folder, _manifest(outcomes, source, config, finished), PARTIAL)

        # Transform, in other processes or on other machines.
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.absolute()  # workers may stand elsewhere
        jobs = [Job(item, config, place) for item in source.items if item.subject in plan.todo]
        done = run_all(config, partial(_at_store, source.transform), jobs, _died)
        shards, saved = 0, time.monotonic()
        try:
            for results in progress(done, len(jobs), "preparing", notify):
                outcomes |= {outcome.subject: outcome for outcome in results}
                shards += any(isinstance(outcome, SubjectEntry) for outcome in results)
                if time.monotonic() - saved > SECONDS_BETWEEN_PARTIALS:
                    write_partial()
                    saved = time.monotonic()
        except BaseException:
            with suppress(OSError):  # a full disk must not hide what happened
                write_partial()
            raise

        # Write: the manifest last, then away with what it does not name.
        if not any(isinstance(outcome, SubjectEntry) for outcome in outcomes.values()):
            (folder / PARTIAL).unlink(missing_ok=True)
            raise InputError(_none_usable(outcomes, source.noun))
        manifest = _manifest(outcomes, source, config, finished)
        changed = not finished or (folder / MANIFEST).read_bytes() != manifest_bytes(manifest)
        if changed:
            write_manifest(folder, manifest)
        store = Store.open(folder)
        _remove_leftovers(store)

        if not page.is_current(store):
            page.write_report(store)
        made = len(jobs) if changed or shards else 0
        before = {entry.subject: entry.split for entry in finished.entries} if finished else {}
        moved = sum(before.get(e.subject, e.split) != e.split for e in store.entries)
        return Prepared(store, made, changed, moved)


def list_work(config: PrepareConfig, work: Path) -> list[str]:
    """Lines on what `prepare` would do and why; writes nothing and downloads nothing."""
    config, folder = replace(config, download=False), _folder(config, work)
    source = _find(config, work, print_line)
    earlier = _earlier(folder, print_line)
    plan = _plan(earlier, source, config)
    lines = [*source.notes, *plan.lines(source.noun, shown=None)]
    if MANIFEST in earlier and not plan.todo and not plan.gone:
        lines.append("nothing to prepare: at most families and splits change")
    return [*lines, f"dry run: nothing was written to {folder}"]


def _folder(config: PrepareConfig, work: Path) -> Path:
    if not config.name:
        raise InputError("prepare.name is not set: name the store, or give --config FILE")
    return work / "stores" / config.name


def _find(config: PrepareConfig, work: Path, notify: Callable[[str], None]) -> Source:
    """What there is to prepare. Raises InputError where there is nothing, or no name for it."""
    if config.source in IMAGE_SETS:
        return image_sets.find(config, notify)
    return volumes.find(config, work / "raw" / config.name)


def _earlier(folder: Path, notify: Callable[[str], None]) -> dict[str, Store]:
    """By manifest: the finished store, and what an interrupted run had done of the next."""
    stores = {}
    for filename in (MANIFEST, PARTIAL):
        if (folder / filename).exists():
            try:
                stores[filename] = Store.open(folder, filename, check_shards=False)
            except StoreError as error:
                if "schema version" in str(error):
                    raise  # made by another version of this program: not ours to overwrite
                notify(f"{folder / filename} is damaged: what it lists is prepared again")
    return stores


def _plan(earlier: Mapping[str, Store], source: Source, config: PrepareConfig) -> Plan:
    """The plan that leaves least to do: from the finished store, or from what was begun."""
    plans = [make_plan(store, source.items, config) for store in earlier.values() or [None]]
    return min(plans, key=lambda plan: len(plan.todo))


def _manifest(
    outcomes: dict[str, Outcome], source: Source, config: PrepareConfig, finished: Store | None
) -> dict[str, object]:
    """The manifest of the outcomes: one scan is one family, and each family has a split.

    Subjects keep the splits of a finished store with the same `prepare.split`; an image set's
    blocks have theirs.
    """
    if source.plane != "image":
        recorded, kept = config.recorded().get("split"), {}
        if finished and finished.manifest["configuration"].get("split") == recorded:
            kept = {entry.subject: entry.split for entry in finished.entries}
        outcomes = with_splits(outcomes, config.split, kept)
    return new_manifest(
        name=config.name,
        simulated=source.simulated,
        configuration=config.recorded(),
        image_shape=source.image_shape,
        spacing_mm=source.spacing_mm,
        orientation=source.orientation,
        plane=source.plane,
        subjects=[o for o in outcomes.values() if isinstance(o, SubjectEntry)],
        quarantined=[o for o in outcomes.values() if isinstance(o, Quarantined)],
    )


def _at_store(transform: Callable[[Job], list[Outcome]], job: Job) -> list[Outcome]:
    """`transform(job)`, on a machine that sees the store: others would make one of their own."""
    if not job.store.is_dir():
        raise InputError(
            f"{job.store} is not on {socket.gethostname()}: set WORK to a folder that all workers "
            "of the Dask cluster see under this path"
        )
    return transform(job)


def _died(job: Job) -> list[Outcome]:
    message = "the worker process died on it, perhaps for want of memory"
    return [Quarantined(**job.item.fingerprint(), reason="worker_died", message=message)]


def _none_usable(outcomes: Mapping[str, Outcome], noun: str) -> str:
    refused = [outcome for outcome in outcomes.values() if isinstance(outcome, Quarantined)]
    return (
        f"not one of {quantity(len(outcomes), noun)} could be prepared "
        f"({counted(Counter(outcome.reason for outcome in refused))}); the first: "
        f"{refused[0].subject}: {refused[0].message}"
    )


def _remove_leftovers(store: Store) -> None:
    """Remove shards of before, and what runs that were killed left lying about."""
    listed = {entry.shard for entry in store.entries}
    for shard in (store.path / "slices").glob("*.npy"):
        if f"slices/{shard.name}" not in listed:
            shard.unlink()
    for place in (store.path, store.path / "slices", store.path / page.FOLDER):
        for file in place.glob(".*.tmp"):
            file.unlink()
    (store.path / PARTIAL).unlink(missing_ok=True)
