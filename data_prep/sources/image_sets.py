"""CelebA and CIFAR-10, with their official splits: blocks of images as the store's subjects.

A block is a run of images of one split, in the order of the set. Images of a set are independent of
each other, so scores averaged over blocks are those of the images, and drawing blocks anew gives an
honest interval.

CelebA (Liu 2015) is the aligned and cropped JPEG files beside the partition file. CIFAR-10
(Krizhevsky 2009) is its python batches; a batch is a pickle, and a pickle can run code: it is read
as arrays alone (common.unpickling), which torchvision's reader does not do.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_prep.common.errors import InputError, VolumeError
from data_prep.common.files import expanded
from data_prep.common.unpickling import read_arrays
from data_prep.config import CELEBA_SHAPE, PLAIN_NAME, PrepareConfig
from data_prep.sources.source import Item, Job, Outcome, Source
from data_prep.store import SPLITS, Quarantined, SubjectEntry, canonical_digest, write_shard

Value = TypeVar("Value")

# A block is evaluated at once: at 256² with three channels 128 images are 100 MB of float32.
MOST_IMAGES, MOST_PIXELS = 500, 2**23

IDENTITY = tuple(tuple(float(v) for v in row) for row in np.eye(4))

IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"

# MD5 sums of the official files, as torchvision publishes them in torchvision/datasets/cifar.py.
TRAINING = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
TEST = {"test_batch": "40351d587109b95175f43aff81a1287e"}
SIDE, CLASSES = 32, 10
VALUES = 3 * SIDE * SIDE

# Per set: its folder's name, files of which at least one marks it, and where it is published.
CELEBA = ("celeba", (PARTITION, IMAGES), "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html")
CIFAR10 = (
    "cifar-10-batches-py",
    (*TRAINING, *TEST),
    "https://www.cs.toronto.edu/~kriz/cifar.html",
)


@dataclass(frozen=True)
class Block:
    """Images of one split. numbers: their places in the set, which is their official order."""

    root: Path
    split: str
    numbers: Sequence[int]

    @property
    def subject(self) -> str:
        """Its name in the store."""
        return f"{self.split}-{self.numbers[0]:06d}"

    def assignment(self) -> dict[str, Any]:
        """A family of its own, in the official split."""
        return {"family": self.subject, "split": self.split}

    def _fingerprint(self, source: str, size: int, time: int) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "source": source,
            "source_bytes": size,
            "source_mtime_ns": time,
            "mask": "",
            "mask_bytes": 0,
            "mask_mtime_ns": 0,
        }


@dataclass(frozen=True)
class Photographs(Block):
    """A block of files of CelebA."""

    files: tuple[str, ...]

    def fingerprint(self) -> dict[str, Any]:
        """Bytes are the sum over the files; the time is a number made of rows, names, sizes and
        times, so that any change of one file changes it."""
        images = zip(self.numbers, self.files, strict=True)
        seen = [(row, name, *_status(self.root / IMAGES / name)) for row, name in images]
        source = f"{IMAGES}/{self.files[0]} to {self.files[-1]}"
        time = int(canonical_digest(seen)[:15], 16)
        return self._fingerprint(source, sum(size for *_, size, _ in seen), time)


@dataclass(frozen=True)
class BatchPart(Block):
    """Images of one batch file of CIFAR-10, from `start` on.

    Numbers run through the five training batches, and through the test batch on their own, as the
    indices of torchvision.datasets.CIFAR10 do.
    """

    file: str
    start: int

    def fingerprint(self) -> dict[str, Any]:
        """Size and time of the batch."""
        source = f"{self.file}[{self.start}:{self.start + len(self.numbers)}]"
        return self._fingerprint(source, *_status(self.root / self.file))


def _status(path: Path) -> tuple[int, int]:
    """Size in bytes and time in ns; -1 where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def find(config: PrepareConfig, notify: Callable[[str], None]) -> Source:
    """All blocks of the set that the configuration names; downloaded if asked for.

    Raises:
        InputError: root is not set or holds nothing of the set, the download failed, a file is
            missing or not what it should be, or nothing would be left for training.
    """
    celeba = config.source == "celeba"
    items = list(_celeba(config, notify) if celeba else _cifar10(config, notify))
    return Source(
        items,
        photographs_to_shard if celeba else batch_part_to_shard,
        image_shape=(3, config.size, config.size),
        spacing_mm=1.0,  # pixels have no size
        orientation="rows down, columns right",
        plane="image",
        noun="image",
    )


