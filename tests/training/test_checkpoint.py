"""The checkpoint: whole or not at all, and data only."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.training import checkpoint
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint


def _one_line(error: pytest.ExceptionInfo[InputError], path: Path) -> str:
    text = str(error.value)
    assert "\n" not in text and str(path) in text and len(text) < 500
    return text


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "weights": {"a": torch.randn(3, 2)}, "history": {1: torch.ones(2)}, "epoch": 3,
        "config": {"latent": [4], "target": None, "term": "blur", "scale": 0.5, "flip": True},
    }  # fmt: skip
    save_checkpoint(tmp_path / "deep" / "last.pt", state)
    found = load_checkpoint(tmp_path / "deep" / "last.pt")
    assert torch.equal(found["weights"]["a"], state["weights"]["a"])
    assert torch.equal(found["history"][1], state["history"][1])
    assert found["config"] == state["config"] and found["epoch"] == 3


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_a_failing_write_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})

    def half_a_file(state: Any, stream: Any) -> None:
        stream.write(b"half")
        raise error

    monkeypatch.setattr(checkpoint.torch, "save", half_a_file)
    with pytest.raises(type(error)):
        save_checkpoint(path, {"epoch": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
    assert load_checkpoint(path)["epoch"] == 1


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, writer: str) -> None:
    path, victim = tmp_path / "last.pt", tmp_path / "executed"
    state = {"schema_version": checkpoint.SCHEMA_VERSION, "epoch": _Malicious(victim)}
    if writer == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    with pytest.raises(InputError, match="can't be read") as error:
        load_checkpoint(path)
    _one_line(error, path)
    assert not victim.exists()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_an_input_error(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weights": torch.randn(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match="can't be read") as error:
        load_checkpoint(path)
    assert "train" in _one_line(error, path)


@given(content=st.binary(max_size=64))
def test_any_other_file_is_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pt"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_checkpoint(path)
    _one_line(error, path)


@pytest.mark.parametrize("state", [{"schema_version": 99}, {"epoch": 1}, [1, 2], 3], ids=str)
def test_another_schema_is_an_input_error(tmp_path: Path, state: Any) -> None:
    path = tmp_path / "last.pt"
    torch.save(state, path)
    with pytest.raises(InputError, match="schema version") as error:
        load_checkpoint(path)
    _one_line(error, path)


def test_a_missing_file_and_a_folder_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint") as error:
        load_checkpoint(tmp_path / "last.pt")
    _one_line(error, tmp_path / "last.pt")
    with pytest.raises(InputError, match="can't be read"):
        load_checkpoint(tmp_path)
