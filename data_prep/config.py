"""The `prepare` section of a configuration file."""

import math
import re
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Literal

# Raised when the arithmetic from volume to slices changes: older shards are then made anew.
TRANSFORM_VERSION = 1

# Sources whose items are blocks of independent images with official splits, not people.
IMAGE_SETS = ("celeba", "cifar10")

# What each of them reads; every other key but these says something about volumes.
_EVERYWHERE = (
    "name", "source", "root", "size", "workers", "scheduler", "dry_run", "max_quarantined",
    "track",
)  # fmt: skip
_OWN = {"celeba": ("crop", "download"), "cifar10": ("validation_images", "download")}

# Keys that no source of volumes reads.
_OF_IMAGE_SETS = ("crop", "validation_images", "download")

# Keys that say whether and how the work is done, and nothing of what comes out.
_OF_THE_WORK = (
    "name", "workers", "scheduler", "dry_run", "max_quarantined", "track", "subjects_table_extra",
)  # fmt: skip

# Width and height of CelebA's aligned images, pixels.
CELEBA_SHAPE = (178, 218)

# A name that is one plain file name on every system: no folders, no hidden files.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_template(key: str, template: str) -> None:
    parts = PurePosixPath(template).parts
    _require("{subject}" in template, f"prepare.{key} must contain {{subject}}, got '{template}'")
    _require(
        not PurePosixPath(template).is_absolute() and ".." not in parts,
        f"prepare.{key} must be a path below prepare.root, got '{template}'",
    )
    _require(
        not template.lower().endswith((".dcm", ".ima")),
        f"prepare.{key}: DICOM is not read: convert the scans to NIfTI with dcm2niix first,"
        f" got '{template}'",
    )


Plane = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True)
class SplitConfig:
    """Shares of families per split (they sum to 1), and a salt that draws another split."""

    train: float = 0.7
    validation: float = 0.15
    test: float = 0.15
    salt: str = ""

    def __post_init__(self) -> None:
        shares = {"train": self.train, "validation": self.validation, "test": self.test}
        for key, share in shares.items():
            _require(0 <= share <= 1, f"prepare.split.{key} must be between 0 and 1, got {share}")
        total = sum(shares.values())
        _require(
            abs(total - 1) < 1e-6,
            f"prepare.split: train + validation + test must sum to 1, got {total:g}",
        )


