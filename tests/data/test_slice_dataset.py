"""From the store to batches: nothing lost, nothing twice, nothing changed."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.store import Store
from pipeline.data.slices import SliceDataset, open_store
from pipeline.errors import InputError


def test_items_are_the_stored_numbers(tiny_store: Store) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    assert len(data) == 18
    for subject, entry in enumerate(data.subjects):
        raw = np.load(tiny_store.path / entry.shard)
        expected = torch.from_numpy(raw.astype(np.float32) / 65535)
        assert torch.equal(data.of_subject(subject), expected)
        assert list(np.flatnonzero(data.subject_of == subject)) == list(
            range(data.first[subject], data.first[subject + 1])
        )
    assert data[0].dtype == torch.float32 and data[0].shape == (1, 32, 32)


def test_a_limit_spreads_over_all_slices_and_zero_is_none(tiny_store: Store) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    everything = data.of_subject(1)
    assert torch.equal(data.of_subject(1, 3), everything[[0, 2, 5]])
    for limit in (0, 6, 7):
        assert torch.equal(data.of_subject(1, limit), everything)


def test_a_pickled_data_set_carries_no_pixels(tiny_store: Store) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects())
    small = len(pickle.dumps(data))
    image = data[3]
    assert len(pickle.dumps(data)) < small + 100
    assert torch.equal(pickle.loads(pickle.dumps(data))[3], image)


@given(st.lists(st.integers(0, 17), max_size=12))
def test_items_are_those_of_the_shards_in_any_order(tiny_store: Store, indices: list[int]) -> None:
    """In runs, backwards, twice, across subjects."""
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    whole = np.concatenate([tiny_store.slices(entry) for entry in data.subjects])
    expected = torch.from_numpy(whole[indices].astype("int32")).float() / 65535.0
    torch.testing.assert_close(data.__getitems__(indices), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("harm", ["cut", "removed"])
def test_a_shard_that_is_damaged_during_the_work_is_an_input_error(
    work: Path, store_writer: Callable[..., Store], harm: str
) -> None:
    store = store_writer(work)
    entry = store.subjects("train")[0]
    data = SliceDataset(store, [entry])
    assert len(data.of_subject(0)) == 6
    shard = store.path / entry.shard
    if harm == "cut":
        os.truncate(shard, shard.stat().st_size - 1)
    else:
        shard.unlink()
    with pytest.raises(InputError, match=r"p00\.\w+\.npy"):
        data[5]


def test_a_store_opens_by_name_and_by_path(tiny_store: Store) -> None:
    work = tiny_store.path.parents[1]
    by_name, by_path = open_store("tiny", work), open_store(str(tiny_store.path), Path("/nowhere"))
    assert by_name.digest == by_path.digest == tiny_store.digest


def test_a_damaged_shard_is_an_input_error(work: Path, store_writer: Callable[..., Store]) -> None:
    store = store_writer(work)
    entry = store.subjects("train")[0]
    shard = store.path / entry.shard
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(InputError, match=r"p00\.\w+\.npy cannot be read"):
        SliceDataset(open_store("tiny", work), [entry])[0]
