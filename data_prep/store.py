"""The prepared store: writer and reader of the one format between data_prep and pipeline.

    work/stores/<name>/manifest.json      what is there and where it came from; written last
    work/stores/<name>/slices/<id>.<digest>.npy   one shard per subject: uint16 (n, C, H, W); the
                                          subject's name, percent-encoded where it is no plain file
                                          name, and the first digits of the content's SHA-256

A shard's numbers are intensity x 65535, intensity in [0, 1]. A shard's affine maps
(row, column, slice number) to RAS mm, the slice number being the one in `slice_indices`.

In a set of photographs a subject is a block of images of one split, which stand in the order of the
set; `slice_indices` are their numbers in it, the affine is the identity and the plane is "image".
"""

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_file, sha256_of
from data_prep.common.names import DIGITS, shard_name
from data_prep.common.wording import command
from data_prep.config import CHECKS_VERSION, PrepareConfig, where_keys

SPLITS = ("train", "validation", "test")

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SCALE = 65535

IMAGE_PLANE = "image"  # of independent images, which are no slices
CHECKS = "checks_version"  # how strictly volumes were looked at (config.CHECKS_VERSION)
OWN_DIGEST = "manifest_sha256"  # the last key: SHA-256 of the others

# Keys of an entry that are absent where they are empty, and in older manifests.
OPTIONAL = ("labels", "volume", "flags", "findings")


class StoreError(InputError):
    """A store that cannot be read: missing, damaged, or of another schema version."""


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
    flags: what is odd about the source though it is usable (volume/plausibility.py).
    findings: the measures of the volume's brain, by the rows of the table there.
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


def _as_item(entry: SubjectEntry) -> dict[str, Any]:
    return {key: value for key, value in asdict(entry).items() if value or key not in OPTIONAL}


def _made(kind: Any, item: dict[str, Any]) -> Any:
    """A manifest's item as one of these dataclasses, lists turned into tuples."""
    return kind(**{f.name: _tuples(item[f.name]) for f in fields(kind) if f.name in item})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _entry(item: dict[str, Any]) -> SubjectEntry:
    entry: SubjectEntry = _made(SubjectEntry, item)
    if len(entry.labels) not in (0, len(entry.slice_indices)):
        raise ValueError(f"{entry.subject} has {len(entry.labels)} labels")
    return replace(entry, volume=_made(NativeVolume, item["volume"])) if entry.volume else entry


