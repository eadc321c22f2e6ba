"""The stage: discover, verify, transform, split, write."""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.config import PrepareConfig
from data_prep.errors import InputError, VolumeError
from data_prep.executor import run_all, worker_count
from data_prep.progress import progress
from data_prep.slices import ORIENTATIONS, cut_slices
from data_prep.sources import hcp, template_cohort
from data_prep.sources.hcp import Subject
from data_prep.split import SPLITS, split_of
from data_prep.store import (
    MANIFEST,
    Quarantined,
    Store,
    StoreError,
    SubjectEntry,
    configuration_digest,
    write_manifest,
    write_shard,
)
from data_prep.volume import load_volume, require_n4

# What is done so far, while it is being done: an interrupted run goes on from here.
PARTIAL = "manifest.partial.json"
SECONDS_BETWEEN_PARTIALS = 20.0

# Reasons that may be gone the next time: such subjects are tried again, others only once changed.
PASSING = {"unreadable", "unexpected", "worker_died"}

Outcome = SubjectEntry | Quarantined


@dataclass(frozen=True)
class Job:
    """One subject to transform, as sent to a worker."""

    subject: Subject
    config: PrepareConfig
    store: Path


@dataclass(frozen=True)
class Report:
    """What a run did: the finished store, how many subjects were made anew, and if any change."""

    store: Store
    made: int
    changed: bool


def _print(line: str) -> None:
    print(line, flush=True)  # a pipe would hold progress back


def prepare(config: PrepareConfig, work: Path, say: Callable[[str], None] = _print) -> Report:
    """Bring the store work/stores/<config.name> up to date with its sources.

    Only subjects whose source, mask or relevant keys changed are transformed; shards of people who
    are gone are removed. Where nothing changed, nothing is written.

    Raises:
        InputError: name missing, sources not found, or not one usable subject.
    """
    if not config.name:
        raise InputError("prepare.name is not set: name the store, or give --config FILE")
    if config.n4:
        require_n4()
    folder = work / "stores" / config.name
    simulated = config.source == "template_cohort"
    if simulated:
        subjects = template_cohort.make(config, work / "raw" / config.name, say)
    else:
        subjects = hcp.discover(config)

    before, finished = _existing(folder)
    kept = _reusable(before, subjects, config) if before else {}
    todo = [s for s in subjects if s.subject not in kept]
    outcomes = {
        s.subject: _placed(kept[s.subject], config, s) for s in subjects if s.subject in kept
    }
    if not todo and finished and before and _unchanged(before, outcomes, config):
        return Report(before, 0, False)

    def save(filename: str) -> None:
        results = outcomes.values()
        write_manifest(
            folder,
            name=config.name,
            simulated=simulated,
            configuration=config.recorded(),
            image_shape=(1, config.size, config.size),
            spacing_mm=config.spacing_mm,
            orientation=ORIENTATIONS[config.plane],
            plane=config.plane,
            subjects=[r for r in results if isinstance(r, SubjectEntry)],
            quarantined=[r for r in results if isinstance(r, Quarantined)],
            filename=filename,
        )

    # From here to the end there is no manifest.json: nobody reads a store that is half old.
    save(PARTIAL)
    (folder / MANIFEST).unlink(missing_ok=True)
    saved = time.monotonic()
    jobs = [Job(s, config, folder) for s in todo]
    results = run_all(transform, jobs, worker_count(config.workers), _died)
    try:
        for outcome in progress(results, len(jobs), "preparing", say):
            outcomes[outcome.subject] = outcome
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
            f"not one of {len(outcomes)} subjects could be prepared ({_counted(reasons)}); "
            f"the first: {first.subject}: {first.message}"
        )
    save(MANIFEST)
    (folder / PARTIAL).unlink()
    return Report(Store.open(folder), len(jobs), True)


def transform(job: Job) -> Outcome:
    """One subject from file to shard. What is wrong with it becomes a Quarantined, not an error."""
    subject, config = job.subject, job.config
    # Taken before reading: a file that changes meanwhile is seen as changed next time.
    found = fingerprint(subject)
    try:
        if subject.mask_path and not subject.mask_path.is_file():
            raise VolumeError("mask_missing", f"there is no mask {subject.mask}")
        volume = load_volume(subject.source_path, subject.mask_path, config)
        slices = cut_slices(volume, config)
    except VolumeError as error:
        return Quarantined(**found, reason=error.reason, message=error.message)
    except MemoryError:
        return Quarantined(**found, reason="worker_died", message="memory ran out")
    except InputError:
        raise
    except Exception as error:  # whatever one file provokes must not cost the others
        message = f"{type(error).__name__}: {error}"
        return Quarantined(**found, reason="unexpected", message=" ".join(message.split()))
    # Outside the try: a full disk is nobody's bad scan and ends the run.
    shard = write_shard(job.store, subject.subject, slices.images)
    return SubjectEntry(
        **found,
        **shard,
        family=subject.family,
        split=split_of(subject.family, config.split),
        source_sha256=volume.source_sha256,
        slice_indices=slices.indices,
        affine=tuple(tuple(float(v) for v in row) for row in slices.affine),
        cropped=slices.cropped,
    )


