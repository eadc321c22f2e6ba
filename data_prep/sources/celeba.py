"""CelebA's aligned and cropped images with its official partition (Liu 2015)."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import InputError, VolumeError
from data_prep.config import CELEBA_SHAPE, PLAIN_NAME, PrepareConfig
from data_prep.sources import blocks
from data_prep.sources.source import Job, Outcome, Source
from data_prep.split import SPLITS
from data_prep.store import Quarantined, SubjectEntry, canonical_digest, write_shard

FOLDER = "celeba"
IMAGES = "img_align_celeba"
PARTITION = "list_eval_partition.txt"
PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


@dataclass(frozen=True)
class Block:
    """Images of one split. `rows` are their places in the partition file, from 0."""

    root: Path
    split: str
    rows: tuple[int, ...]
    files: tuple[str, ...]

    @property
    def subject(self) -> str:
        return blocks.block_name(self.split, self.rows[0])

    def assignment(self) -> dict[str, Any]:
        return {"family": self.subject, "split": self.split}

    def fingerprint(self) -> dict[str, Any]:
        """Bytes are the sum over the files; the time is a number made of rows, names, sizes and
        times, so that any change of one file changes it."""
        folder = self.root / IMAGES
        images = zip(self.rows, self.files, strict=True)
        found = [(row, name, *_status(folder / name)) for row, name in images]
        return {
            "subject": self.subject,
            "source": f"{IMAGES}/{self.files[0]} to {self.files[-1]}",
            "source_bytes": sum(size for *_, size, _ in found),
            "source_mtime_ns": int(canonical_digest(found)[:15], 16),
            "mask": "",
            "mask_bytes": 0,
            "mask_mtime_ns": 0,
        }


def _status(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def find(config: PrepareConfig, notify: Callable[[str], None]) -> Source:
    """All blocks of the set.

    Raises:
        InputError: partition file or image folder missing, or a line that is not one.
    """
    root = blocks.locate(config, FOLDER, [PARTITION, IMAGES], PAGE, notify)
    partition = read_partition(root / PARTITION)
    if not (root / IMAGES).is_dir():
        raise InputError(
            f"prepare.root: there is no folder {root / IMAGES}: unpack {IMAGES}.zip from {PAGE}"
        )
    found = []
    for code, split in enumerate(SPLITS):
        rows = [(row, name) for row, (name, part) in enumerate(partition) if part == code]
        for _, part in blocks.cut(rows, config.size):
            numbers, names = zip(*part, strict=True)
            found.append(Block(root, split, numbers, names))
    return blocks.source(found, transform, config.size)


def read_partition(path: Path) -> list[tuple[str, int]]:
    """File names in the official order, each with 0 (training), 1 (validation) or 2 (test).

    Raises:
        InputError: no such file, or a line that is not a new file name and one of these numbers.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({getattr(error, 'strerror', error)}): get {PARTITION}, the "
            f"official split, from {PAGE}"
        ) from None
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, part = line.strip().partition(" ")
        part = part.strip()
        if not PLAIN_NAME.fullmatch(name) or part not in ("0", "1", "2"):
            raise InputError(
                f"{path}, line {number}: '{line[:80]}' is not a file name and 0, 1 or 2: get "
                f"{PARTITION} anew from {PAGE}"
            )
        if name in found:
            raise InputError(f"{path}, line {number} names {name} a second time")
        found[name] = int(part)
    if not found:
        raise InputError(f"{path} is empty: get {PARTITION} anew from {PAGE}")
    return list(found.items())


def transform(job: Job) -> list[Outcome]:
    """One block from JPEG files to shard; unusable images are left out, each with its reason."""
    block, config = job.item, job.config
    # Taken before reading: a file that changes meanwhile is seen as changed next time.
    found = block.fingerprint()
    digest = hashlib.sha256()
    rows, images = [], []
    outcomes: list[Outcome] = []
    for row, name in zip(block.rows, block.files, strict=True):
        try:
            raw = _read(block.root / IMAGES / name)
            images.append(decode(raw, name, config.crop, config.size))
        except VolumeError as error:
            own = found | {"subject": f"{block.subject}/{name}", "source": f"{IMAGES}/{name}"}
            outcomes.append(Quarantined(**own, reason=error.reason, message=error.message))
            continue
        rows.append(row)
        digest.update(raw)
    if images:
        shard = write_shard(job.store, block.subject, np.stack(images))
        outcomes.append(
            SubjectEntry(
                **found,
                **shard,
                **block.assignment(),
                source_sha256=digest.hexdigest(),
                slice_indices=tuple(rows),
                affine=blocks.IDENTITY,
                cropped=False,
            )
        )
    return outcomes


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise VolumeError("missing", f"there is no {path.name}") from None
    except OSError as error:
        raise VolumeError("unreadable", f"{path.name} cannot be read: {error.strerror}") from None


def decode(raw: bytes, name: str, crop: int, size: int) -> np.ndarray:
    """The central crop x crop pixels of a JPEG file as uint8 (3, size, size).

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
