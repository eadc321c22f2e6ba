"""From the store to batches on the device."""

import signal
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from pipeline.data.config import DataConfig
from pipeline.data.slices import SliceDataset
from pipeline.randomness import Stream, generator

# Share of a GPU's free memory that the slices may take when `data.on_device` is auto.
RESIDENT_SHARE = 0.3


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
        self._slices = data.resident(device) if _resident(data, config, device) else None
        self._loader: DataLoader | None = None
        if self._slices is None:
            self._loader = DataLoader(
                data,
                batch_sampler=sampler,
                num_workers=config.workers,
                collate_fn=_as_it_is,
                pin_memory=device.type == "cuda",
                persistent_workers=config.workers > 0,
                worker_init_fn=_leave_signals_to_the_parent,
            )

    def __iter__(self) -> Iterator[Float[Tensor, "b C H W"]]:
        if self._loader is not None:
            for batch in self._loader:
                yield batch.to(self.device, non_blocking=True)
        elif self._slices is not None:
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
