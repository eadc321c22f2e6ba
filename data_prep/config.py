"""The `prepare` section of a configuration file."""

# ruff: noqa: RUF009 (_key makes a dataclass field)

import json
import re
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Literal

from data_prep.common.errors import require
from data_prep.volume.plausibility import PlausibilityConfig

# Raised when the arithmetic from volume to slices changes: older shards are then made anew.
TRANSFORM_VERSION = 1

# Raised when more or less is refused or flagged: volumes are then read anew, with the same pixels.
CHECKS_VERSION = 1

# Sources whose items are subjects' volumes, and those whose items are blocks of independent images
# with official splits.
VOLUMES = ("hcp", "template_cohort")
IMAGE_SETS = ("celeba", "cifar10")

SIZES = (32, 64, 128, 256)
AXES = ("LR", "AP", "IS")

# Width and height of CelebA's aligned images, pixels.
CELEBA_SHAPE = (178, 218)

# A name that is one plain file name on every system: no folders, no hidden files.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _check_template(key: str, template: str) -> None:
    path = PurePosixPath(template)
    _check("{subject}" in template, f"prepare.{key} must contain {{subject}}, got '{template}'")
    _check(
        not path.is_absolute() and ".." not in path.parts,
        f"prepare.{key} must be a path below prepare.root, got '{template}'",
    )
    _check(
        path.suffix.lower() not in (".dcm", ".ima"),
        f"prepare.{key}: DICOM is not read: convert the scans to NIfTI with dcm2niix first,"
        f" got '{template}'",
    )


def _key(
    default: Any,
    *sources: str,
    decides: Literal["pixels", "store", "nothing"] = "pixels",
    where: bool = False,
    rare: bool = False,
) -> Any:
    """A key of the configuration, with what the program has to know of it.

    Args:
        default: its value, or a class whose instance is the value.
        sources: those that read it; none given means all.
        decides: "pixels" of the shards, only what else the "store" records, or "nothing" of what
            comes out: how the work is done.
        where: whether it only says where files lie on this machine.
        rare: whether a manifest has it only where it is not the default, so that stores from before
            there was such a key keep their digest.
    """
    metadata = {
        "sources": sources or VOLUMES + IMAGE_SETS,
        "decides": decides,
        "where": where,
        "rare": rare,
    }
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def where_keys(section: Any) -> frozenset[str]:
    """Fields of a dataclass that only say where files lie on this machine: metadata "where"."""
    return frozenset(key.name for key in fields(section) if key.metadata.get("where"))


Plane = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True)
class SplitConfig:
    """Shares of families per split (they sum to 1), and what draws another split."""

    train: float = 0.7
    """Share of families to train on."""
    validation: float = 0.15
    """Share of families to choose by."""
    test: float = 0.15
    """Share of families to score."""
    salt: str = ""
    """Any text; another one draws another split."""
    fold: str = ""
    """Cross-validation: `2/5` tests the second of five equal parts; train and validation share the
    rest as their shares are to each other."""

    def __post_init__(self) -> None:
        require("prepare.split", self, ">= 0, <= 1", "train", "validation", "test")
        total = self.train + self.validation + self.test
        _check(
            abs(total - 1) < 1e-6,
            f"prepare.split: train + validation + test must sum to 1, got {total:g}",
        )
        number, folds = self.folds if re.fullmatch(r"\d+/\d+", self.fold) else (0, 0)
        _check(
            not self.fold or (1 <= number <= folds and folds >= 2 and self.test < 1),
            f"prepare.split.fold must be a part of several, such as 2/5, got '{self.fold}'",
        )

    @property
    def folds(self) -> tuple[int, int]:
        """Number of the fold, from 1, and of all folds. Only where there are folds."""
        number, folds = self.fold.split("/")
        return int(number), int(folds)

    @property
    def shares(self) -> dict[str, float]:
        """Share of families by split."""
        if not self.fold:
            return {"train": self.train, "validation": self.validation, "test": self.test}
        test = 1 / self.folds[1]
        rest = (1 - test) / (self.train + self.validation)
        return {"train": self.train * rest, "validation": self.validation * rest, "test": test}


