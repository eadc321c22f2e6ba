"""The prepared store as a torch data set, its batches, and intensities in a file's own unit."""

import math
import os
import signal
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Int16
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep import Store, StoreError, SubjectEntry
from data_prep.common.files import find_folder
from pipeline.data.config import DataConfig
from pipeline.errors import InputError
from pipeline.randomness import Stream, generator

__all__ = ["SliceDataset", "Store", "SubjectEntry", "open_store"]

Values = TypeVar("Values", torch.Tensor, np.ndarray)

# Share of a GPU's free memory that the slices may take when `data.on_device` is auto.
RESIDENT_SHARE = 0.3
# Below half a level of 256 an image is dark and its file holds 0, as the preparation has it outside
# the brain. `low` is the intensity of the brain's darkest voxels.
DARK = 1 / 510
# A subject's name is a study's own: two studies can both have a 01. Without being told, a command
# takes equal names for the same person, since that costs nobody's honesty. The way out, with the
# option that says so, and what is printed and recorded then.
WAY_OUT = "; where only the names are equal and the people others, {}"
FILES_CHECKED = "equal names were taken for other people; file digests (SHA-256) were compared"


def open_store(name: str, work: Path) -> Store:
    """Open a prepared store.

    Args:
        name: of a store under work/stores, or a path.
        work: the folder of everything generated.

    Raises:
        InputError: there is no such store, or it can't be read.

    Example:
        >>> store = open_store("demo", Path("work"))
        >>> store.images(store.subjects("test")[0]).dtype
        dtype('float32')
    """
    try:
        return Store.open(find_folder(name, "stores", work))
    except StoreError as error:
        raise InputError(str(error)) from error


def evenly_spread(count: int, most: int) -> list[int]:
    """Numbers of at most `most` of `count` items, ascending, first and last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


class SliceDataset(Dataset[Tensor]):
    """All slices of some subjects, each read from its shard when it is used.

    Item i is float32 (C,H,W) in [0,1]; `subject_of[i]` is the subject's index in `subjects`.

    Example:
        >>> store = open_store("demo", Path("work"))
        >>> data = SliceDataset(store, store.subjects("train"))
        >>> data[0].shape, data.of_subject(0, limit=4).shape
        (torch.Size([1, 32, 32]), torch.Size([4, 1, 32, 32]))
    """

    def __init__(self, store: Store, subjects: Sequence[SubjectEntry]) -> None:
        self.store = store
        self.subjects = list(subjects)
        counts = [len(entry.slice_indices) for entry in self.subjects]
        self.subject_of = np.repeat(np.arange(len(counts)), counts)
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        self._offsets: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.subject_of)

    def __getitem__(self, index: int) -> Float[Tensor, "C H W"]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Float[Tensor, "n C H W"]:
        """Several items, in [0,1]. Raises InputError where a shard is damaged."""
        return self.intensity(self._raw(indices))

    @staticmethod
    def intensity(raw: Int16[Tensor, "..."]) -> Float[Tensor, "..."]:
        """16 bits of the store as float32 in [0,1]; torch has few operations on uint16."""
        return raw.int().bitwise_and(0xFFFF).float() / 65535.0

    def resident(self, device: torch.device) -> Int16[Tensor, "n C H W"]:
        """The bits of all slices, copied to the device shard by shard."""
        bits = torch.empty((len(self), *self.store.image_shape), dtype=torch.int16, device=device)
        for start, stop in pairwise(self.first):
            bits[start:stop] = self._raw(range(start, stop)).to(device)
        return bits

    @property
    def bytes(self) -> int:
        """Memory that `resident` needs."""
        return 2 * len(self) * math.prod(self.store.image_shape)

    def families_of(self, indices: Sequence[int]) -> Int[Tensor, " n"]:
        """The number of each item's family (n,), from 0 on in order of appearance."""
        names = [self.subjects[subject].family for subject in self.subject_of[indices]]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return torch.tensor([numbers[name] for name in names])

    def _raw(self, indices: Sequence[int]) -> Tensor:
        bits = np.empty((len(indices), *self.store.image_shape), np.uint16)

        def run_of(place: int) -> tuple[int, int]:
            return int(self.subject_of[indices[place]]), indices[place] - place

        for (subject, _), run in groupby(range(len(indices)), run_of):
            places = list(run)
            self._read(subject, indices[places[0]], bits[places[0] : places[-1] + 1])
        return torch.from_numpy(bits.view(np.int16))

    def _read(self, subject: int, index: int, bits: np.ndarray) -> None:
        """Fill `bits` with the items of a subject from `index` on."""
        entry = self.subjects[subject]
        path = self.store.path / entry.shard
        try:
            if subject not in self._offsets:
                self._offsets[subject] = self.store.slices(entry).offset
            start = self._offsets[subject] + bits[0].nbytes * int(index - self.first[subject])
            # Not through a memory map: in random order each slice would have the system read the
            # disk's read-ahead, up to 8 MB, around it.
            with path.open("rb", buffering=0) as file:
                count = os.preadv(file.fileno(), [bits.data], start)
        except (StoreError, OSError) as error:
            raise InputError(str(error)) from error
        if count != bits.nbytes:
            raise InputError(f"shard {path} has the wrong length: prepare the store again")

    def of_subject(self, subject: int, limit: int = 0) -> Float[Tensor, "n C H W"]:
        """Slices of one subject: at most `limit`, evenly spread; 0 = all."""
        start, stop = (int(first) for first in self.first[subject : subject + 2])
        chosen = evenly_spread(stop - start, limit or stop - start)
        return self.__getitems__([start + number for number in chosen])


