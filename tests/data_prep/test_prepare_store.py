"""The store: what is written is what is read, and what is wrong is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_volumes import write_cohort

from data_prep.common.files import atomic_file
from data_prep.config import PrepareConfig
from data_prep.preparation import prepare
from data_prep.store import Store, StoreError
from data_prep.volume.transforms import load_volume

NAMES = ["101", "102", "103", "104", "105", "106"]


@pytest.fixture
def config(tmp_path: Path) -> PrepareConfig:
    root = write_cohort(tmp_path / "raw", NAMES)
    return PrepareConfig(
        name="small", source="hcp", root=str(root), size=32, spacing_mm=1.0, workers=1
    )


@pytest.fixture
def store(config: PrepareConfig, work: Path) -> Store:
    return prepare(config, work, lambda line: None).store


def test_slices_come_back_within_half_a_step(store: Store, config: PrepareConfig) -> None:
    for entry in store.subjects("all"):
        cut = load_volume(Path(config.root) / entry.source, None, config).slices(config)
        pixels = store.slices(entry)
        assert pixels.dtype == np.uint16
        assert pixels.shape == (len(entry.slice_indices), *store.image_shape)
        assert not pixels.flags.writeable
        np.testing.assert_allclose(pixels / 65535, cut.images, atol=0.5 / 65535 + 1e-7)
        np.testing.assert_allclose(entry.affine, cut.affine)
        assert entry.slice_indices == cut.indices


def test_the_splits_make_up_everybody(store: Store) -> None:
    parts = [store.subjects(s) for s in ("train", "validation", "test")]
    assert sorted(e.subject for part in parts for e in part) == NAMES
    assert [e.subject for e in store.subjects("all")] == NAMES


def test_the_files_of_a_store_are_these(store: Store) -> None:
    found = {str(p.relative_to(store.path)) for p in store.path.rglob("*") if p.is_file()}
    report = {f"report/{name}" for name in ("SHA256SUMS", "index.html", "subjects.csv")}
    assert found == {"manifest.json", *report, *(entry.shard for entry in store.entries)}


def test_the_manifest_has_these_keys(store: Store) -> None:
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert list(manifest) == [
        "schema_version",
        "name",
        "simulated",
        "configuration",
        "configuration_digest",
        "image_shape",
        "spacing_mm",
        "orientation",
        "plane",
        "checks_version",
        "subjects",
        "quarantined",
        "manifest_sha256",
    ]
    assert manifest["schema_version"] == 1
    assert manifest["simulated"] is False
    assert manifest["image_shape"] == [1, 32, 32]
    assert manifest["orientation"] == "rows A>P, columns L>R"


def test_equal_data_have_equal_digests_wherever_they_lie(
    config: PrepareConfig, store: Store, tmp_path: Path
) -> None:
    root = write_cohort(tmp_path / "elsewhere", NAMES)
    again = prepare(replace(config, root=str(root), name="again"), tmp_path / "w", lambda _: None)
    assert again.store.digest == store.digest
    moved = replace(config, root=str(root), name="salted")
    salted = prepare(
        replace(moved, split=replace(config.split, salt="x")), tmp_path / "w", lambda _: None
    )
    assert salted.store.digest != store.digest


def version(manifest: dict[str, Any]) -> None:
    manifest["schema_version"] = 2


def missing_key(manifest: dict[str, Any]) -> None:
    del manifest["subjects"][0]["family"]


def outside(manifest: dict[str, Any]) -> None:
    manifest["subjects"][0]["shard"] = "../../secret.npy"


def absolute(manifest: dict[str, Any]) -> None:
    manifest["subjects"][0]["shard"] = "/etc/hostname"


def absent(manifest: dict[str, Any]) -> None:
    manifest["subjects"][0]["shard"] = "slices/absent.npy"


def overlap(manifest: dict[str, Any]) -> None:
    first, second = manifest["subjects"][:2]
    second["family"] = first["family"]
    first["split"], second["split"] = "train", "test"


def twice(manifest: dict[str, Any]) -> None:
    manifest["subjects"][1]["subject"] = manifest["subjects"][0]["subject"]


def shared_shard(manifest: dict[str, Any]) -> None:
    first, second = manifest["subjects"][:2]
    second["shard"] = first["shard"]
    first["split"], second["split"] = "train", "test"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (twice, "subject 101 is there twice"),
        (shared_shard, "shard slices/101.* is in test and train"),
        (version, "schema version 2"),
        (missing_key, "damaged"),
        (outside, "outside the store"),
        (absolute, "outside the store"),
        (absent, "missing"),
        (overlap, "family 101"),
    ],
)
def test_a_damaged_manifest_is_refused(
    store: Store, damage: Callable[[dict[str, Any]], None], told: str
) -> None:
    path = store.path / "manifest.json"
    manifest = json.loads(path.read_text())
    damage(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=told):
        Store.open(store.path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "{}"])
def test_a_manifest_of_another_kind_is_refused(store: Store, content: str) -> None:
    (store.path / "manifest.json").write_text(content)
    with pytest.raises(StoreError):
        Store.open(store.path)


def test_a_shard_of_the_wrong_length_is_refused(store: Store) -> None:
    shard = store.path / store.entries[0].shard
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(StoreError, match="wrong length"):
        Store.open(store.path)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_file(path) as stream:
            stream.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with atomic_file(path) as stream:
        stream.write(b"new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
