"""The store that a run was trained on is found again, also on another machine."""

from pathlib import Path

import pytest

from data_prep.store import Store
from pipeline.config import Config
from pipeline.evaluation.record import fingerprint, trained_store
from pipeline.training.checkpoint import find_checkpoint


@pytest.mark.parametrize("path", ["tiny", "/scratch/stores/elsewhere"])
def test_it_is_found_by_its_path_or_by_its_name(tiny_run: Path, path: str) -> None:
    checkpoint = find_checkpoint(tiny_run / "checkpoints", "best")
    state, stores = checkpoint.state, tiny_run.parents[1] / "stores"
    state.config["data"]["store"] = path
    store = trained_store(state)
    assert store is not None and store.digest == Store.open(stores / "tiny").digest
    there = fingerprint(checkpoint, store, Config())
    stores.rename(stores.with_name("moved"))
    assert trained_store(state) is None
    assert fingerprint(checkpoint, store, Config()) != there, "scores differ without it"


def test_another_store_of_that_name_is_not_it(tiny_run: Path) -> None:
    state = find_checkpoint(tiny_run / "checkpoints", "best").state
    state.store["digest"] = "0" * 64
    assert trained_store(state) is None
