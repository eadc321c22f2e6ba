"""What interrupts a training, and what must be left of it: signals, kills, a full disk.

Most interruptions are real: signals and kills of forked processes, which have paid for the imports
already.
"""

import errno
import math
import os
import random
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    OFTEN,
    assert_like,
    checkpoint_of,
    ended,
    forked,
    interrupted,
    status,
    words_of,
)
from torch import Tensor
from trainers import (
    STEPS,
    FixedMonitor,
    Rows,
    Spoil,
    everything,
    number_of,
    same,
    save_numbered,
    trainer_of,
)

import pipeline.training.loop as loop
from data_prep.store import Store
from pipeline.errors import Stopped
from pipeline.training.checkpoint import best_step, latest_checkpoint, path_of, remove_old
from pipeline.training.loop import Trainer

# ------------------------------------------------------------------ stopped within the process


def _stopped(
    store: Store, folder: Path, stops: list[int], spoil: Spoil | None, changes: dict[str, Any]
) -> tuple[dict[str, Any], dict[int, dict[str, float]]]:
    """The end of a run that SIGINT stops while it computes each of these steps, and its rows."""
    tracker, epochs = Rows(), 0
    for stop in [*stops, None]:
        torch.manual_seed(12345 + epochs)  # nothing hangs on the global generator after the start
        monitor = FixedMonitor([20.0, 21.0, 22.0, 23.0][epochs:])
        trainer = trainer_of(store, folder, monitor, **changes)
        trainer.stop_at, trainer.spoil = stop, spoil
        kept = latest_checkpoint(folder / "checkpoints")
        if kept is not None:
            trainer.resume(kept)
        if stop is None:
            trainer.fit(tracker)
            break
        with pytest.raises(Stopped) as error:
            trainer.fit(tracker)
        assert error.value.number == signal.SIGINT
        kept = latest_checkpoint(folder / "checkpoints")
        assert kept is not None and kept.state.step == stop and not kept.state.finished
        epochs = kept.state.epoch
    return everything(trainer), tracker.rows


@pytest.mark.parametrize("term", ["blur", "gaussian"])
def test_a_run_stopped_at_every_step_ends_like_an_uninterrupted_one(
    tiny_store: Store, tmp_path: Path, term: str
) -> None:
    """To the last bit: the first step, the last of an epoch, before and after a skipped batch, one
    before the second level opens, and one after it; a rate target moves β."""

    def spoil(step: int, images: Tensor) -> Tensor:
        return images * math.nan if step == 4 else images

    changes = {"likelihood__term": term, "training__rate_target": 3.0}
    whole, rows = _stopped(tiny_store, tmp_path / "whole", [], spoil, changes)
    assert [row["levels_open"] for row in rows.values()] == [1, 2, 2, 2]
    stops = list(range(1, STEPS))
    parts, found = _stopped(tiny_store, tmp_path / "parts", stops, spoil, changes)
    assert parts["step"] == STEPS and parts["skipped"] == 1
    assert same(parts, whole) and found == rows


def test_a_signal_in_the_last_step_finishes_the_run(tiny_store: Store, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_store, tmp_path)
    trainer.stop_at = STEPS
    trainer.fit(Rows())
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None and kept.state.finished and kept.state.step == STEPS


