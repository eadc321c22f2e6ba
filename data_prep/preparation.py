"""The stage: discover, verify, transform, split, write."""

import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_file, locked
from data_prep.common.progress import print_line, progress
from data_prep.common.wording import quantity
from data_prep.config import PrepareConfig
from data_prep.executors.local import executor_for
from data_prep.plan import make_plan
from data_prep.report import writing as report
from data_prep.same_scan import as_families
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
from data_prep.summary import Prepared, counted, summary

__all__ = ["Prepared", "list_work", "prepare", "summary"]

# What is done so far, while it is being done: an interrupted run goes on from here.
PARTIAL = "manifest.partial.json"

# The manifest of a store that is being changed: subjects keep the splits that it has.
BEFORE = "manifest.before.json"
SECONDS_BETWEEN_PARTIALS = 20.0


def prepare(
    config: PrepareConfig,
    work: Path,
    notify: Callable[[str], None] = print_line,
    source: Source | None = None,
) -> Prepared:
    """Bring the store work/stores/<config.name> up to date with its sources.

    source is one of your own, in place of the one that the configuration names.

    Only items (subjects, blocks of images) whose files or relevant keys changed are transformed;
    shards of those that are gone are removed. Where nothing changed, nothing is written, but for a
    quality report that is missing or older than the store. The store is whole before its report is
    begun.

    Raises:
        InputError: name missing, sources not found, another process at this store, or no usable
            subject.
    """
    found = _find(config, work, notify, source)
    folder = work / "stores" / config.name
    lock = folder.with_name(f".{config.name}.lock")
    busy = (
        f"another process is preparing this store (it holds {lock}): wait for its end, or choose "
        "another prepare.name"
    )
    for note in found.notes:
        notify(note)
    with locked(lock, busy):
        if found.begin:
            found.begin(notify)
        splits = _splits(folder, config)
        return _Preparation(folder, found, config, notify, splits).bring_up_to_date()


def list_work(config: PrepareConfig, work: Path) -> list[str]:
    """Lines on what `prepare` would do and why; writes nothing and downloads nothing."""
    config = replace(config, download=False)
    source = _find(config, work, print_line)
    folder = work / "stores" / config.name
    before, finished = _existing(folder)
    plan = make_plan(before, source.items, config)
    lines = [*source.notes, *plan.lines(source.noun, shown=None)]
    if finished and not plan.todo and not plan.gone:
        lines.append("nothing to prepare: at most families and splits change")
    return [*lines, f"dry run: nothing was written to {folder}"]


