"""The stage: discover, verify, transform, split, write."""

import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep import report
from data_prep.atomic import atomic_file
from data_prep.config import PrepareConfig
from data_prep.errors import InputError
from data_prep.executor import executor_for
from data_prep.lock import exclusive
from data_prep.plan import make_plan
from data_prep.progress import progress
from data_prep.sources import celeba, cifar10, volumes
from data_prep.sources.source import Job, Outcome, Source
from data_prep.store import (
    MANIFEST,
    OWN_DIGEST,
    RUNNING,
    Quarantined,
    Store,
    StoreError,
    SubjectEntry,
    configuration_digest,
    manifest_bytes,
    write_manifest,
)
from data_prep.summary import Report, counted, summary

__all__ = ["Report", "list_work", "prepare", "summary"]

# What is done so far, while it is being done: an interrupted run goes on from here.
PARTIAL = "manifest.partial.json"
SECONDS_BETWEEN_PARTIALS = 20.0


def _print(line: str) -> None:
    print(line, flush=True)  # a pipe would hold progress back


def prepare(config: PrepareConfig, work: Path, say: Callable[[str], None] = _print) -> Report:
    """Bring the store work/stores/<config.name> up to date with its sources.

    Only items (subjects, blocks of images) whose files or relevant keys changed are transformed;
    shards of those that are gone are removed. Where nothing changed, nothing is written, but for a
    quality report that is missing or older than the store. The store is whole before its report is
    begun.

    Raises:
        InputError: name missing, sources not found, another process at this store, or not one
            usable subject.
    """
    source = _find(config, work, say)
    folder = work / "stores" / config.name
    with exclusive(folder.with_name(f".{config.name}.lock")):
        if source.begin:
            source.begin(say)
        return _bring_up_to_date(folder, source, config, say)


def list_work(config: PrepareConfig, work: Path) -> list[str]:
    """What `prepare` would do and why, for people; writes nothing and downloads nothing."""
    config = replace(config, download=False)
    source = _find(config, work, _print)
    folder = work / "stores" / config.name
    before, finished = _existing(folder)
    plan = make_plan(before, source.items, config)
    lines = plan.lines(source.noun, shown=None)
    if finished and not plan.todo and not plan.gone:
        lines.append("nothing to prepare: at most families and splits change")
    return [*lines, f"dry run: nothing was written to {folder}"]


def _bring_up_to_date(
    folder: Path, source: Source, config: PrepareConfig, say: Callable[[str], None]
) -> Report:
    before, finished = _existing(folder)
    _remove_unfinished(folder, partial=finished)
    plan = make_plan(before, source.items, config)
    outcomes = {o.subject: o for found in plan.kept.values() for o in found}
    if not plan.todo and finished and before and _unchanged(before, outcomes, config):
        if not report.is_current(before):
            report.write_report(before)
        return Report(before, 0, False)
    if before is None and (folder / MANIFEST).exists():
        say(f"{folder / MANIFEST} is damaged: everything is prepared again")
    if before is not None:
        for line in plan.lines(source.noun):
            say(line)
    # Absolute, as workers may stand elsewhere.
    run = secrets.token_hex(8)
    jobs = [
        Job(item, config, folder.absolute(), run)
        for item in source.items
        if item.subject in plan.todo
    ]
    transform = partial(_at_store, source.transform)

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

    with atomic_file(folder / RUNNING) as stream:
        stream.write(run.encode())
    if finished and before and plan.only_retries:
        # What failed before mostly fails again: the store is not touched for that.
        for found in executor_for(config).run_all(transform, jobs, _died):
            outcomes |= {outcome.subject: outcome for outcome in found}
        if _unchanged(before, outcomes, config):
            (folder / RUNNING).unlink()
            return Report(before, 0, False)
        jobs = []
    # From here to the end there is no manifest.json: nobody reads a store that is half old.
    save(PARTIAL)
    sealed = (folder / MANIFEST).read_bytes() if finished else b""
    (folder / MANIFEST).unlink(missing_ok=True)
    report.remove(folder)
    saved = time.monotonic()
    results = executor_for(config).run_all(transform, jobs, _died)
    try:
        for found in progress(results, len(jobs), "preparing", say):
            outcomes |= {outcome.subject: outcome for outcome in found}
            if time.monotonic() - saved > SECONDS_BETWEEN_PARTIALS:
                save(PARTIAL)
                saved = time.monotonic()
    except BaseException:
        with suppress(OSError):  # a full disk must not hide what happened
            save(PARTIAL)
        raise
    shards = {o.shard for o in outcomes.values() if isinstance(o, SubjectEntry)}
    if not shards:
        reasons = Counter(o.reason for o in outcomes.values() if isinstance(o, Quarantined))
        first = next(o for o in outcomes.values() if isinstance(o, Quarantined))
        if before and sealed:  # no shard was written: a mistyped key must not cost the old ones
            with atomic_file(folder / MANIFEST) as stream:
                stream.write(sealed)
            report.write_report(before)
        for name in (PARTIAL, RUNNING):
            (folder / name).unlink()
        raise InputError(
            f"not one of {len(outcomes)} {source.noun} could be prepared ({counted(reasons)}); "
            f"the first: {first.subject}: {first.message}"
        )
    for file in (folder / "slices").glob("*.npy"):
        if f"slices/{file.name}" not in shards:
            file.unlink()
    save(MANIFEST)
    for name in (PARTIAL, RUNNING):
        (folder / name).unlink()
    store = Store.open(folder)
    report.write_report(store)
    return Report(store, len(jobs), True)


def _at_store(transform: Callable[[Job], list[Outcome]], job: Job) -> list[Outcome]:
    """`transform(job)`, on a machine that sees the store: others would make one of their own."""
    if not job.store.is_dir():
        raise InputError(
            f"{job.store} is not on {socket.gethostname()}: set WORK to a folder that all workers "
            "of the Dask cluster see under this path"
        )
    return transform(job)


def _find(config: PrepareConfig, work: Path, say: Callable[[str], None]) -> Source:
    """What there is to prepare. Raises InputError where there is nothing, or no name for it."""
    if not config.name:
        raise InputError("prepare.name is not set: name the store, or give --config FILE")
    if config.source == "celeba":
        return celeba.find(config, say)
    if config.source == "cifar10":
        return cifar10.find(config, say)
    return volumes.find(config, work / "raw" / config.name)


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


def _unchanged(store: Store, outcomes: dict[str, Outcome], config: PrepareConfig) -> bool:
    return (
        OWN_DIGEST in store.manifest
        and manifest_bytes(store.manifest) == (store.path / MANIFEST).read_bytes()
        and {o.subject: o for o in store.outcomes} == outcomes
        and store.manifest["configuration"] == config.recorded()
        and store.manifest["configuration_digest"] == configuration_digest(config.recorded())
    )


def _remove_unfinished(folder: Path, *, partial: bool) -> None:
    """What a run that was killed left lying about."""
    for place in (folder, folder / "slices", folder / report.FOLDER):
        for file in place.glob(".*.tmp"):
            file.unlink()
    (folder / RUNNING).unlink(missing_ok=True)
    if partial:
        (folder / PARTIAL).unlink(missing_ok=True)
