"""CIFAR-10 from its python batches: 32 x 32 colour images of ten classes (Krizhevsky 2009).

A batch is a pickle, and a pickle can run code: it is read as arrays alone (common.unpickling).
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import InputError
from data_prep.common.unpickling import read_arrays
from data_prep.config import PrepareConfig
from data_prep.sources import blocks
from data_prep.sources.source import Job, Outcome, Source
from data_prep.store import SubjectEntry, write_shard

FOLDER = "cifar-10-batches-py"
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
SIDE, CLASSES = 32, 10
VALUES = 3 * SIDE * SIDE

# MD5 sums of the official files, as torchvision publishes them in torchvision/datasets/cifar.py.
TRAINING = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
TEST = {"test_batch": "40351d587109b95175f43aff81a1287e"}


@dataclass(frozen=True)
class Block:
    """Images start to stop of one batch file; `first` is the first one's number in the set.

    Numbers run through the five training batches, and through the test batch on their own, as the
    indices of torchvision.datasets.CIFAR10 do.
    """

    root: Path
    file: str
    start: int
    stop: int
    split: str
    first: int

    @property
    def subject(self) -> str:
        return blocks.block_name(self.split, self.first)

    def assignment(self) -> dict[str, Any]:
        return {"family": self.subject, "split": self.split}

    def fingerprint(self) -> dict[str, Any]:
        try:
            status = (self.root / self.file).stat()
            size, time = status.st_size, status.st_mtime_ns
        except OSError:
            size = time = -1
        return {
            "subject": self.subject,
            "source": f"{self.file}[{self.start}:{self.stop}]",
            "source_bytes": size,
            "source_mtime_ns": time,
            "mask": "",
            "mask_bytes": 0,
            "mask_mtime_ns": 0,
        }


def find(config: PrepareConfig, notify: Callable[[str], None]) -> Source:
    """All blocks of the set. The last `config.validation_images` for training are validation.

    Raises:
        InputError: a batch is missing or is not one, or nothing would be left for training.
    """
    root = blocks.locate(config, FOLDER, [*TRAINING, *TEST], PAGE, notify)
    missing = [name for name in (*TRAINING, *TEST) if not (root / name).is_file()]
    if missing:
        raise InputError(f"prepare.root: {root} lacks {', '.join(missing)}: get them from {PAGE}")
    counts = {name: _count(root / name, md5, notify) for name, md5 in (TRAINING | TEST).items()}
    training = sum(counts[name] for name in TRAINING)
    border = training - config.validation_images
    if border <= 0:
        raise InputError(
            f"prepare.validation_images {config.validation_images} leaves nothing for training: "
            f"there are {training} images"
        )
    found = []
    first = 0
    for name in TRAINING:
        # No block has images of two splits or of two files.
        edge = min(max(border - first, 0), counts[name])
        for split, start, stop in (("train", 0, edge), ("validation", edge, counts[name])):
            for at, part in blocks.cut(range(start, stop), SIDE):
                number = first + start + at
                found.append(Block(root, name, part[0], part[-1] + 1, split, number))
        first += counts[name]
    for name in TEST:
        for at, part in blocks.cut(range(counts[name]), SIDE):
            found.append(Block(root, name, part[0], part[-1] + 1, "test", at))
    return blocks.source(found, transform, SIDE)


def _count(path: Path, md5: str, notify: Callable[[str], None]) -> int:
    """How many images a batch holds; says so where it is not the published file."""
    raw = _content(path)
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != md5:
        notify(f"warning: {path.name} is not the published file: its MD5 is {found}, not {md5}")
    return len(parse_batch(raw, path)[1])


def transform(job: Job) -> list[Outcome]:
    """One block from batch to shard.

    Raises:
        InputError: the batch is no longer what it was a moment ago.
    """
    block = job.item
    # Taken before reading: a file that changes meanwhile is seen as changed next time.
    found = block.fingerprint()
    pixels, labels = _batch(
        block.root / block.file, found["source_bytes"], found["source_mtime_ns"]
    )
    if len(pixels) < block.stop:
        raise InputError(f"{block.root / block.file} changed while it was read: start again")
    chosen = slice(block.start, block.stop)
    images = pixels[chosen].reshape(-1, 3, SIDE, SIDE)
    return [
        SubjectEntry(
            **found,
            **write_shard(job.store, block.subject, images),
            **block.assignment(),
            source_sha256=hashlib.sha256(images.tobytes()).hexdigest(),
            slice_indices=tuple(range(block.first, block.first + len(images))),
            affine=blocks.IDENTITY,
            cropped=False,
            labels=labels[chosen],
        )
    ]


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
    problem = f"{path} is not a CIFAR-10 batch"
    way_out = f"get it from {PAGE}"
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
