"""Checkpoints: whole or not at all, and data only; damaged ones are passed over, never trusted."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainers import FixedMonitor, Rows, number_of, save_numbered, trainer_of

from data_prep.store import Store
from pipeline.errors import InputError
from pipeline.training.checkpoint import (
    SCHEMA_VERSION,
    TrainingState,
    best_step,
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    mark_best,
    path_of,
    remove_old,
    save_checkpoint,
)

FILES = ("weights.safetensors", "state.pt", "manifest.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of the steps 1 and 2, to be damaged."""
    for step in (1, 2):
        save_numbered(tmp_path / "checkpoints", step, 500)
    return tmp_path / "checkpoints"


def _sign(path: Path, state: Any) -> None:
    """Write state.pt, and let the manifest agree: who can write the one can write the other."""
    if isinstance(state, bytes):
        (path / "state.pt").write_bytes(state)
    else:
        torch.save(state, path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    digest = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
    manifest["sha256"]["state.pt"] = digest
    (path / "manifest.json").write_text(json.dumps(manifest))


# state.pt of this schema version, key by key: files that exist hold these.
WRITTEN = {
    "schema_version": SCHEMA_VERSION, "step": 7, "epoch": 2, "batch": 1, "images": 16,
    "seconds": 1.5, "sums": {"rate": 3.0}, "finished": False, "best": {"step": 6, "psnr": 20.0},
    "setbacks": ["step 5"],
    "controller": {"beta": 1.0, "target": None}, "optimizer": {"state": {}, "param_groups": []},
    "kernel_optimizer": None, "averaged_steps": 7, "skipped": 1, "skipped_in_a_row": 0,
    "config": {"data": {"store": "tiny"}}, "store": {"name": "tiny", "digest": "00"},
    "image_shape": [1, 32, 32], "tracking_run": "abc", "kernel_images": torch.ones(1, 1, 1, 1),
    "roles": [{"subject": "s", "family": "f", "source_sha256": "11", "role": "train"}],
    "kernel_history": {0: torch.ones(1, 1, 1, 1)},
}  # fmt: skip


def test_files_that_exist_stay_readable(folder: Path) -> None:
    path = path_of(folder, 2)
    _sign(path, WRITTEN)
    read = load_checkpoint(path)
    assert {"schema_version": SCHEMA_VERSION, **vars(read.state)} == WRITTEN
    assert read.digest == hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
    again = torch.load(save_checkpoint(folder / "b", {}, read.state) / "state.pt")
    assert again.keys() == WRITTEN.keys()
    image = torch.randn(2, 3, 4, 5)  # weights of any memory layout
    layouts = {"a": image.to(memory_format=torch.channels_last), "b": image[:, :, ::2]}
    kept = load_checkpoint(save_checkpoint(folder, layouts, TrainingState(step=9))).weights
    assert all(torch.equal(kept[name], value) for name, value in layouts.items())


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_gives_the_checkpoint_before_or_changes_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = path_of(folder, 2) / name
    content = path.read_bytes()
    for place in np.linspace(0, len(content) - 1, 18).astype(int):
        flipped = bytearray(content)
        flipped[place] ^= 1 + int(place) % 255
        path.write_bytes(flipped)
        caplog.clear()
        if number_of(latest_checkpoint(folder)) == 1:
            assert str(path_of(folder, 2)) in caplog.text
            assert "looking for the one before" in caplog.text
        else:
            assert name == "manifest.json"  # white space, or a number that nobody asks for


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    **{
        f"{name} cut": lambda path, name=name: (path / name).write_bytes(
            (path / name).read_bytes()[:-30]
        )
        for name in FILES
    },
    **{f"{name} gone": lambda path, name=name: (path / name).unlink() for name in FILES},
    **{
        f"manifest {text!r}": lambda path, text=text: (path / FILES[2]).write_bytes(text)
        for text in (b"", b"[]", b"{}", b'{"schema_version": 2}', b"\xff\xfe")
    },
    "another's state": lambda path: shutil.copy(path.with_name("step-00000001") / FILES[1], path),
    "code in torch's format": lambda path: _sign(path, {"step": 2, "moment": _Malicious()}),
    "code in a pickle": lambda path: _sign(path, pickle.dumps({"step": _Malicious()})),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_alone_is_an_error_of_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Without a manifest it was never whole, which a kill leaves and which is worth no warning."""
    monkeypatch.chdir(folder)
    path = path_of(folder, 2)
    DAMAGE[how](path)
    assert number_of(latest_checkpoint(folder)) == 1
    assert (str(path) in caplog.text) == (how != "manifest.json gone")
    with pytest.raises(InputError, match="can't be read") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    shutil.rmtree(path_of(folder, 1))
    if how != "manifest.json gone":
        with pytest.raises(InputError, match="--restart") as error:
            latest_checkpoint(folder)
        assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "executed").exists()


def test_without_a_checkpoint_the_way_out_is_told(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None and best_step(tmp_path) is None
    with pytest.raises(InputError, match="train first"):
        find_checkpoint(tmp_path / "checkpoints", "best")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_write_leaves_the_checkpoint_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, call: str
) -> None:
    def failing(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"os.{call}", failing)
        with pytest.raises((InputError, KeyboardInterrupt)) as refused:
            save_numbered(folder, 3)
    if isinstance(refused.value, InputError):
        assert "step-00000003 can't be written (No space left" in str(refused.value)
    assert number_of(latest_checkpoint(folder)) == 2
    assert not list(folder.rglob("*.tmp"))


@given(
    steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=6, unique=True),
    keep=st.integers(1, 3),
    best=st.integers(0, 5),
)
@settings(max_examples=10)
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
        names = {path.name for path in folder.glob("step-*")}
        assert names == {path_of(folder, step).name for step in kept}
        assert not list(folder.rglob(".*.tmp"))
        assert number_of(find_checkpoint(folder, "last")) == step
    assert number_of(find_checkpoint(folder, "best")) == best_step(folder) == marked


def test_a_damaged_checkpoint_that_is_later_does_not_count_as_kept(tmp_path: Path) -> None:
    """Going on from before it: the only checkpoint that can be read is never pruned."""
    for step in (11, 8, 10):
        save_numbered(tmp_path, step, 3)
    (path_of(tmp_path, 11) / "state.pt").write_bytes(b"damaged")
    remove_old(tmp_path, 1, latest=10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_the_mark_of_the_best_follows_its_checkpoint(tiny_store: Store, tmp_path: Path) -> None:
    """A crash may have come before the mark, or damage after it."""
    folder = tmp_path / "checkpoints"
    trainer = trainer_of(tiny_store, tmp_path, FixedMonitor([20.0, 30.0]), training__epochs=2)
    trainer.fit(Rows())
    last = find_checkpoint(folder, "last")
    (folder / "best.json").unlink()
    trainer.resume(last)
    assert best_step(folder) == trainer.best["step"] == 6
    shutil.rmtree(path_of(folder, 6))
    trainer.resume(last)
    assert best_step(folder) is None and trainer.best["step"] == -1