def _locate(
    config: PrepareConfig, of_set: tuple[str, Sequence[str], str], notify: Callable[[str], None]
) -> Path:
    """The folder that holds the set: prepare.root, or the set's folder in it."""
    folder, files, page = of_set
    way_out = f"download the set from {page} and give its folder as prepare.root"
    if not config.root:
        raise InputError(f"prepare.root is not set: {way_out}")
    root = expanded(config.root, "prepare.root")
    places = (root, root / folder)
    if config.download and not any(all((p / name).exists() for name in files) for p in places):
        notify(f"downloading {config.source} into {root}")
        try:
            from torchvision import datasets  # it takes seconds

            root.mkdir(parents=True, exist_ok=True)
            # It checks the published MD5 sums.
            kinds: dict[str, Any] = {"celeba": datasets.CelebA, "cifar10": datasets.CIFAR10}
            kinds[config.source](root, download=True)
        except Exception as error:  # no network, no gdown, a quota: whatever it is, say so
            message = f"{type(error).__name__}: {error}"
            raise InputError(f"prepare.download failed ({message}): {way_out}") from None
    for place in places:
        if any((place / name).exists() for name in files):
            return place
    lack = "there is no folder" if not root.is_dir() else f"nothing of {config.source} is in"
    raise InputError(f"prepare.root: {lack} {root}: {way_out}, or set prepare.download")


