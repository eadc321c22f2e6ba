"""What image sets share: blocks of images as the store's subjects, their folder, the download.

A block is a run of images of one official split, in the order of the set. Images of a set are
independent of each other, so scores averaged over blocks are those of the images, and drawing
blocks anew gives an honest interval.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_prep.common.errors import InputError
from data_prep.common.files import expanded
from data_prep.config import PrepareConfig
from data_prep.sources.source import Item, Job, Outcome, Source

Value = TypeVar("Value")

# A block is evaluated at once: at 256² with three channels 128 images are 100 MB of float32.
MOST_IMAGES = 500
MOST_PIXELS = 2**23

IDENTITY = tuple(tuple(float(v) for v in row) for row in np.eye(4))


def cut(items: Sequence[Value], side: int) -> Iterator[tuple[int, Sequence[Value]]]:
    """Runs of `items`, images of side x side pixels, each with the index of its first."""
    step = min(MOST_IMAGES, MOST_PIXELS // side**2)
    for start in range(0, len(items), step):
        yield start, items[start : start + step]


def block_name(split: str, first: int) -> str:
    """The name of a block whose first image has the number `first` in the set's order."""
    return f"{split}-{first:06d}"


def source(blocks: Sequence[Item], transform: Callable[[Job], list[Outcome]], side: int) -> Source:
    """A set of colour images, side x side. Pixels have no size: 1 mm stands for none."""
    return Source(
        blocks,
        transform,
        image_shape=(3, side, side),
        spacing_mm=1.0,
        orientation="rows down, columns right",
        plane="image",
        noun="image",
    )


def locate(
    config: PrepareConfig,
    folder: str,
    files: Sequence[str],
    page: str,
    notify: Callable[[str], None],
) -> Path:
    """The folder that holds the set: prepare.root, or its `folder`; downloaded if asked for.

    files: names of which at least one marks the folder. page: where the set is published.

    Raises:
        InputError: root is not set, holds nothing of the set, or the download failed.
    """
    way_out = f"download the set from {page} and give its folder as prepare.root"
    if not config.root:
        raise InputError(f"prepare.root is not set: {way_out}")
    root = expanded(config.root, "prepare.root")

    def found() -> Path | None:
        places = (root, root / folder)
        return next((p for p in places if any((p / name).exists() for name in files)), None)

    place = found()
    if config.download and not (place and all((place / name).exists() for name in files)):
        notify(f"downloading {config.source} into {root}")
        try:
            _download(config.source, root)
        except Exception as error:  # no network, no gdown, a quota: whatever it is, say so
            message = f"{type(error).__name__}: {error}"
            raise InputError(f"prepare.download failed ({message}): {way_out}") from None
    place = found()
    if place is None:
        what = "there is no folder" if not root.is_dir() else f"nothing of {config.source} is in"
        raise InputError(f"prepare.root: {what} {root}: {way_out}, or set prepare.download")
    return place


def _download(name: str, root: Path) -> None:
    """torchvision's own downloader, which checks the published MD5 sums."""
    from torchvision import datasets  # it takes seconds

    root.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, Any] = {"celeba": datasets.CelebA, "cifar10": datasets.CIFAR10}
    kinds[name](root, download=True)
