"""The checkpoint: whole or not at all, and data only."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.training.checkpoint import (
    SCHEMA_VERSION,
    TrainingState,
    best_step,
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    mark_best,
    remove_old,
    save_checkpoint,
)

WEIGHTS = {"objective.a": torch.arange(6.0).reshape(2, 3), "averaged.a": torch.ones(2, 3)}


def _save(folder: Path, step: int, **state: Any) -> Path:
    weights: dict[str, Tensor] = {name: value + step for name, value in WEIGHTS.items()}
    return save_checkpoint(folder, weights, TrainingState(step=step, **state))


def _one_line(error: pytest.ExceptionInfo[InputError], path: Path) -> None:
    text = str(error.value)
    assert "\n" not in text and str(path) in text and len(text) < 500


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    config = {"latent": [4], "target": None, "term": "blur", "scale": 0.5, "flip": True}
    path = _save(tmp_path / "deep", 3, config=config, kernel_history={1: torch.ones(2)})
    found = load_checkpoint(path)
    assert found.path == path and found.state.step == 3
    assert found.state.config == config
    assert torch.equal(found.state.kernel_history[1], torch.ones(2))
    assert found.weights.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert torch.equal(found.weights[name], value + 3)


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


def test_files_that_exist_stay_readable(tmp_path: Path) -> None:
    path = _save(tmp_path, 7)
    torch.save(WRITTEN, path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    found = load_checkpoint(path)
    assert {"schema_version": SCHEMA_VERSION, **vars(found.state)} == WRITTEN
    assert found.digest == hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
    again = torch.load(save_checkpoint(tmp_path / "b", {}, found.state) / "state.pt")
    assert again.keys() == WRITTEN.keys()


def test_weights_of_any_memory_layout_are_written(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 5)
    layouts = {"a": image.to(memory_format=torch.channels_last), "b": image[:, :, ::2]}
    found = load_checkpoint(save_checkpoint(tmp_path, layouts, TrainingState(step=1))).weights
    assert all(torch.equal(found[name], value) for name, value in layouts.items())


def test_the_latest_is_found_by_step_and_the_best_by_its_mark(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None and best_step(tmp_path) is None
    for step in (9, 10, 100):
        _save(tmp_path, step)
    assert find_checkpoint(tmp_path, "best").state.step == 100  # none is marked yet
    mark_best(tmp_path, 10, psnr=20.0)
    assert find_checkpoint(tmp_path, "best").state.step == 10
    assert find_checkpoint(tmp_path, "last").state.step == 100
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 10, "psnr": 20.0}


def test_the_latest_and_the_best_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        _save(tmp_path, step)
    mark_best(tmp_path, 1)
    (tmp_path / "step-00000004" / ".state.pt.x.tmp").write_bytes(b"half")
    (tmp_path / "step-00000009").mkdir()  # a crash came before its manifest
    remove_old(tmp_path, keep=2)
    assert _steps(tmp_path) == [1, 3, 4]
    assert not list(tmp_path.rglob("*.tmp"))
    remove_old(tmp_path, keep=1)
    assert _steps(tmp_path) == [1, 4]


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, writer: str) -> None:
    """With digests that fit: whoever forges a state forges those as well."""
    path, victim = _save(tmp_path, 1), tmp_path / "executed"
    state = {"step": _Malicious(victim)}
    if writer == "torch":
        torch.save(state, path / "state.pt")
    else:
        (path / "state.pt").write_bytes(pickle.dumps(state))
    manifest = json.loads((path / "manifest.json").read_text())
    digest = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
    manifest["sha256"]["state.pt"] = digest
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="can't be read") as error:
        load_checkpoint(path)
    _one_line(error, path)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_an_input_error(tmp_path: Path, name: str, kept: float) -> None:
    path = _save(tmp_path, 1)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: int(kept * len(content) * 0.99)])
    with pytest.raises(InputError, match="can't be read") as error:
        load_checkpoint(path)
    _one_line(error, path)


def test_another_schema_is_an_input_error(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    for content in ('{"schema_version": 99}', "{}", "[1]", "3"):
        (path / "manifest.json").write_text(content)
        with pytest.raises(InputError, match=r"schema version 99|can't be read") as error:
            load_checkpoint(path)
        _one_line(error, path)


def test_without_a_checkpoint_the_way_out_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train first") as error:
        find_checkpoint(tmp_path / "checkpoints", "best")
    _one_line(error, tmp_path / "checkpoints")
    with pytest.raises(InputError, match="can't be read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    _save(tmp_path, 1)

    def failing(number: int) -> None:
        raise error

    monkeypatch.setattr("data_prep.common.files.os.fsync", failing)
    with pytest.raises((InputError, KeyboardInterrupt)):
        _save(tmp_path, 2)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.state.step == 1
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
