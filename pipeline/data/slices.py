"""The prepared store as a torch data set, and the `data` section of the configuration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_prep.store import PrepareConfig, Store, StoreError, SubjectEntry
from pipeline.data.augmentation import AugmentationConfig
from pipeline.errors import InputError

__all__ = ["DataConfig", "PrepareConfig", "SliceDataset", "Store", "SubjectEntry", "open_store"]


@dataclass(frozen=True)
class DataConfig:
    """The `data` section."""

    store: str = ""
    """Name of a prepared store under WORK/stores, or a path; "" = prepare.name."""
    flip: bool = True
    """Mirror left and right in augmentation; never done to sagittal slices."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


def open_store(name: str, work: Path) -> Store:
    """Open a store by name (under work/stores) or by path. Raises InputError with the way out."""
    path = Path(name) if "/" in name else work / "stores" / name
    try:
        return Store.open(path)
    except StoreError as error:
        raise InputError(str(error)) from error


class SliceDataset(Dataset[Tensor]):
    """All slices of some subjects, read from the memory-mapped shards as they are asked for.

    Item i is float32 (C,H,W) in [0,1]; `subject_of[i]` is the subject's index in `subjects`.
    """

    def __init__(self, store: Store, subjects: Sequence[SubjectEntry]) -> None:
        self.store = store
        self.subjects = list(subjects)
        counts = [len(entry.slice_indices) for entry in self.subjects]
        self.subject_of = np.repeat(np.arange(len(counts)), counts)
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        self._shards: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.subject_of)

    def __getitem__(self, index: int) -> Tensor:
        subject = int(self.subject_of[index])
        if subject not in self._shards:
            try:
                self._shards[subject] = self.store.slices(self.subjects[subject])
            except StoreError as error:
                raise InputError(str(error)) from error
        raw = self._shards[subject][index - self.first[subject]]
        return torch.from_numpy(raw.astype(np.float32) / 65535.0)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [self[index] for index in indices]

    def __getstate__(self) -> dict:
        # Workers open their own memory maps: a pickled map would carry the pixels along.
        return {**self.__dict__, "_shards": {}}

    def of_subject(self, subject: int) -> Tensor:
        """All slices of one subject: (n,C,H,W)."""
        start, stop = self.first[subject], self.first[subject + 1]
        return torch.stack([self[index] for index in range(start, stop)])


def shuffled_batches(count: int, batch: int, generator: torch.Generator) -> Iterator[list[int]]:
    """One epoch of full batches in random order; what is left over waits for another epoch.

    With fewer items than a batch, one batch of all of them.
    """
    order = torch.randperm(count, generator=generator).tolist()
    size = min(batch, count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]
