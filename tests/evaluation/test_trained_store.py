"""The store that a run was trained on is found again, also on another machine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep.store import Store
from pipeline.config import Config
from pipeline.evaluation.record import fingerprint, trained_store


@pytest.fixture
def store(store_writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("WORK", str(tmp_path))
    return store_writer(tmp_path)


def _state(store: Store, path: str) -> Any:
    return SimpleNamespace(
        config={"data": {"store": path}}, store={"name": store.name, "digest": store.digest}
    )


@pytest.mark.parametrize("path", ["", "/scratch/stores/elsewhere"])
def test_it_is_found_by_its_path_or_by_its_name(store: Store, path: str) -> None:
    found = trained_store(_state(store, path or str(store.path)))
    assert found is not None and found.digest == store.digest


def test_another_store_of_that_name_is_not_it(store: Store) -> None:
    state = _state(store, "/scratch/stores/elsewhere")
    state.store["digest"] = "0" * 64
    assert trained_store(state) is None


def test_scores_without_it_are_not_those_with_it(store: Store, tmp_path: Path) -> None:
    checkpoint: Any = SimpleNamespace(digest="d", state=_state(store, store.name))
    there = fingerprint(checkpoint, store, Config())
    (tmp_path / "stores").rename(tmp_path / "moved")
    assert fingerprint(checkpoint, store, Config()) != there