@dataclass(frozen=True)
class CohortConfig:
    """The simulated cohort: how many people, and the seed that decides who they are."""

    people: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            1 <= self.people <= 9999,
            f"prepare.cohort.people must be from 1 to 9999, got {self.people}",
        )
        _require(self.seed >= 0, f"prepare.cohort.seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class PrepareConfig:
    """How raw images become a prepared store.

    Args:
        name: the store's name; empty means the name of the configuration file.
        source: `hcp` reads volumes by a path template; `template_cohort` simulates people first;
            `celeba` and `cifar10` read those image sets, with their official splits, and know
            only name, root, size, workers, max_quarantined, track, download and the key of their
            own.
        root: the folder that the templates start from (hcp), or that holds the set's files.
        template: path of an image below root, with one or more {subject}, and {session} where
            people were scanned repeatedly: each session then is an item of its own.
        mask_template: the same for a brain mask; empty means that the brain is where the image > 0.
        subjects_table: csv with Subject and Family_ID; absolute or relative to root.
        subjects_table_extra: what a row of somebody without an image is: an error, or passed over.
        plane: which way slices are cut.
        size: side of the square slices, pixels.
        spacing_mm: in-plane distance between pixels, mm.
        slice_spacing_mm: distance between the chosen native slices, mm, to the nearest whole slice.
        min_brain_area: least brain area of a slice, as a share of the subject's largest slice.
        max_slices: most slices per subject, evenly thinned; 0 means no limit.
        lower_percentile: intensity percentile inside the brain that becomes 0.
        upper_percentile: intensity percentile inside the brain that becomes 1.
        n4: correct the bias field with N4 (needs the optional package SimpleITK; slow).
        split: shares of train, validation and test.
        cohort: the simulated cohort (source template_cohort).
        workers: worker processes; 0 means one a core; 1 means none but this one, which a subject
            that needs more memory than there is then ends.
        scheduler: address of a Dask scheduler (tcp://host:8786) whose workers do the work instead;
            they must see the same files under the same paths.
        dry_run: list what would be done and why, and write nothing.
        max_quarantined: more unusable subjects (celeba: images) make the exit code 3.
        track: log the quality report of a store that changed to MLflow.
        crop: side of the central square of an image that is kept, pixels; 0 means the largest
            (source celeba).
        validation_images: how many of the last training images are for validation, as there is
            no official validation set (source cifar10).
        download: fetch what root lacks with torchvision's downloader (celeba, cifar10).

    Raises:
        ValueError: naming the key that is wrong.
    """

    name: str = ""
    source: Literal["hcp", "template_cohort", "celeba", "cifar10"] = "template_cohort"
    root: str = ""
    template: str = "{subject}/T1w/T1w_acpc_dc_restore_brain.nii.gz"
    mask_template: str = ""
    subjects_table: str = ""
    subjects_table_extra: Literal["refuse", "ignore"] = "refuse"
    plane: Plane = "axial"
    size: int = 64
    spacing_mm: float = 3.2
    slice_spacing_mm: float = 4.0
    min_brain_area: float = 0.4
    max_slices: int = 0
    lower_percentile: float = 0.5
    upper_percentile: float = 99.5
    n4: bool = False
    split: SplitConfig = field(default_factory=SplitConfig)
    cohort: CohortConfig = field(default_factory=CohortConfig)
    workers: int = 0
    scheduler: str = ""
    dry_run: bool = False
    max_quarantined: int = 0
    track: bool = True
    crop: int = 148
    validation_images: int = 5000
    download: bool = False

    def __post_init__(self) -> None:
        _require(
            not self.name or PLAIN_NAME.fullmatch(self.name) is not None,
            f"prepare.name must be a plain file name, got '{self.name}'",
        )
        _require(
            self.source in ("hcp", "template_cohort", *IMAGE_SETS),
            f"prepare.source must be hcp, template_cohort, celeba or cifar10, got '{self.source}'",
        )
        _require(
            self.plane in ("axial", "coronal", "sagittal"),
            f"prepare.plane must be axial, coronal or sagittal, got '{self.plane}'",
        )
        _check_template("template", self.template)
        if self.mask_template:
            _check_template("mask_template", self.mask_template)
            _require(
                "{session}" not in self.mask_template or "{session}" in self.template,
                "prepare.mask_template has {session}, so prepare.template must have it too",
            )
        _require(
            self.subjects_table_extra in ("refuse", "ignore"),
            "prepare.subjects_table_extra must be refuse or ignore,"
            f" got '{self.subjects_table_extra}'",
        )
        _require(
            self.size in (32, 64, 128, 256),
            f"prepare.size must be 32, 64, 128 or 256, got {self.size}",
        )
        for key in ("spacing_mm", "slice_spacing_mm"):
            value = getattr(self, key)
            _require(
                math.isfinite(value) and 0 < value <= 100,
                f"prepare.{key} must be above 0 and at most 100 mm, got {value}",
            )
        _require(
            0 < self.min_brain_area <= 1,
            f"prepare.min_brain_area must be above 0 and at most 1, got {self.min_brain_area}",
        )
        low, high = self.lower_percentile, self.upper_percentile
        _require(
            0 <= low < high <= 100,
            "prepare.lower_percentile must be below prepare.upper_percentile,"
            f" both from 0 to 100, got {low} and {high}",
        )
        for key in ("max_slices", "workers", "max_quarantined"):
            value = getattr(self, key)
            _require(value >= 0, f"prepare.{key} must not be negative, got {value}")
        self._check_image_set()

    def _check_image_set(self) -> None:
        """Refuse keys that the source does not read: setting one would change nothing."""
        image_set = self.source in IMAGE_SETS
        read = (*_EVERYWHERE, *_OWN[self.source]) if image_set else ()
        for key in fields(self):
            foreign = key.name not in read if image_set else key.name in _OF_IMAGE_SETS
            default = key.default if key.default_factory is MISSING else key.default_factory()
            _require(
                not foreign or getattr(self, key.name) == default,
                f"prepare.{key.name} says nothing to the source {self.source}: leave it out"
                + (" (the splits are the official ones)" if key.name == "split" else ""),
            )
        _require(
            self.source != "cifar10" or self.size == 32,
            f"prepare.size must be 32 for the source cifar10, got {self.size}",
        )
        _require(
            0 <= self.crop <= min(CELEBA_SHAPE),
            f"prepare.crop must be from 0 to {min(CELEBA_SHAPE)}, got {self.crop}",
        )
        _require(
            self.validation_images > 0,
            f"prepare.validation_images must be above 0, got {self.validation_images}",
        )

    def recorded(self) -> dict[str, Any]:
        """The keys that decide what the store holds, as the manifest records them."""
        values = asdict(self)
        if self.source in IMAGE_SETS:
            kept = ("source", "root", "size", *_OWN[self.source])
            values = {key: values[key] for key in kept if key != "download"}
            return values | {"transform_version": TRANSFORM_VERSION}
        for key in (*_OF_THE_WORK, *_OF_IMAGE_SETS):
            del values[key]
        if self.source == "template_cohort":
            # The simulated files stand at a fixed place in a fixed layout: these keys are not used.
            for key in ("root", "template", "mask_template", "subjects_table"):
                del values[key]
        else:
            del values["cohort"]
        values["transform_version"] = TRANSFORM_VERSION
        return values

    def pixel_keys(self) -> dict[str, Any]:
        """The keys that decide a shard's bytes, given the source file."""
        return pixel_keys(self.recorded())


def pixel_keys(recorded: dict[str, Any]) -> dict[str, Any]:
    """Of the keys that a manifest records, those that decide a shard's bytes, given its source.

    Split, families and the number of people are not among them, nor is the folder that the files
    lie in: they change without rewriting a pixel.
    """
    values = {k: v for k, v in recorded.items() if k not in ("root", "split", "subjects_table")}
    if isinstance(values.get("cohort"), dict):
        values["cohort"] = {"seed": values["cohort"].get("seed")}
    return values
