"""Batches: their order is known, every way of reading gives the same, none is kept in memory."""

import contextlib
import ctypes
import dataclasses
import hashlib
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import get_worker_info

import pipeline.data.slices as loading
from data_prep.common.tracking import Tracker
from data_prep.config import PrepareConfig
from data_prep.store import Store, SubjectEntry, new_manifest, write_manifest
from pipeline.config import Config, TrainingConfig
from pipeline.data.config import AugmentationConfig, DataConfig
from pipeline.data.slices import Batches, EpochSampler, SliceDataset, open_store
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig
from pipeline.training.loop import Trainer

CPU = torch.device("cpu")
COUNTS = st.integers(1, 40)
SEEDS = st.integers(0, 2**31)


@given(count=COUNTS, batch=COUNTS, seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_has_full_batches_of_different_items(
    count: int, batch: int, seed: int, epoch: int
) -> None:
    sampler = EpochSampler(count, batch, seed)
    sampler.epoch = epoch
    batches = list(sampler)
    assert len(batches) == len(sampler) == count // min(batch, count)
    assert {len(found) for found in batches} == {min(batch, count)}
    items = [item for found in batches for item in found]
    assert len(set(items)) == len(items) > count - min(batch, count)
    assert set(items) <= set(range(count))


@given(seed=SEEDS, other=SEEDS)
def test_the_order_is_that_of_the_seed_and_the_epoch(seed: int, other: int) -> None:
    assume(seed != other)

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = EpochSampler(30, 10, seed)
        sampler.epoch = epoch
        torch.rand(1)  # whatever else is drawn
        return list(sampler)

    assert order(seed, 3) == order(seed, 3)
    assert order(seed, 3) != order(seed, 4)
    assert order(seed, 3) != order(other, 3)


def test_every_item_comes_up_though_an_epoch_leaves_some_out() -> None:
    sampler = EpochSampler(10, 4, seed=0)
    seen = set()
    for sampler.epoch in range(10):
        seen |= {item for batch in sampler for item in batch}
    assert seen == set(range(10))


@given(count=COUNTS, batch=COUNTS, start=st.integers(0, 40))
def test_a_start_skips_exactly_the_first_batches(count: int, batch: int, start: int) -> None:
    sampler = EpochSampler(count, batch, seed=1)
    whole = list(sampler)
    sampler.start = start
    assert list(sampler) == whole[start:]
    assert len(sampler) == len(whole)  # of the whole epoch, wherever it begins


@given(count=COUNTS, batch=COUNTS, longest=st.integers(0, 40))
def test_a_shorter_epoch_is_the_beginning_of_the_whole_one(
    count: int, batch: int, longest: int
) -> None:
    whole, short = EpochSampler(count, batch, 1), EpochSampler(count, batch, 1, longest=longest)
    expected = list(whole)[: longest or None]
    assert list(short) == expected
    assert len(short) == len(expected)


def test_short_epochs_reach_every_item_in_the_end() -> None:
    sampler = EpochSampler(40, 4, seed=0, longest=2)
    seen = set()
    for sampler.epoch in range(40):
        seen |= {item for batch in sampler for item in batch}
    assert seen == set(range(40))


@given(share=st.integers(1, 6), processes=st.integers(1, 5), more=st.integers(0, 40))
def test_the_shares_of_the_processes_are_the_batch_in_order(
    share: int, processes: int, more: int
) -> None:
    batch = share * processes
    count = batch + more
    shares = [EpochSampler(count, batch, 5, rank, processes) for rank in range(processes)]
    for parts, whole in zip(zip(*shares, strict=True), EpochSampler(count, batch, 5), strict=True):
        assert {len(part) for part in parts} == {share}
        assert [item for part in parts for item in part] == whole


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="3 processes can't share a batch of 10"):
        EpochSampler(20, 10, 0, rank=0, processes=3)
    with pytest.raises(ValueError, match="can't share"):
        EpochSampler(0, 10, 0)


def test_intensities_are_the_stored_numbers_to_the_last_bit() -> None:
    raw = np.arange(65536, dtype=np.uint16)
    found = SliceDataset.intensity(torch.from_numpy(raw.view(np.int16)))
    expected = raw.astype(np.float32) / np.float32(65535)
    assert found.dtype == torch.float32
    assert (found.numpy().view(np.uint32) == expected.view(np.uint32)).all()
    assert found[0] == 0.0 and found[-1] == 1.0