def canonical_digest(value: Any) -> str:
    """SHA-256 of `value` as JSON with sorted keys and no spaces: equal content, equal digest."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_shard(store: Path, subject: str, images: np.ndarray) -> dict[str, Any]:
    """Write (n, C, H, W) as a shard, atomically: intensities in [0, 1], or uint8.

    Its name tells its content: it replaces no other shard, whoever writes it and when, such as a
    worker of a cluster that outlived its run. Bytes come back exactly, as the shard's numbers over
    257. Returns the entry's keys shard, shard_sha256 and shard_bytes.
    """
    if images.dtype == np.uint8:
        scaled = images.astype(np.uint16) * np.uint16(SCALE // 255)
    else:
        scaled = np.round(np.asarray(images, np.float64) * SCALE).astype(np.uint16)
    stream = io.BytesIO()
    np.save(stream, scaled)
    content = stream.getbuffer()
    digest = hashlib.sha256(content).hexdigest()
    shard = f"slices/{shard_name(subject)}.{digest[:DIGITS]}.npy"
    with atomic_file(store / shard) as file:
        file.write(content)
    return {"shard": shard, "shard_sha256": digest, "shard_bytes": len(content)}


def new_manifest(
    *,
    name: str,
    simulated: bool,
    configuration: dict[str, Any],
    image_shape: tuple[int, int, int],
    spacing_mm: float,
    orientation: str,
    plane: str,
    subjects: Iterable[SubjectEntry],
    quarantined: Iterable[Quarantined],
) -> dict[str, Any]:
    """A manifest. spacing_mm is the in-plane pixel size; image_shape is (C, H, W).

    Its configuration's digest knows nothing of the keys that only say where files lie.
    """
    where = where_keys(PrepareConfig)
    decisive = {key: value for key, value in configuration.items() if key not in where}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "simulated": simulated,
        "configuration": configuration,
        "configuration_digest": canonical_digest(decisive),
        "image_shape": list(image_shape),
        "spacing_mm": spacing_mm,
        "orientation": orientation,
        "plane": plane,
        **({} if plane == IMAGE_PLANE else {CHECKS: CHECKS_VERSION}),
        "subjects": [_as_item(s) for s in sorted(subjects, key=lambda s: s.subject)],
        "quarantined": [asdict(q) for q in sorted(quarantined, key=lambda q: q.subject)],
    }
    manifest[OWN_DIGEST] = canonical_digest(manifest)
    return manifest


def write_manifest(store: Path, manifest: dict[str, Any], filename: str = MANIFEST) -> None:
    """Write a manifest, atomically."""
    with atomic_file(store / filename) as file:
        file.write(manifest_bytes(manifest))


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """A manifest as it lies on disk: one form only, so that no byte of the file is free."""
    return (json.dumps(manifest, indent=1) + "\n").encode()


@dataclass(frozen=True)
class Store:
    """An opened store. Pixels are read on demand, memory-mapped and read-only.

    Example:
        >>> store = Store.open("work/stores/demo")
        >>> len(store.subjects("train")), store.image_shape
        (3, (1, 32, 32))
        >>> store.images(store.subjects("test")[0]).dtype  # intensity in [0, 1]
        dtype('float32')
    """

    path: Path
    manifest: dict[str, Any]
    entries: tuple[SubjectEntry, ...]
    quarantined: tuple[Quarantined, ...]

    @classmethod
    def open(
        cls, path: str | Path, filename: str = MANIFEST, *, check_shards: bool = True
    ) -> "Store":
        """Open the store in folder `path` and check all that costs no reading of pixels.

        The last two arguments are the preparer's, which mends what a reader must refuse.

        Raises:
            StoreError: no store there, manifest damaged, of another schema version, a shard
                missing or of the wrong length, a path that leaves the store, a family in two
                splits, a name twice, a manifest that was changed after it was written.
        """
        path = Path(path)
        manifest = _read_manifest(path / filename)
        try:
            entries = tuple(map(_entry, manifest["subjects"]))
            quarantined = tuple(_made(Quarantined, item) for item in manifest["quarantined"])
            store = cls(path, manifest, entries, quarantined)
            _ = store.image_shape, store.simulated, store.digest
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path / filename} is damaged ({error}): prepare it again") from None
        _check_splits(path / filename, entries)
        for entry in entries if check_shards else ():
            if problem := store.shard_problem(entry):
                raise StoreError(problem)
        # Last, as the checks before say more. Older manifests have no digest.
        rest = {key: value for key, value in manifest.items() if key != OWN_DIGEST}
        if manifest.get(OWN_DIGEST, own := canonical_digest(rest)) != own:
            raise StoreError(
                f"{path / filename} was changed after it was written: prepare the store again"
            )
        return store

    @property
    def outcomes(self) -> list[SubjectEntry | Quarantined]:
        """All subjects: the entries, then the quarantined."""
        return [*self.entries, *self.quarantined]

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def simulated(self) -> bool:
        """True if its subjects are simulated people."""
        return bool(self.manifest["simulated"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every slice."""
        channels, height, width = self.manifest["image_shape"]
        return channels, height, width

    @property
    def spacing_mm(self) -> float:
        """In-plane pixel size, mm."""
        return float(self.manifest["spacing_mm"])

    @property
    def orientation(self) -> str:
        """Direction of rows and columns, such as "rows A>P, columns L>R"."""
        return str(self.manifest["orientation"])

    @property
    def plane(self) -> str:
        """axial, coronal or sagittal; image where there are no slices."""
        return str(self.manifest["plane"])

    @property
    def image_set(self) -> bool:
        """True if it holds blocks of independent images, not subjects' slices."""
        return self.plane == IMAGE_PLANE

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the data: configuration, and every subject's split and pixels."""
        subjects = [[e.subject, e.family, e.split, e.shard_sha256] for e in self.entries]
        return canonical_digest([self.manifest["configuration_digest"], subjects])

    def subjects(self, split: str = "all") -> list[SubjectEntry]:
        """The entries of "train", "validation", "test" or "all", sorted by subject."""
        if split not in (*SPLITS, "all"):
            raise InputError(f"split must be train, validation, test or all, got '{split}'")
        return [entry for entry in self.entries if split in (entry.split, "all")]

    def shard_problem(self, entry: SubjectEntry, *, read: bool = False) -> str | None:
        """What is wrong with a shard by its name and length (and its digest: `read`), or None."""
        relative = PurePosixPath(entry.shard)
        file = self.path / relative
        inside = file.resolve().is_relative_to(self.path.resolve())
        if relative.is_absolute() or ".." in relative.parts or not inside:
            return f"{self.path / MANIFEST}: shard '{entry.shard}' lies outside the store"
        if not file.is_file():
            return f"shard {file} is missing: prepare the store again"
        if file.stat().st_size != entry.shard_bytes:
            return f"shard {file} has the wrong length: prepare the store again"
        if read and sha256_of(file) != entry.shard_sha256:
            return f"shard {file} is damaged: its digest is not the manifest's"
        return None

    def slices(self, entry: SubjectEntry) -> np.memmap:
        """uint16 (n, C, H, W), intensity x 65535, memory-mapped.

        Raises:
            StoreError: the shard does not hold what the manifest says.
        """
        file = self.path / entry.shard
        try:
            pixels = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"{file} cannot be read ({error}): prepare it again") from None
        shape = (len(entry.slice_indices), *self.image_shape)
        if pixels.dtype != np.uint16 or pixels.shape != shape:
            told = f"holds {pixels.dtype} {pixels.shape}, not uint16 {shape}: prepare it again"
            raise StoreError(f"{file} {told}")
        return pixels

    def images(self, entry: SubjectEntry) -> np.ndarray:
        """float32 (n, C, H, W), intensity in [0, 1]. Raises StoreError, as `slices`."""
        return self.slices(entry).astype(np.float32) / np.float32(65535)

    def slice_affine(self, entry: SubjectEntry, n: int) -> np.ndarray:
        """(4, 4) float64 of the entry's n-th slice: (row, column, 0, 1) to RAS mm.

        A NIfTI image of shape (H, W, 1) with this affine overlays the volume that the slice is of:

            nibabel.Nifti1Image(store.images(entry)[n, 0, :, :, None], store.slice_affine(entry, n))

        Raises:
            IndexError: there is no n-th slice.
        """
        affine = np.array(entry.affine, np.float64)
        affine[:, 3] += affine[:, 2] * entry.slice_indices[n]
        return affine


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(
            f"there is no prepared store at {path.parent}: prepare it first "
            f"({command('prepare', makes=path.parent.name)})"
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}): prepare it again") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: delete "
            f"{path.parent} and prepare it again"
        )
    return manifest


def _check_splits(path: Path, entries: tuple[SubjectEntry, ...]) -> None:
    """Refuse a subject that is there twice, and a family or a shard in two splits."""
    splits = defaultdict(set)
    counts = Counter(entry.subject for entry in entries)
    for entry in entries:
        if entry.split not in SPLITS:
            raise StoreError(f"{path}: subject {entry.subject} has the split '{entry.split}'")
        if counts[entry.subject] > 1:
            raise StoreError(f"{path}: subject {entry.subject} is there twice: prepare it again")
        splits[f"family {entry.family}"].add(entry.split)
        splits[f"shard {entry.shard}"].add(entry.split)
    for what, its in splits.items():
        if len(its) > 1:
            raise StoreError(f"{path}: {what} is in {' and '.join(sorted(its))}: prepare it again")