def test_a_second_signal_is_not_held_back(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C twice: someone is impatient, or the first step hangs."""
    # A shell starts what it puts into the background with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer = trainer_of(tiny_store, tmp_path)
    trainer.stop_at, agree = 5, trainer._agree

    def agree_late() -> None:
        if trainer.signals.received:
            os.kill(os.getpid(), signal.SIGINT)
        agree()

    monkeypatch.setattr(trainer, "_agree", agree_late)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Rows())
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None and kept.state.step == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGKILL, -9),
    ],
)
def test_a_command_that_is_ended_within_an_epoch_goes_on_as_if_nothing_had_been(
    work_of_all: Path, number: signal.Signals, code: int
) -> None:
    work, run = work_of_all, number.name
    words = words_of(work, run, OFTEN)
    (command,) = interrupted(lambda: [forked(work, words)], work, run, number)
    assert command.code == code
    if code > 0:
        said = command.said.read_text()
        told = f"stopped by {run}, state saved: the same command continues from there"
        assert said.splitlines()[-1] == told
        assert "Traceback" not in said
    assert status(work, run) == ["KILLED" if code > 0 else "RUNNING"]
    step = checkpoint_of(work, run).state.step
    (said,) = ended(forked(work, words_of(work, run)))
    assert f"going on from step {step} in epoch" in said
    assert_like(work, "one", run)


def _killed_before(call: str) -> None:
    called = getattr(loop, call)

    def killed(folder: Path, *rest: Any, **options: Any) -> Any:
        steps = [getattr(value, "step", None) for value in rest]  # save_checkpoint's state
        if path_of(folder, 12).exists() or 12 in steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return called(folder, *rest, **options)

    setattr(loop, call, killed)


def _full_for_the_mark() -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    loop.mark_best = no_space


def _full_for_mlflow() -> None:
    """The limit of a file's size stands for the disk: it fails in the middle of a write."""
    validate = Trainer._validate

    def filling(self: Trainer) -> dict[str, float]:
        if self.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        return validate(self)

    Trainer._validate = filling  # type: ignore[method-assign]


TROUBLE: dict[str, tuple[Callable[[], None], str, int]] = {
    "killed before the checkpoint": (lambda: _killed_before("save_checkpoint"), "", 6),
    "killed before the mark": (lambda: _killed_before("mark_best"), "", 12),
    "killed before pruning": (lambda: _killed_before("remove_old"), "", 12),
    "full for the mark": (_full_for_the_mark, "No space left on device: make room, then", 6),
    "full for MLflow": (_full_for_mlflow, "error: ", 6),
}


SLOW = ("killed before pruning", "full for the mark")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in TROUBLE]
)
def test_trouble_between_two_writes_of_a_save_changes_nothing(work_of_all: Path, name: str) -> None:
    """The epoch is tracked before its checkpoint: it is repeated, and not doubled. A full disk is
    told in one line, though MLflow's database lies on the same disk."""
    before, words, step = TROUBLE[name]
    work, run = work_of_all, name.replace(" ", "-")
    command = forked(work, words_of(work, run), before)
    code, text = command.wait(), command.said.read_text()
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == (2 if words else -9) and len(errors) == bool(words) and words in "".join(errors)
    assert "Traceback" not in text and checkpoint_of(work, run).state.step >= step
    ended(forked(work, words_of(work, run)))
    assert_like(work, "one", run)
    best = [best_step(work / "runs" / name / "checkpoints") for name in (run, "one")]
    assert best[0] == best[1]


# ------------------------------------------------------------------ killed while it saves


def test_a_killed_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    moments, done, seen = random.Random(0), 0, 0
    for _ in range(10):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            step = done + 1
            try:
                while True:
                    save_numbered(tmp_path, step, 400_000)
                    os.write(writer, f"{step}\n".encode())
                    remove_old(tmp_path, 2)
                    step += 1
            finally:
                os._exit(70)
        os.close(writer)
        select.select([reader], [], [], 60)  # it is at work: the first is there
        time.sleep(moments.uniform(0.0, 0.06))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        with os.fdopen(reader) as lines:
            reported = [int(line) for line in lines]
        done = number_of(latest_checkpoint(tmp_path))
        assert done in (reported[-1], reported[-1] + 1)
        folders, whole = (
            len(list(tmp_path.glob(f"step-*{end}"))) for end in ("", "/manifest.json")
        )
        seen += len(list(tmp_path.rglob(".*.tmp"))) + folders - whole
    assert seen  # some kills met a half-written file
    remove_old(tmp_path, 2)
    names = {path.name for path in tmp_path.rglob("*")}
    files = {"weights.safetensors", "state.pt", "manifest.json"}
    assert names == {f"step-{done:08d}", f"step-{done - 1:08d}"} | files