def _batches(store: Store, **changes: Any) -> Batches:
    data = SliceDataset(store, store.subjects("train"))
    return Batches(data, EpochSampler(len(data), 5, seed=3), DataConfig(**changes), CPU)


WAYS = {"workers": {"workers": 2}, "on the device": {"on_device": "always"}}


@pytest.mark.parametrize("way", WAYS)
def test_batches_are_the_same_whoever_reads_them(tiny_store: Store, way: str) -> None:
    """Epoch after epoch, from the middle of one, and after one that was left early."""
    one, two = _batches(tiny_store), _batches(tiny_store, **WAYS[way])
    for epoch, start in ((0, 0), (1, 2), (2, 0)):
        for batches in (one, two):
            batches._sampler.epoch, batches._sampler.start = epoch, start
        found = [list(batches) for batches in (one, two)]
        assert len(found[0]) == len(found[1]) == 3 - start
        for left, right in zip(*found, strict=True):
            assert left.dtype == right.dtype == torch.float32 and torch.equal(left, right)
        with contextlib.closing(iter(two)) as left_early:
            next(left_early)


def test_batches_are_the_slices_that_the_sampler_names(tiny_store: Store) -> None:
    batches = _batches(tiny_store)
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    for indices, images in zip(batches._sampler, batches, strict=True):
        assert torch.equal(images, torch.stack([data[index] for index in indices]))


def test_the_number_of_workers_changes_no_loss(tiny_store: Store, tmp_path: Path) -> None:
    class Rows(Tracker):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[dict[str, float]] = []

        def metrics(self, values: Any, step: int = 0) -> None:
            self.rows.append({k: v for k, v in values.items() if k != "train/images_per_second"})

    config = Config(
        data=DataConfig(store="tiny"),
        model=ModelConfig(levels=[Level(4, 2), Level(8, 1)], width=4, max_width=8, kernel_hidden=8),
        likelihood=LikelihoodConfig(kernel_size=5, warmup_epochs=1),
        training=TrainingConfig(
            epochs=3, batch_size=6, lr_warmup_steps=2, rate_warmup_steps=2, device="cpu"
        ),
    )
    found = []
    for changes in ({}, {"workers": 2}, {"on_device": "always"}):
        data = dataclasses.replace(config.data, **changes)
        changed, folder = dataclasses.replace(config, data=data), tmp_path / str(len(found))
        trainer, tracker = Trainer(changed, tiny_store, folder, None), Rows()
        trainer.fit(tracker)
        weights = torch.cat([p.detach().flatten() for p in trainer.objective.parameters()])
        found.append((tracker.rows, weights))
    for rows, weights in found[1:]:
        assert rows == found[0][0] and len(rows) == 3
        assert torch.equal(weights, found[0][1])


class _Handlers(SliceDataset):
    """Gives, instead of images, whether a worker reads and both signals are ignored."""

    def __getitems__(self, indices: Any) -> Tensor:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        ignored = all(handler == signal.SIG_IGN for handler in handlers)
        return torch.tensor([float(get_worker_info() is not None), float(ignored)])


def test_workers_leave_signals_to_the_parent(tiny_store: Store) -> None:
    """Ctrl-C reaches the whole group of processes, and the parent still wants its batch."""
    data = _Handlers(tiny_store, tiny_store.subjects("train"))
    sampler = EpochSampler(len(data), 5, seed=0)
    before = signal.getsignal(signal.SIGTERM)
    found = list(Batches(data, sampler, DataConfig(workers=1), CPU))
    assert torch.equal(torch.stack(found), torch.ones(3, 2))
    assert signal.getsignal(signal.SIGTERM) is before