def _cut(items: Sequence[Value], side: int) -> Iterator[tuple[int, Sequence[Value]]]:
    """Runs of `items`, images of side x side pixels, each with the index of its first."""
    step = min(MOST_IMAGES, MOST_PIXELS // side**2)
    for start in range(0, len(items), step):
        yield start, items[start : start + step]


def _celeba(config: PrepareConfig, notify: Callable[[str], None]) -> Iterator[Item]:
    root = _locate(config, CELEBA, notify)
    partition = read_partition(root / PARTITION)
    if not (root / IMAGES).is_dir():
        raise InputError(
            f"prepare.root: there is no folder {root / IMAGES}: unpack {IMAGES}.zip from"
            f" {CELEBA[2]}"
        )
    for code, split in enumerate(SPLITS):
        rows = [(row, name) for row, (name, part) in enumerate(partition) if part == code]
        for _, part in _cut(rows, config.size):
            numbers, names = zip(*part, strict=True)
            yield Photographs(root, split, numbers, names)


def read_partition(path: Path) -> list[tuple[str, int]]:
    """File names in the official order, each with 0 (training), 1 (validation) or 2 (test).

    Raises:
        InputError: no such file, or a line that is not a new file name and one of these numbers.
    """
    anew = f"get {PARTITION} anew from {CELEBA[2]}"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", error)
        raise InputError(f"{path} cannot be read ({why}): {anew}") from None
    parts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not PLAIN_NAME.fullmatch(words[0]) or words[1] not in ("0", "1", "2"):
            raise InputError(
                f"{path}, line {number}: '{line[:80]}' is not a file name and 0, 1 or 2: {anew}"
            )
        if words[0] in parts:
            raise InputError(f"{path}, line {number} names {words[0]} a second time")
        parts[words[0]] = int(words[1])
    if not parts:
        raise InputError(f"{path} is empty: {anew}")
    return list(parts.items())


def photographs_to_shard(job: Job) -> list[Outcome]:
    """A block from JPEG files to shard; unusable images are left out, each with its reason."""
    block, config = job.item, job.config
    # Taken before reading: a file that changes meanwhile is seen as changed next time.
    taken = block.fingerprint()
    digest = hashlib.sha256()
    rows, images = [], []
    outcomes: list[Outcome] = []
    for row, name in zip(block.numbers, block.files, strict=True):
        try:
            raw = _read(block.root / IMAGES / name)
            images.append(decode(raw, name, config.crop, config.size))
        except VolumeError as error:
            own = taken | {"subject": f"{block.subject}/{name}", "source": f"{IMAGES}/{name}"}
            outcomes.append(Quarantined(**own, reason=error.reason, message=error.message))
            continue
        rows.append(row)
        digest.update(raw)
    if images:
        shard = write_shard(job.store, block.subject, np.stack(images))
        outcomes.append(_entry(block, taken | shard, digest.hexdigest(), rows))
    return outcomes


def _entry(
    block: Block, keys: dict[str, Any], digest: str, rows: Sequence[int], labels: Any = ()
) -> SubjectEntry:
    """keys: of the block's fingerprint and its shard."""
    return SubjectEntry(
        **keys,
        **block.assignment(),
        source_sha256=digest,
        slice_indices=tuple(rows),
        affine=IDENTITY,
        cropped=False,
        labels=labels,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise VolumeError("missing", f"there is no {path.name}") from None
    except OSError as error:
        raise VolumeError("unreadable", f"{path.name} cannot be read: {error.strerror}") from None


def decode(raw: bytes, name: str, crop: int, size: int) -> np.ndarray:
    """The central crop x crop pixels of a JPEG file of CelebA as uint8 (3, size, size).

    crop 0 takes the largest square. Resized with Pillow's bicubic filter, whose support grows when
    pixels do, so that nothing aliases. `name` is for messages.

    Raises:
        VolumeError: no JPEG, damaged, or not of 178 x 218 pixels.
    """
    from PIL import Image, ImageFile  # here, so that other sources do without

    if not raw:
        raise VolumeError("empty", f"{name} has no bytes in it")
    # Some library may have set it; half an image would pass for a whole one then.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(raw), formats=["JPEG"]) as image:
            shape = image.size
            # Asked before decoding: a header can claim a size that no memory holds.
            rgb = image.convert("RGB") if shape == CELEBA_SHAPE else None
    except Exception as error:  # whatever one file provokes must not cost the others
        raise VolumeError("corrupt", f"{name} is no readable JPEG: {error}") from None
    if rgb is None:
        raise VolumeError("wrong_size", f"{name} has {shape[0]} x {shape[1]} pixels, not 178 x 218")
    side = crop or min(CELEBA_SHAPE)
    left, top = ((n - side) // 2 for n in CELEBA_SHAPE)
    square = rgb.crop((left, top, left + side, top + side))
    resized = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized, np.uint8).transpose(2, 0, 1))


def _cifar10(config: PrepareConfig, notify: Callable[[str], None]) -> Iterator[Item]:
    """The last `config.validation_images` for training are validation."""
    root = _locate(config, CIFAR10, notify)
    missing = [name for name in CIFAR10[1] if not (root / name).is_file()]
    if missing:
        raise InputError(
            f"prepare.root: {root} lacks {', '.join(missing)}: get them from {CIFAR10[2]}"
        )
    counts = {name: _count(root / name, md5, notify) for name, md5 in (TRAINING | TEST).items()}
    training = sum(counts[name] for name in TRAINING)
    border = training - config.validation_images
    if border <= 0:
        raise InputError(
            f"prepare.validation_images {config.validation_images} leaves nothing for training: "
            f"there are {training} images"
        )
    first = 0
    for name in TRAINING:
        # No block has images of two splits or of two files.
        edge = min(max(border - first, 0), counts[name])
        for split, start, stop in (("train", 0, edge), ("validation", edge, counts[name])):
            for at, numbers in _cut(range(first + start, first + stop), SIDE):
                yield BatchPart(root, split, numbers, name, start + at)
        first += counts[name]
    for name in TEST:
        for at, numbers in _cut(range(counts[name]), SIDE):
            yield BatchPart(root, "test", numbers, name, at)


def _count(path: Path, md5: str, notify: Callable[[str], None]) -> int:
    """How many images a batch holds; says so where it is not the published file."""
    raw = _content(path)
    own = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if own != md5:
        notify(f"warning: {path.name} is not the published file: its MD5 is {own}, not {md5}")
    return len(parse_batch(raw, path)[1])


def batch_part_to_shard(job: Job) -> list[Outcome]:
    """A block from batch to shard.

    Raises:
        InputError: the batch is no longer what it was a moment ago.
    """
    block: BatchPart = job.item
    # Taken before reading: a file that changes meanwhile is seen as changed next time.
    taken = block.fingerprint()
    path = block.root / block.file
    pixels, labels = _batch(path, taken["source_bytes"], taken["source_mtime_ns"])
    chosen = slice(block.start, block.start + len(block.numbers))
    if len(pixels) < chosen.stop:
        raise InputError(f"{path} changed while it was read: start again")
    images = pixels[chosen].reshape(-1, 3, SIDE, SIDE)
    shard = write_shard(job.store, block.subject, images)
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    return [_entry(block, taken | shard, digest, block.numbers, labels[chosen])]


@lru_cache(maxsize=1)
def _batch(path: Path, size: int, time: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """`parse_batch` of a file, kept for its next block; size and time show that it changed."""
    return parse_batch(_content(path), path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def parse_batch(raw: bytes, path: Path) -> tuple[np.ndarray, tuple[int, ...]]:
    """Pixels (n, 3072) uint8, channel by channel and row by row, and n labels from 0 to 9.

    Raises:
        InputError: `raw` is not a batch; `path` is only named in the message. Nothing in it is run.
    """
    problem, way_out = f"{path} is not a CIFAR-10 batch", f"get it from {CIFAR10[2]}"
    try:
        batch = read_arrays(io.BytesIO(raw))
    except Exception as error:  # a damaged pickle fails in any way there is
        raise InputError(f"{problem}: {type(error).__name__}: {error}: {way_out}") from None
    pixels, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != VALUES
        or not len(pixels)
    ):
        raise InputError(f"{problem}: it has no data of bytes in rows of {VALUES}: {way_out}")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(type(label) is int and 0 <= label < CLASSES for label in labels)
    ):
        raise InputError(f"{problem}: it has not one label from 0 to 9 for each image: {way_out}")
    return pixels, tuple(labels)
