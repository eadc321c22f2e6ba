"""Slices of a store and their batches: every way of reading gives the same, none is kept."""

import contextlib
import math
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import get_worker_info

from data_prep.store import Store
from pipeline.data import slices
from pipeline.data.config import DataConfig
from pipeline.data.slices import DARK, Batches, EpochSampler, SliceDataset, open_store, to_scanner
from pipeline.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
COUNTS, SEEDS = st.integers(1, 40), st.integers(0, 2**31)


def _order(sampler: EpochSampler, epoch: int, start: int = 0) -> list[list[int]]:
    sampler.epoch, sampler.start = epoch, start
    torch.rand(1)  # whatever else is drawn
    return list(sampler)


@given(count=COUNTS, batch=COUNTS, seed=SEEDS, start=COUNTS, longest=st.integers(0, 40))
def test_an_epoch_has_full_batches_of_different_items(
    count: int, batch: int, seed: int, start: int, longest: int
) -> None:
    """A start skips the first, a shorter epoch is the beginning of the whole one."""
    sampler = EpochSampler(count, batch, seed)
    whole = _order(sampler, 3)
    assert len(whole) == len(sampler) == count // min(batch, count)
    assert {len(items) for items in whole} == {min(batch, count)}
    items = [item for items in whole for item in items]
    assert len(set(items)) == len(items) > count - min(batch, count)
    assert set(items) <= set(range(count))
    assert _order(sampler, 3, start) == whole[start:] and len(sampler) == len(whole)
    short = EpochSampler(count, batch, seed, longest=longest)
    assert _order(short, 3) == whole[: longest or None] and len(short) == len(list(short))


def test_the_order_is_that_of_the_seed_and_the_epoch_and_every_item_comes_up() -> None:
    first, again, other = (EpochSampler(30, 4, seed, longest=2) for seed in (0, 0, 1))
    assert _order(first, 3) == _order(again, 3)
    assert _order(first, 3) not in (_order(first, 4), _order(other, 3))
    seen = {i for epoch in range(40) for items in _order(first, epoch) for i in items}
    assert seen == set(range(30))


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
    for wrong in ((20, 10, 0, 0, 3), (0, 10, 0)):
        with pytest.raises(ValueError, match="can't share a batch"):
            EpochSampler(*wrong)


def test_intensities_are_the_stored_numbers_to_the_last_bit() -> None:
    raw = np.arange(65536, dtype=np.uint16)
    values = SliceDataset.intensity(torch.from_numpy(raw.view(np.int16)))
    expected = raw.astype(np.float32) / np.float32(65535)
    assert values.dtype == torch.float32 and values[0] == 0.0 and values[-1] == 1.0
    assert (values.numpy().view(np.uint32) == expected.view(np.uint32)).all()


@given(indices=st.lists(st.integers(0, 17), max_size=12))
def test_items_are_those_of_the_shards_in_any_order(tiny_store: Store, indices: list[int]) -> None:
    """In runs, backwards, twice, across subjects."""
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    whole = np.concatenate([np.load(tiny_store.path / entry.shard) for entry in data.subjects])
    expected = torch.from_numpy(whole[indices].astype("int32")).float() / 65535.0
    assert torch.equal(data.__getitems__(indices), expected)


def test_subjects_have_slices_spread_over_all_and_their_families_numbers(tiny_store: Store) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    everything = data.of_subject(1)
    assert torch.equal(everything, data.__getitems__(range(6, 12)))
    assert torch.equal(data.of_subject(1, 3), everything[[0, 2, 5]])
    for limit in (0, 6, 7):
        assert torch.equal(data.of_subject(1, limit), everything)
    assert data.families_of([7, 0, 1, 12]).tolist() == [0, 1, 1, 2]


def test_a_pickled_data_set_carries_no_pixels(tiny_store: Store) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects())
    small, image = len(pickle.dumps(data)), data[3]
    assert len(pickle.dumps(data)) < small + 100
    assert torch.equal(pickle.loads(pickle.dumps(data))[3], image)


@pytest.mark.parametrize("harm", ["cut", "removed", "zeros"])
def test_a_damaged_shard_is_an_input_error(
    work: Path, store_writer: Callable[..., Store], harm: str
) -> None:
    store = store_writer(work)
    entry = store.subjects("train")[0]
    data, shard = SliceDataset(store, [entry]), store.path / entry.shard
    if harm == "zeros":
        shard.write_bytes(bytes(shard.stat().st_size))
    elif harm == "cut":
        assert len(data) == len(data.of_subject(0))  # opened before the harm
        os.truncate(shard, shard.stat().st_size - 1)
    else:
        shard.unlink()
    with pytest.raises(InputError, match=r"p00\.\w+\.npy"):
        data[5]


