"""Volumes as a source: those of a path template, or of simulated people."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.common.errors import InputError, VolumeError
from data_prep.config import PrepareConfig
from data_prep.sources import path_template
from data_prep.sources.path_template import Subject
from data_prep.sources.simulated import cohort
from data_prep.sources.source import Job, Outcome, Source
from data_prep.store import Quarantined, SubjectEntry, write_shard
from data_prep.volume.slices import ORIENTATIONS

# Makes a MONAI Compose; MONAI, which takes seconds, is imported only where volumes are transformed.
Chain = Callable[[PrepareConfig], Any]


def find(config: PrepareConfig, raw: Path) -> Source:
    """All subjects there are, or are to be simulated. raw: folder for simulated files.

    Raises:
        InputError: no subject found, or the optional package for N4 is missing.
    """
    if config.source != "template_cohort":
        subjects, notes = path_template.discover(config)
        return replace(source_of(config, subjects), notes=notes)
    simulated = source_of(config, cohort.people(config, raw))
    return replace(simulated, simulated=True, begin=partial(cohort.make, config, raw))


def source_of(
    config: PrepareConfig, subjects: Sequence[Subject], chain: Chain | None = None
) -> Source:
    """Given subjects as a source, wherever their list comes from.

    Args:
        config: how their volumes become slices.
        subjects: of names of their own.
        chain: makes the steps from a file to its slices, in place of `volume_transforms`. Where
            there are several workers it must be a function of a module. A store does not record it.

    Raises:
        InputError: the optional package for N4 is missing.
    """
    if config.n4:
        from data_prep.volume.transforms import require_n4

        require_n4()
    return Source(
        subjects,
        partial(transform, chain=chain) if chain else transform,
        image_shape=(1, config.size, config.size),
        spacing_mm=config.spacing_mm,
        orientation=ORIENTATIONS[config.plane],
        plane=config.plane,
    )


def transform(job: Job, chain: Chain | None = None) -> list[Outcome]:
    """One subject from file to shard. What is wrong with it becomes a Quarantined, not an error."""
    subject, config = job.item, job.config
    # Taken before reading: a file that changes meanwhile is seen as changed next time.
    taken = subject.fingerprint()
    from data_prep.volume.transforms import apply, volume_transforms

    try:
        if subject.closed:
            raise VolumeError("no_permission", subject.closed)
        if subject.mask_path and not subject.mask_path.is_file():
            raise VolumeError("mask_missing", f"there is no mask {subject.mask}")
        steps = (chain or volume_transforms)(config)
        image, _, scan = apply(steps, subject.source_path, subject.mask_path)
        native = scan.native
    except VolumeError as error:
        return [Quarantined(**taken, reason=error.reason, message=error.message)]
    except MemoryError:
        return [Quarantined(**taken, reason="worker_died", message="memory ran out")]
    except InputError:
        raise
    except Exception as error:  # whatever one file provokes must not cost the others
        message = f"{type(error).__name__}: {error}"
        return [Quarantined(**taken, reason="unexpected", message=" ".join(message.split()))]
    # Outside the try: a full disk is no fault of a scan and ends the run.
    shard = write_shard(job.store, subject.subject, image.numpy())
    return [
        SubjectEntry(
            **taken,
            **shard,
            **subject.assignment(),
            source_sha256=scan.sha256,
            slice_indices=scan.indices,
            affine=tuple(tuple(float(v) for v in row) for row in image.affine),
            cropped=scan.cropped,
            volume=native,
            flags=scan.flags,
            findings=dict(scan.findings),
        )
    ]