def fingerprint(subject: Subject) -> dict[str, Any]:
    """Names, sizes and times of a subject's files: equal ones count as unchanged."""

    def status(path: Path | None) -> tuple[int, int]:
        try:
            found = os.stat(path) if path else None
        except OSError:
            return -1, -1
        return (found.st_size, found.st_mtime_ns) if found else (0, 0)

    source, mask = status(subject.source_path), status(subject.mask_path)
    return {
        "subject": subject.subject,
        "source": subject.source,
        "source_bytes": source[0],
        "source_mtime_ns": source[1],
        "mask": subject.mask,
        "mask_bytes": mask[0],
        "mask_mtime_ns": mask[1],
    }


def _died(job: Job) -> Quarantined:
    message = "the worker process died on it, perhaps for want of memory"
    return Quarantined(**fingerprint(job.subject), reason="worker_died", message=message)


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


def _reusable(store: Store, subjects: list[Subject], config: PrepareConfig) -> dict[str, Outcome]:
    """Earlier outcomes that still hold: same relevant keys, same files, shard in place."""
    earlier = dict(store.manifest["configuration"])
    for key in ("split", "subjects_table"):
        earlier.pop(key, None)
    if isinstance(earlier.get("cohort"), dict):
        earlier["cohort"] = {"seed": earlier["cohort"].get("seed")}
    if earlier != config.pixel_keys():
        return {}
    known = _outcomes(store)
    kept: dict[str, Outcome] = {}
    for subject in subjects:
        outcome = known.get(subject.subject)
        if outcome is None:
            continue
        if isinstance(outcome, SubjectEntry):
            usable = store.shard_problem(outcome) is None
        else:
            usable = outcome.reason not in PASSING
        found = fingerprint(subject)
        if usable and all(getattr(outcome, key) == value for key, value in found.items()):
            kept[subject.subject] = outcome
    return kept


def _placed(outcome: Outcome, config: PrepareConfig, subject: Subject) -> Outcome:
    """An earlier outcome with family and split as they are now."""
    if isinstance(outcome, Quarantined):
        return outcome
    split = split_of(subject.family, config.split)
    return replace(outcome, family=subject.family, split=split)


def _unchanged(store: Store, outcomes: dict[str, Outcome], config: PrepareConfig) -> bool:
    return (
        _outcomes(store) == outcomes
        and store.manifest["configuration"] == config.recorded()
        and store.manifest["configuration_digest"] == configuration_digest(config.recorded())
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))


def summary(report: Report, folder: Path) -> list[str]:
    """Lines for people: what is in the store, what is not and why, and where it lies."""
    store = report.store
    lines = []
    if not report.changed:
        lines.append(f"nothing to do: {store.name} is up to date")
    elif report.made < len(store.entries) + len(store.quarantined):
        lines.append(f"{report.made} subjects prepared, the others kept as they were")
    for split in SPLITS:
        entries = store.subjects(split)
        slices = sum(len(entry.slice_indices) for entry in entries)
        families = len({entry.family for entry in entries})
        lines.append(f"{split}: {len(entries)} subjects of {families} families, {slices} slices")
        if not entries and store.manifest["configuration"]["split"][split] > 0:
            lines.append("  nobody fell here: another prepare.split.salt draws again")
    cropped = sum(entry.cropped for entry in store.entries)
    if cropped:
        height, width = (n * store.spacing_mm for n in store.image_shape[1:])
        lines.append(
            f"{cropped} subjects have a brain larger than the {height:g} x {width:g} mm of a "
            "slice: its rim is cut off"
        )
    reasons = Counter(q.reason for q in store.quarantined)
    lines.append(
        f"quarantined: {len(store.quarantined)}" + (f" ({_counted(reasons)})" if reasons else "")
    )
    lines += [f"  {q.subject}: {q.reason}: {q.message}" for q in store.quarantined]
    if store.simulated:
        lines.append("these people are SIMULATED: deformed copies of one template, not real scans")
    lines.append(f"store: {folder}")
    return lines
