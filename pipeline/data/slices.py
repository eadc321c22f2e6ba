"""The prepared store as a torch data set."""

import math
import os
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch.utils.data import Dataset

from data_prep import Store, StoreError, SubjectEntry
from data_prep.common.files import find_folder
from pipeline.errors import InputError

__all__ = ["SliceDataset", "Store", "SubjectEntry", "open_store"]


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
        found = torch.empty((len(self), *self.store.image_shape), dtype=torch.int16, device=device)
        for start, stop in pairwise(self.first):
            found[start:stop] = self._raw(range(start, stop)).to(device)
        return found

    @property
    def bytes(self) -> int:
        """Memory that `resident` needs."""
        return 2 * len(self) * math.prod(self.store.image_shape)

    def _raw(self, indices: Sequence[int]) -> Tensor:
        found = np.empty((len(indices), *self.store.image_shape), np.uint16)

        def run_of(place: int) -> tuple[int, int]:
            return int(self.subject_of[indices[place]]), indices[place] - place

        for (subject, _), run in groupby(range(len(indices)), run_of):
            places = list(run)
            self._read(subject, indices[places[0]], found[places[0] : places[-1] + 1])
        return torch.from_numpy(found.view(np.int16))

    def _read(self, subject: int, index: int, found: np.ndarray) -> None:
        """Fill `found` with the items of a subject from `index` on."""
        entry = self.subjects[subject]
        path = self.store.path / entry.shard
        try:
            if subject not in self._offsets:
                self._offsets[subject] = self.store.slices(entry).offset
            start = self._offsets[subject] + found[0].nbytes * int(index - self.first[subject])
            # Not through a memory map: in random order each slice would have the system read the
            # disk's read-ahead, up to 8 MB, around it.
            with path.open("rb", buffering=0) as file:
                count = os.preadv(file.fileno(), [found.data], start)
        except (StoreError, OSError) as error:
            raise InputError(str(error)) from error
        if count != found.nbytes:
            raise InputError(f"shard {path} has the wrong length: prepare the store again")

    def of_subject(self, subject: int, limit: int = 0) -> Float[Tensor, "n C H W"]:
        """Slices of one subject: at most `limit`, evenly spread; 0 = all."""
        start, stop = (int(first) for first in self.first[subject : subject + 2])
        chosen = evenly_spread(stop - start, limit or stop - start)
        return self.__getitems__([start + number for number in chosen])