@dataclass(frozen=True)
class _Preparation:
    """One run at one store, which it has to itself."""

    folder: Path
    source: Source
    config: PrepareConfig
    notify: Callable[[str], None]
    splits: Mapping[str, str]
    """Splits that subjects have, and keep."""

    def bring_up_to_date(self) -> Prepared:
        before, finished = _existing(self.folder)
        _remove_unfinished(self.folder, partial=finished)
        plan = make_plan(before, self.source.items, self.config)
        outcomes = self._joined({o.subject: o for found in plan.kept.values() for o in found})
        if not plan.todo and finished and before and _unchanged(before, outcomes, self.config):
            if not report.is_current(before):
                report.write_report(before)
            return Prepared(before, 0, False)
        if before is None and (self.folder / MANIFEST).exists():
            self.notify(f"{self.folder / MANIFEST} is damaged: everything is prepared again")
        if before is not None:
            for line in plan.lines(self.source.noun):
                self.notify(line)
        with _named_run(self.folder) as run:
            # Absolute, as workers may stand elsewhere.
            jobs = [
                Job(item, self.config, self.folder.absolute(), run)
                for item in self.source.items
                if item.subject in plan.todo
            ]
            if finished and before and plan.only_retries:
                # What failed before mostly fails again: the store is not touched for that.
                for found in self._transformed(jobs):
                    outcomes |= {outcome.subject: outcome for outcome in found}
                outcomes = self._joined(outcomes)
                if _unchanged(before, outcomes, self.config):
                    return Prepared(before, 0, False)
                jobs = []
            return self._redo(jobs, outcomes, before if finished else None)

    def _transformed(self, jobs: list[Job]) -> Iterator[list[Outcome]]:
        transform = partial(_at_store, self.source.transform)
        return executor_for(self.config).run_all(transform, jobs, _died)

    def _redo(self, jobs: list[Job], outcomes: dict[str, Outcome], whole: Store | None) -> Prepared:
        """Do the jobs, add what they give to the outcomes, and write the store. whole: what was
        there before, if that was finished."""
        # From here to the end there is no manifest.json: a store that is half old cannot be read.
        self._save(outcomes, PARTIAL)
        if whole:
            os.replace(self.folder / MANIFEST, self.folder / BEFORE)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        report.remove(self.folder)
        saved = time.monotonic()
        try:
            for found in progress(self._transformed(jobs), len(jobs), "preparing", self.notify):
                outcomes |= {outcome.subject: outcome for outcome in found}
                if time.monotonic() - saved > SECONDS_BETWEEN_PARTIALS:
                    self._save(outcomes, PARTIAL)
                    saved = time.monotonic()
        except BaseException:
            with suppress(OSError):  # a full disk must not hide what happened
                self._save(outcomes, PARTIAL)
            raise
        shards = {o.shard for o in outcomes.values() if isinstance(o, SubjectEntry)}
        if not shards:
            if whole:  # no shard was written: a mistyped key must not cost the old ones
                os.replace(self.folder / BEFORE, self.folder / MANIFEST)
                report.write_report(whole)
            (self.folder / PARTIAL).unlink()
            raise InputError(self._none_usable(outcomes))
        for file in (self.folder / "slices").glob("*.npy"):
            if f"slices/{file.name}" not in shards:
                file.unlink()
        self._save(outcomes, MANIFEST)
        (self.folder / PARTIAL).unlink()
        (self.folder / BEFORE).unlink(missing_ok=True)
        store = Store.open(self.folder)
        report.write_report(store)
        return Prepared(store, len(jobs), True, _moved(whole, store))

    def _joined(self, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
        """The outcomes, subjects of one scan in one family, each family in a split; blocks of a set
        have theirs."""
        if self.source.plane == "image":
            return outcomes
        return as_families(outcomes, self.config.split, self.splits)

    def _save(self, outcomes: dict[str, Outcome], filename: str) -> None:
        results = self._joined(outcomes).values()
        write_manifest(
            self.folder,
            name=self.config.name,
            simulated=self.source.simulated,
            configuration=self.config.recorded(),
            image_shape=self.source.image_shape,
            spacing_mm=self.source.spacing_mm,
            orientation=self.source.orientation,
            plane=self.source.plane,
            subjects=[r for r in results if isinstance(r, SubjectEntry)],
            quarantined=[r for r in results if isinstance(r, Quarantined)],
            filename=filename,
        )

    def _none_usable(self, outcomes: dict[str, Outcome]) -> str:
        refused = [o for o in outcomes.values() if isinstance(o, Quarantined)]
        return (
            f"not one of {quantity(len(outcomes), self.source.noun)} could be prepared "
            f"({counted(Counter(o.reason for o in refused))}); the first: {refused[0].subject}: "
            f"{refused[0].message}"
        )


@contextmanager
def _named_run(folder: Path) -> Iterator[str]:
    """The name of a run, which its workers find in the folder as long as it is at work."""
    run = secrets.token_hex(8)
    with atomic_file(folder / RUNNING) as stream:
        stream.write(run.encode())
    try:
        yield run
    finally:
        (folder / RUNNING).unlink(missing_ok=True)


def _at_store(transform: Callable[[Job], list[Outcome]], job: Job) -> list[Outcome]:
    """`transform(job)`, on a machine that sees the store: others would make one of their own."""
    if not job.store.is_dir():
        raise InputError(
            f"{job.store} is not on {socket.gethostname()}: set WORK to a folder that all workers "
            "of the Dask cluster see under this path"
        )
    return transform(job)


def _find(
    config: PrepareConfig,
    work: Path,
    notify: Callable[[str], None],
    given: Source | None = None,
) -> Source:
    """What there is to prepare. Raises InputError where there is nothing, or no name for it."""
    if not config.name:
        raise InputError("prepare.name is not set: name the store, or give --config FILE")
    if given is not None:
        return given
    if config.source == "celeba":
        return celeba.find(config, notify)
    if config.source == "cifar10":
        return cifar10.find(config, notify)
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


def _splits(folder: Path, config: PrepareConfig) -> dict[str, str]:
    """Splits of the subjects of a store that was finished with the same `prepare.split`."""
    for filename in (MANIFEST, BEFORE):
        with suppress(StoreError):
            store = Store.open(folder, filename, check_shards=False)
            if store.manifest["configuration"].get("split") == config.recorded().get("split"):
                return {entry.subject: entry.split for entry in store.entries}
            return {}
    return {}


def _unchanged(store: Store, outcomes: dict[str, Outcome], config: PrepareConfig) -> bool:
    return (
        OWN_DIGEST in store.manifest
        and manifest_bytes(store.manifest) == (store.path / MANIFEST).read_bytes()
        and {o.subject: o for o in store.outcomes} == outcomes
        and store.manifest["configuration"] == config.recorded()
        and store.manifest["configuration_digest"] == configuration_digest(config.recorded())
    )


def _moved(before: Store | None, after: Store) -> int:
    """How many subjects of both stores are in another split."""
    splits = {entry.subject: entry.split for entry in before.entries} if before else {}
    return sum(splits.get(e.subject, e.split) != e.split for e in after.entries)


def _remove_unfinished(folder: Path, *, partial: bool) -> None:
    """What a run that was killed left lying about."""
    for place in (folder, folder / "slices", folder / report.FOLDER):
        for file in place.glob(".*.tmp"):
            file.unlink()
    (folder / RUNNING).unlink(missing_ok=True)
    if partial:
        (folder / PARTIAL).unlink(missing_ok=True)
        (folder / BEFORE).unlink(missing_ok=True)