def test_slices_stay_in_a_device_s_memory_where_they_fit(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto: a share of a GPU's free memory; always and never whatever the device."""
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    assert data.bytes == data.resident(torch.device("cpu")).nbytes == 18 * 32 * 32 * 2
    for free, fits in ((data.bytes * 4, True), (data.bytes * 3, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        cuda = torch.device("cuda")
        assert loading._resident(data, DataConfig(), cuda) is fits
        assert loading._resident(data, DataConfig(on_device="always"), cuda)
        assert not loading._resident(data, DataConfig(on_device="never"), cuda)
    assert not loading._resident(data, DataConfig(), CPU)


# ------------------------------------------------------------------ memory


def _big_store(work: Path, subjects: int, slices: int, side: int) -> Store:
    """A store of random bits: what matters is that there are many."""
    path, generator = work / "stores/big", np.random.default_rng(0)
    (path / "slices").mkdir(parents=True)
    entries = []
    for number in range(subjects):
        shard = path / f"slices/p{number}.npy"
        np.save(shard, generator.integers(0, 65536, (slices, 1, side, side), np.uint16))
        digest = hashlib.sha256(str(number).encode()).hexdigest()  # of no consequence here
        entries.append(
            SubjectEntry(
                subject=f"p{number}", family=f"p{number}", split="train", source="",
                source_sha256=digest, source_bytes=1, source_mtime_ns=1, mask="", mask_bytes=0,
                mask_mtime_ns=0, shard=f"slices/p{number}.npy", shard_sha256=digest,
                shard_bytes=shard.stat().st_size, slice_indices=tuple(range(slices)),
                affine=tuple(tuple(map(float, row)) for row in np.eye(4)), cropped=False,
            )
        )  # fmt: skip
    write_manifest(
        path,
        new_manifest(
            name="big",
            simulated=True,
            configuration=PrepareConfig(size=side).recorded(),
            image_shape=(1, side, side),
            spacing_mm=1.0,
            orientation="",
            plane="axial",
            subjects=entries,
            quarantined=[],
        ),
    )
    return open_store("big", work)


def _anonymous_megabytes() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return int(size) / 1024


def _in_a_child(measure: Callable[[], float]) -> float:
    """What a function returns in a forked process, which nothing else uses."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        found = math.nan
        try:
            with contextlib.suppress(OSError, AttributeError):  # only glibc has it
                ctypes.CDLL(None).malloc_trim(0)  # what tests before this one have freed
            found = measure()
        finally:
            os.write(writer, str(found).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return float(said)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_what_is_read(work: Path) -> None:
    store = _big_store(work, subjects=8, slices=100, side=256)
    data = SliceDataset(store, store.subjects())
    assert data.bytes > 100e6
    sampler = EpochSampler(len(data), 16, seed=0)
    batches = Batches(data, sampler, DataConfig(), CPU)

    def growth() -> float:
        for _ in zip(range(15), batches, strict=False):
            pass  # until the allocator has what it wants to keep
        sizes = [_anonymous_megabytes()]
        for sampler.epoch in range(3):
            total = sum(float(images[0, 0, 0, 0]) for images in batches)
            assert total > 0
            sizes.append(_anonymous_megabytes())
        return max(sizes) - sizes[0]

    def kept() -> float:
        before = _anonymous_megabytes()
        everything = list(batches)
        return _anonymous_megabytes() - before + 0 * len(everything)

    # Three epochs read 600 MB as float32; an allocator may come to keep a few batches more.
    assert _in_a_child(growth) < 60
    assert _in_a_child(kept) > 100  # what a leak would look like: the measure sees it


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_a_large_store_keeps_its_memory(work: Path, workers: int) -> None:
    store = _big_store(work, subjects=8, slices=100, side=256)
    config = Config(
        data=DataConfig(workers=workers, augmentation=AugmentationConfig(enabled=False)),
        model=ModelConfig(levels=[Level(32, 4)], width=4, max_width=8, kernel_hidden=8),
        likelihood=LikelihoodConfig(term="gaussian"),
        training=TrainingConfig(epochs=3, batch_size=16, device="cpu"),
    )
    sizes = []

    class Watching:
        images = torch.zeros(1, 1, 256, 256)

        def validate(self, *_: Any, **__: Any) -> dict[str, float]:
            sizes.append(_anonymous_megabytes())
            return {}

        def picture(self, _: Any) -> np.ndarray:
            return np.zeros((4, 4, 3), np.uint8)

        def kernels(self, _: Any) -> None:
            return None

    def growth() -> float:
        Trainer(config, store, work / "run", Watching()).fit(Tracker())
        return max(sizes) - sizes[0]

    assert _in_a_child(growth) < 20