def test_a_store_opens_by_name_and_by_path(tiny_store: Store) -> None:
    by_name = open_store("tiny", tiny_store.path.parents[1])
    by_path = open_store(str(tiny_store.path), Path("/nowhere"))
    assert by_name.digest == by_path.digest == tiny_store.digest


@pytest.mark.parametrize("way", [{"workers": 2}, {"on_device": "always"}], ids=str)
def test_batches_are_the_same_whoever_reads_them(tiny_store: Store, way: dict[str, Any]) -> None:
    """Epoch after epoch, from the middle of one, and after one that was left early."""
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    sampler = EpochSampler(len(data), 5, seed=3)
    batches = Batches(data, sampler, DataConfig(**way), CPU)
    for sampler.epoch, sampler.start in ((0, 0), (1, 2), (2, 0)):
        expected = [data.__getitems__(indices) for indices in sampler]
        for left, right in zip(batches, expected, strict=True):
            assert left.dtype == torch.float32 and torch.equal(left, right)
        with contextlib.closing(iter(batches)) as left_early:
            next(left_early)


class _Handlers(SliceDataset):
    """Gives, instead of images, whether a worker reads and both signals are ignored."""

    def __getitems__(self, indices: Any) -> Tensor:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        ignored = all(handler == signal.SIG_IGN for handler in handlers)
        return torch.tensor([float(get_worker_info() is not None), float(ignored)])


def test_workers_leave_signals_to_the_parent(tiny_store: Store) -> None:
    """Ctrl-C reaches the whole group of processes, and the parent still wants its batch."""
    data = _Handlers(tiny_store, tiny_store.subjects("train"))
    before = signal.getsignal(signal.SIGTERM)
    batches = Batches(data, EpochSampler(len(data), 5, seed=0), DataConfig(workers=1), CPU)
    assert torch.equal(torch.stack(list(batches)), torch.ones(3, 2))
    assert signal.getsignal(signal.SIGTERM) is before


def test_slices_stay_in_a_device_s_memory_where_they_fit(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto: a share of a GPU's free memory; always and never whatever the device."""
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    assert data.bytes == data.resident(CPU).nbytes == 18 * 32 * 32 * 2
    for free, fits in ((data.bytes * 4, True), (data.bytes * 3, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        assert slices._resident(data, DataConfig(), CUDA) is fits
        assert slices._resident(data, DataConfig(on_device="always"), CUDA)
        assert not slices._resident(data, DataConfig(on_device="never"), CUDA)
    assert not slices._resident(data, DataConfig(), CPU)


def _anonymous_megabytes() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return int(size) / 1024


def _in_a_child(measure: Callable[[], float]) -> float:
    """The result of a function in a forked process, which nothing else uses."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        result = math.nan
        try:
            result = measure()
        finally:
            os.write(writer, str(result).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return float(said)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_slices_read(
    work: Path, store_writer: Callable[..., Store]
) -> None:
    store = store_writer(work, splits=["train"] * 8, slices=100, side=256)
    data = SliceDataset(store, store.subjects())
    assert data.bytes > 100e6
    sampler = EpochSampler(len(data), 16, seed=0)
    batches = Batches(data, sampler, DataConfig(), CPU)

    def growth() -> float:
        for _ in zip(range(15), batches, strict=False):
            pass  # until the allocator has what it wants to keep
        sizes = [_anonymous_megabytes()]
        for sampler.epoch in range(3):
            assert sum(float(images.sum()) for images in batches) > 0
            sizes.append(_anonymous_megabytes())
        return max(sizes) - sizes[0]

    def kept() -> float:
        before = _anonymous_megabytes()
        everything = list(batches)
        return _anonymous_megabytes() - before + 0 * len(everything)

    # Three epochs read 600 MB as float32; an allocator may come to keep a few batches more.
    assert _in_a_child(growth) < 60
    assert _in_a_child(kept) > 100  # what a leak would look like: the measure sees it


@pytest.mark.parametrize(("low", "high"), [(100.0, 1800.0), (-5.0, 5.0), (0.0, 1e-3)])
def test_intensities_go_to_the_scanner_s_unit_and_back(low: float, high: float) -> None:
    inside = np.zeros((4, 5, 6), bool)
    inside[1:3] = True
    random = np.random.default_rng(0)
    scanner = np.where(inside, random.uniform(low, high, inside.shape), 0).astype(np.float32)
    unit = np.where(inside, (scanner - low) / (high - low), 0).astype(np.float32)
    for values in (unit, torch.from_numpy(unit)):
        back = np.asarray(to_scanner(values, low, high))
        bright = unit > DARK
        np.testing.assert_allclose(back[bright], scanner[bright], atol=1e-5 * (high - low))
        assert (back[~inside] == 0).all()
    for wrong in ((high, low), (low, low), (low, float("nan"))):
        with pytest.raises(ValueError, match="low"):
            to_scanner(unit, *wrong)
