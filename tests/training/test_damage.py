"""Damaged checkpoints are passed over, never trusted; what is kept and what is removed."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainers import FixedMonitor, Interrupted, Rows, config, number_of, save_numbered

from data_prep.store import Store
from pipeline.errors import InputError, Stopped
from pipeline.training.checkpoint import (
    best_step,
    latest_checkpoint,
    mark_best,
    path_of,
    remove_old,
)
from pipeline.training.loop import Trainer

FILES = ("weights.safetensors", "state.pt", "manifest.json")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the steps 1 and 2."""
    folder = tmp_path_factory.mktemp("sound")
    for step in (1, 2):
        save_numbered(folder, step, 500)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "checkpoints"))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_gives_the_checkpoint_before_or_changes_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = path_of(folder, 2) / name
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    places = {0, len(content) - 1, *(int(n) for n in np.linspace(0, len(content) - 1, 18))}
    for place in sorted(places):
        flipped = bytearray(content)
        flipped[place] ^= int(generator.integers(1, 256))
        path.write_bytes(flipped)
        caplog.clear()
        found = latest_checkpoint(folder)
        if number_of(found) == 1:
            assert (
                str(path_of(folder, 2)) in caplog.text
                and "looking for the one before" in caplog.text
            )
        else:
            assert name == "manifest.json"  # white space, or a number that nobody asks for


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_file_gives_the_checkpoint_before(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str, kept: float
) -> None:
    path = path_of(folder, 2) / name
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert number_of(latest_checkpoint(folder)) == 1
    assert str(path_of(folder, 2)) in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_gives_the_checkpoint_before(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (path_of(folder, 2) / name).unlink()
    assert number_of(latest_checkpoint(folder)) == 1
    # Without a manifest it was never whole, which is what a kill leaves and worth no warning.
    assert (str(path_of(folder, 2)) in caplog.text) == (name != "manifest.json")


@pytest.mark.parametrize("content", [b"[]", b"3", b"{}", b'{"schema_version": 2}', b"\xff\xfe"])
def test_any_other_manifest_gives_the_checkpoint_before(folder: Path, content: bytes) -> None:
    (path_of(folder, 2) / "manifest.json").write_bytes(content)
    assert number_of(latest_checkpoint(folder)) == 1


def test_files_of_two_checkpoints_make_none(folder: Path) -> None:
    shutil.copy(path_of(folder, 1) / "state.pt", path_of(folder, 2) / "state.pt")
    assert number_of(latest_checkpoint(folder)) == 1


def test_without_a_valid_checkpoint_an_input_error_names_the_folder(folder: Path) -> None:
    for step in (1, 2):
        (path_of(folder, step) / "state.pt").write_bytes(b"damaged")
    with pytest.raises(InputError) as error:
        latest_checkpoint(folder)
    assert str(folder) in str(error.value) and "--restart" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_never_prunes_the_only_checkpoint_that_can_be_read(
    tiny_store: Store, tmp_path: Path
) -> None:
    """Going on from before a damaged checkpoint: that one is later, and must not count as kept."""
    changes = {"training__keep_checkpoints": 1, "likelihood__warmup_epochs": 4}
    first = Interrupted(config(**changes), tiny_store, tmp_path, FixedMonitor())
    first.stop_at = 8
    with pytest.raises(Stopped):
        first.fit(Rows())
    folder = tmp_path / "checkpoints"
    shutil.copytree(path_of(folder, 8), path_of(folder, 11))
    (path_of(folder, 11) / "state.pt").write_bytes(b"damaged")
    found = latest_checkpoint(folder)
    assert found is not None and found.state.step == 8
    second = Interrupted(config(**changes), tiny_store, tmp_path, FixedMonitor())
    second.resume(found)
    second.stop_at = 10
    with pytest.raises(Stopped):
        second.fit(Rows())
    found = latest_checkpoint(folder)
    assert found is not None and found.state.step == 10


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_checkpoint_that_would_run_code_is_passed_over(folder: Path, tmp_path: Path) -> None:
    """Its manifest agrees: who can write the one can write the other."""
    victim, path = tmp_path / "executed", path_of(folder, 2)
    torch.save({"schema_version": 2, "step": 2, "moment": _Malicious(victim)}, path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    digest = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
    manifest["sha256"]["state.pt"] = digest
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert number_of(latest_checkpoint(folder)) == 1
    shutil.rmtree(path_of(folder, 1))
    with pytest.raises(InputError):
        latest_checkpoint(folder)
    assert not victim.exists()


@given(
    steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=6, unique=True),
    keep=st.integers(1, 3),
    best=st.integers(0, 5),
)
@settings(max_examples=15)
def test_the_latest_and_the_best_are_kept(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int, best: int
) -> None:
    """Steps beyond eight digits are still in order."""
    folder, steps = tmp_path_factory.mktemp("kept"), sorted(steps)
    marked = steps[min(best, len(steps) - 1)]
    for number, step in enumerate(steps, start=1):
        save_numbered(folder, step, 3)
        if step == marked:
            mark_best(folder, step)
        (path_of(folder, step) / ".weights.safetensors.abc.tmp").write_bytes(b"left")
        path_of(folder, step + 1).mkdir(exist_ok=True)  # a kill came before the manifest
        remove_old(folder, keep)
        kept = {*steps[max(number - keep, 0) : number]} | ({marked} if step >= marked else set())
        found = {path.name for path in folder.glob("step-*")}
        assert found == {path_of(folder, step).name for step in kept}
        assert not list(folder.rglob(".*.tmp"))
        assert number_of(latest_checkpoint(folder)) == step
    assert best_step(folder) == marked


def test_a_run_keeps_its_latest_checkpoints_and_the_best(tiny_store: Store, tmp_path: Path) -> None:
    monitor = FixedMonitor([20.0, 30.0, 22.0, 23.0])
    Trainer(config(), tiny_store, tmp_path, monitor).fit(Rows())
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.json", "step-00000006", "step-00000009", "step-00000012"]
    assert best_step(tmp_path / "checkpoints") == 6