class EpochSampler(Sampler[list[int]]):
    """Indices of one epoch's full batches, in an order that seed and `epoch` decide.

    Items beyond the last full batch are left out; fewer items than a batch make one batch of all.
    `epoch` and `start`, the batch to begin with, may be set between iterations. With several
    processes each gets its own `rows` of every batch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        *,
        longest: int = 0,
    ) -> None:
        """longest: most batches of an epoch, a random part of the items; 0 = no limit.

        Raises ValueError where the processes can't share a batch evenly.
        """
        self.count, self.seed = count, seed
        self.batch_size = min(batch_size, count)
        if not self.batch_size or self.batch_size % processes:
            raise ValueError(f"{processes} processes can't share a batch of {self.batch_size}")
        share = self.batch_size // processes
        self.rows = slice(rank * share, (rank + 1) * share)
        self.longest = longest
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        whole = self.count // self.batch_size
        return min(whole, self.longest) if self.longest else whole

    def __iter__(self) -> Iterator[list[int]]:
        random = generator(self.seed, Stream.ORDER, self.epoch)
        order = torch.randperm(self.count, generator=random).tolist()
        for batch in range(self.start, len(self)):
            first = batch * self.batch_size
            yield order[first : first + self.batch_size][self.rows]


class Batches:
    """Iterating gives the batches of the sampler's epoch on the device, float32.

    Slices are read from their shards, ahead of time by worker processes if there are any,
    and copied to a GPU from pinned memory; or all of them are kept on the device.
    """

    def __init__(
        self, data: SliceDataset, sampler: EpochSampler, config: DataConfig, device: torch.device
    ) -> None:
        """Raises InputError where a shard is damaged."""
        self.device = device
        self._sampler = sampler
        self._slices: Tensor | None = None
        if _resident(data, config, device):
            self._slices = data.resident(device)
        else:
            self._loader: DataLoader = DataLoader(
                data,
                batch_sampler=sampler,
                num_workers=config.workers,
                collate_fn=_as_it_is,
                pin_memory=device.type == "cuda",
                persistent_workers=config.workers > 0,
                worker_init_fn=_leave_signals_to_the_parent,
            )

    def __iter__(self) -> Iterator[Float[Tensor, "b C H W"]]:
        if self._slices is None:
            for batch in self._loader:
                yield batch.to(self.device, non_blocking=True)
            return
        for indices in self._sampler:
            chosen = torch.tensor(indices).to(self.device, non_blocking=True)
            yield SliceDataset.intensity(self._slices[chosen])


def _resident(data: SliceDataset, config: DataConfig, device: torch.device) -> bool:
    if config.on_device != "auto":
        return config.on_device == "always"
    if device.type != "cuda":
        return False  # the system keeps the files in memory
    free, _ = torch.cuda.mem_get_info(device)
    return data.bytes < RESIDENT_SHARE * free


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_parent(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole group; the parent ends it in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def to_scanner(image: Values, low: float, high: float) -> Values:
    """Intensities of [0,1] in the file's unit: 0 where it is dark, else low + x · (high − low).

    (x − low) / (high − low), clipped to [0,1], is the inverse, to within DARK.

    Args:
        image: intensity in [0,1], any shape.
        low: the file's intensity that became 0 in the preparation (`volume` of a store's entries).
        high: that which became 1.

    Raises:
        ValueError: low and high are not finite, or high is not above low.
    """
    if not (np.isfinite([low, high]).all() and high > low):
        raise ValueError(f"low and high must be intensities, low the lower: {low}, {high}")
    scaled = low + image * (high - low)
    if isinstance(image, torch.Tensor):
        return torch.where(image > DARK, scaled, torch.zeros_like(scaled))
    return np.where(image > DARK, scaled, np.zeros_like(scaled))