@dataclass(frozen=True)
class CohortConfig:
    """The simulated cohort: how many people, and the seed that decides who they are."""

    people: int = 48
    """Number of people who are simulated."""
    seed: int = 0
    """Decides who they are."""

    def __post_init__(self) -> None:
        require("prepare.cohort", self, ">= 1, <= 9999", "people")
        require("prepare.cohort", self, ">= 0", "seed")


@dataclass(frozen=True)
class PrepareConfig:
    """The way from raw images to a prepared store.

    A key that the source does not read keeps its default: any other value is refused.

    Args:
        name: the store's name; empty means the name of the configuration file.
        source: `hcp` reads volumes by a path template; `template_cohort` simulates people first;
            `celeba` and `cifar10` read those image sets, with their official splits.
        root: the folder that the templates start from (hcp), or that holds the set's files.
        template: path of an image below root, with one or more {subject}, and {session} where
            subjects were scanned repeatedly: each session is then an item of its own.
        mask_template: the same for a brain mask; empty means that the brain is where the image > 0.
        mask_threshold: brain is where a mask of several values has this one or more; a mask with
            one value above 0 is brain there, whatever the value.
        assume_orientation: where the axes of a volume run to whose header does not say (sform and
            qform codes 0, Analyze), such as RAS or LAS; empty means that such volumes are refused.
        subjects_table: csv with Subject and Family_ID; absolute or relative to root.
        subjects_table_extra: what a row of a subject without an image is: an error, or skipped.
        plane: which way slices are cut.
        size: side of the square slices, pixels: 32, 64, 128 or 256.
        spacing_mm: in-plane distance between pixels, mm; size times it must hold a brain.
        slice_spacing_mm: distance between the chosen native slices, mm, to the nearest whole slice.
        min_brain_area: least brain area of a slice, as a share of the subject's largest slice.
        max_slices: most slices per subject, evenly thinned; 0 means no limit.
        lower_percentile: intensity percentile inside the brain that becomes 0.
        upper_percentile: intensity percentile inside the brain that becomes 1.
        n4: correct the bias field with N4 (needs the optional package SimpleITK; slow).
        split: shares of train, validation and test, or a fold.
        cohort: the simulated cohort.
        plausibility: what to expect of a brain, and what to do where it is otherwise.
        workers: worker processes; 0 means one per core; 1 means this process alone, which ends if
            a subject needs more memory than there is.
        scheduler: address of a Dask scheduler (tcp://host:8786) whose workers do the work instead;
            they must see the same files under the same paths.
        check: read every shard that is kept, and make those anew that are damaged.
        dry_run: list what would be done and why, and write nothing.
        max_quarantined: more unusable subjects (celeba: images) make the exit code 3.
        track: log the quality report of a store that changed to MLflow.
        crop: side of the central square of an image that is kept, pixels; 0 means the largest.
        validation_images: how many of the last training images are for validation, as there is
            no official validation set.
        download: fetch what root lacks with torchvision's downloader.

    Raises:
        ValueError: naming the key that is wrong.
    """

    name: str = _key("", decides="nothing")
    source: Literal["hcp", "template_cohort", "celeba", "cifar10"] = _key("template_cohort")
    root: str = _key("", "hcp", *IMAGE_SETS, decides="store", where=True)
    template: str = _key("{subject}/T1w/T1w_acpc_dc_restore_brain.nii.gz", "hcp")
    mask_template: str = _key("", "hcp")
    mask_threshold: float = _key(0.5, "hcp", rare=True)
    assume_orientation: str = _key("", "hcp", decides="store", rare=True)
    subjects_table: str = _key("", "hcp", decides="store", where=True)
    subjects_table_extra: Literal["refuse", "ignore"] = _key("refuse", "hcp", decides="nothing")
    plane: Plane = _key("axial", *VOLUMES)
    size: int = _key(64)
    spacing_mm: float = _key(3.2, *VOLUMES)
    slice_spacing_mm: float = _key(4.0, *VOLUMES)
    min_brain_area: float = _key(0.4, *VOLUMES)
    max_slices: int = _key(0, *VOLUMES)
    lower_percentile: float = _key(0.5, *VOLUMES)
    upper_percentile: float = _key(99.5, *VOLUMES)
    n4: bool = _key(False, *VOLUMES)
    split: SplitConfig = _key(SplitConfig, *VOLUMES, decides="store")
    cohort: CohortConfig = _key(CohortConfig, "template_cohort")
    plausibility: PlausibilityConfig = _key(
        PlausibilityConfig, *VOLUMES, decides="store", rare=True
    )
    workers: int = _key(0, decides="nothing")
    scheduler: str = _key("", decides="nothing")
    check: bool = _key(False, decides="nothing")
    dry_run: bool = _key(False, decides="nothing")
    max_quarantined: int = _key(0, decides="nothing")
    track: bool = _key(True, decides="nothing")
    crop: int = _key(148, "celeba")
    validation_images: int = _key(5000, "cifar10")
    download: bool = _key(False, *IMAGE_SETS, decides="nothing")

    def __post_init__(self) -> None:
        _check(
            not self.name or PLAIN_NAME.fullmatch(self.name) is not None,
            f"prepare.name must be a plain file name, got '{self.name}'",
        )
        _check_template("template", self.template)
        if self.mask_template:
            _check_template("mask_template", self.mask_template)
            _check(
                "{session}" not in self.mask_template or "{session}" in self.template,
                "prepare.mask_template has {session}, so prepare.template must have it too",
            )
        axes = [next((a for a in AXES if c in a), "") for c in self.assume_orientation]
        _check(
            not axes or sorted(axes) == sorted(AXES),
            "prepare.assume_orientation must say where the three axes run to, such as RAS or LAS,"
            f" got '{self.assume_orientation}'",
        )
        _check(self.size in SIZES, f"prepare.size must be 32, 64, 128 or 256, got {self.size}")
        _check(
            self.source != "cifar10" or self.size == 32,
            f"prepare.size must be 32 for the source cifar10, got {self.size}",
        )
        require("prepare", self, "> 0, < inf", "mask_threshold")
        require("prepare", self, "> 0, <= 100", "spacing_mm", "slice_spacing_mm")
        require("prepare", self, "> 0, <= 1", "min_brain_area")
        require("prepare", self, ">= 0, <= 100", "lower_percentile", "upper_percentile")
        _check(
            self.lower_percentile < self.upper_percentile,
            "prepare.lower_percentile must be below prepare.upper_percentile,"
            f" got {self.lower_percentile} and {self.upper_percentile}",
        )
        require("prepare", self, ">= 0", "max_slices", "workers", "max_quarantined")
        require("prepare", self, f">= 0, <= {min(CELEBA_SHAPE)}", "crop")
        require("prepare", self, "> 0", "validation_images")
        for key in fields(self):
            sources = key.metadata["sources"]
            _check(
                self.source in sources or getattr(self, key.name) == default_of(key),
                f"prepare.{key.name} belongs to source {' or '.join(sources)}, not {self.source}:"
                " leave it out",
            )

    def recorded(self) -> dict[str, Any]:
        """The keys that decide what the store holds, as the manifest records them."""
        values = json.loads(json.dumps(asdict(self)))  # tuples become lists, as they will be read
        kept = {
            key.name: values[key.name]
            for key in fields(self)
            if self.source in key.metadata["sources"]
            and key.metadata["decides"] != "nothing"
            and not (key.metadata["rare"] and getattr(self, key.name) == default_of(key))
        }
        if "split" in kept and not self.split.fold:  # as in stores from before there were folds
            del kept["split"]["fold"]
        return kept | {"transform_version": TRANSFORM_VERSION}

    def pixel_keys(self) -> dict[str, Any]:
        """The keys that decide a shard's bytes, given the source file."""
        return pixel_keys(self.recorded())


def default_of(key: Field[Any]) -> Any:
    """The default of a dataclass's field."""
    return key.default if key.default_factory is MISSING else key.default_factory()


def pixel_keys(recorded: dict[str, Any]) -> dict[str, Any]:
    """Of the keys that a manifest records, those that decide a shard's bytes, given its source.

    Not the split, the families, the number of people or the folder of the files: they change
    without rewriting a pixel.
    """
    other = {key.name for key in fields(PrepareConfig) if key.metadata["decides"] == "store"}
    values = {key: value for key, value in recorded.items() if key not in other}
    if isinstance(values.get("cohort"), dict):
        values["cohort"] = {"seed": values["cohort"].get("seed")}
    return values
