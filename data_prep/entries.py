"""A manifest's entry for every subject found: prepared, or quarantined with a reason."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

# Keys of an entry that are absent where they are empty, and in older manifests.
OPTIONAL = ("labels", "volume", "flags", "findings")


@dataclass(frozen=True)
class NativeVolume:
    """A volume as it lay on disk.

    shape: voxels along its three axes as stored. spacing_mm: voxel size along them. orientation:
    where they run to, such as "LAS". low, high: the intensities inside the brain, in the file's own
    units, that became 0 and 1 (after N4, where it was asked for).
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    low: float
    high: float


@dataclass(frozen=True)
class SubjectEntry:
    """One subject in the manifest.

    source is relative to the source's root, shard to the store. bytes and mtime_ns tell whether a
    source has changed since. affine: (4, 4), (row, column, slice number, 1) to RAS mm.
    labels: the class of each image, or empty where there are no classes.
    volume: what the volume was like, or None: images of a set, and stores of earlier versions.
    flags: what is odd about the source though it is usable, as flags.py has them.
    findings: what volume/plausibility.py measured, by the rows of its table.
    """

    subject: str
    family: str
    split: str
    source: str
    source_sha256: str
    source_bytes: int
    source_mtime_ns: int
    mask: str
    mask_bytes: int
    mask_mtime_ns: int
    shard: str
    shard_sha256: str
    shard_bytes: int
    slice_indices: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    cropped: bool
    labels: tuple[int, ...] = ()
    volume: NativeVolume | None = None
    flags: tuple[str, ...] = ()
    findings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Quarantined:
    """A subject that could not be prepared: a short reason code and the explanation.

    An image that is missing from its block has the name BLOCK/FILE, and the block's bytes and time.
    """

    subject: str
    source: str
    source_bytes: int
    source_mtime_ns: int
    mask: str
    mask_bytes: int
    mask_mtime_ns: int
    reason: str
    message: str


def as_item(entry: SubjectEntry) -> dict[str, Any]:
    """An entry as a manifest item; optional keys are there only where they are not the default."""
    values = asdict(entry)
    return {key: value for key, value in values.items() if value or key not in OPTIONAL}


def from_item(kind: Any, item: dict[str, Any]) -> Any:
    """A manifest item as its dataclass, lists turned into tuples.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: it is none.
    """
    values = {f.name: item[f.name] for f in fields(kind) if f.name not in OPTIONAL}
    if kind is SubjectEntry:
        values["flags"] = tuple(str(flag) for flag in item.get("flags", ()))
        values["findings"] = {str(k): float(v) for k, v in item.get("findings", {}).items()}
        values["labels"] = tuple(int(label) for label in item.get("labels", ()))
        if len(values["labels"]) not in (0, len(values["slice_indices"])):
            raise ValueError(f"{item['subject']} has {len(values['labels'])} labels")
        values["volume"] = _volume(item["volume"]) if "volume" in item else None
        values["slice_indices"] = tuple(int(i) for i in values["slice_indices"])
        values["affine"] = tuple(tuple(float(v) for v in row) for row in values["affine"])
    return kind(**values)


def _volume(item: dict[str, Any]) -> NativeVolume:
    x, y, z = (int(n) for n in item["shape"])
    dx, dy, dz = (float(v) for v in item["spacing_mm"])
    code = str(item["orientation"])
    return NativeVolume((x, y, z), (dx, dy, dz), code, float(item["low"]), float(item["high"]))
