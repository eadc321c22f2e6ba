"""What interrupts a training, and what must be left of it: signals, kills, a full disk.

Most interruptions are real: signals and kills of forked processes, which have paid for the imports
already, and of the command line's own in the slow tests.
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
    Command,
    checkpoint_of,
    forked,
    history,
    interrupted,
    logged_images,
    status,
    words_of,
    work_with_a_run,
)
from torch import Tensor
from trainers import (
    STEPS,
    FixedMonitor,
    Interrupted,
    Rows,
    Spoil,
    assert_near,
    config,
    everything,
    number_of,
    same,
    save_numbered,
)

import pipeline.training.loop as loop
from data_prep.store import Store
from pipeline.errors import InputError, Stopped
from pipeline.training.checkpoint import (
    TrainingState,
    best_step,
    latest_checkpoint,
    path_of,
    remove_old,
    save_checkpoint,
)
from pipeline.training.loop import Trainer

SKIPPED = 4  # the step whose batch is spoilt, where one is
# Of weights and of what is tracked, between a run and another process's: bits are promised within
# one process only.
ROUNDING = 2e-5


# ------------------------------------------------------------------ stopped within the process


def stopped(
    store: Store, folder: Path, stops: list[int], spoil: Spoil | None = None, **changes: Any
) -> tuple[Interrupted, Rows]:
    """A run that SIGINT stops while it computes each of the given steps, and that goes on."""
    tracker, epochs = Rows(), 0
    for stop in [*stops, None]:
        torch.manual_seed(12345 + epochs)  # nothing hangs on the global generator after the start
        monitor = FixedMonitor([20.0, 21.0, 22.0, 23.0][epochs:])
        trainer = Interrupted(config(**changes), store, folder, monitor)
        trainer.stop_at, trainer.spoil = stop, spoil
        found = latest_checkpoint(folder / "checkpoints")
        if found is not None:
            trainer.resume(found)
        if stop is None:
            trainer.fit(tracker)
            break
        with pytest.raises(Stopped) as error:
            trainer.fit(tracker)
        assert error.value.number == signal.SIGINT
        found = latest_checkpoint(folder / "checkpoints")
        assert found is not None and found.state.step == stop
        assert not found.state.finished
        epochs = found.state.epoch
    return trainer, tracker


CASES: dict[str, tuple[dict[str, Any], Spoil | None]] = {
    "blur": ({}, None),
    "blur, rate target": ({"training__rate_target": 3.0}, None),
    "gaussian, rate target": (
        {"likelihood__term": "gaussian", "training__rate_target": 3.0}, None
    ),
    "blur, a batch skipped": (
        {}, lambda step, images: images * math.nan if step == SKIPPED else images
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_store: Store, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], dict[int, dict[str, float]]]]:
    """What each case ends with, and the rows it tracks, where nothing interrupts it."""
    found = {}
    for name, (changes, spoil) in CASES.items():
        folder = tmp_path_factory.mktemp("whole")
        torch.manual_seed(0)
        trainer, tracker = stopped(tiny_store, folder, [], spoil, **changes)
        assert trainer.step == STEPS and list(tracker.rows) == [1, 2, 3, 4]
        # A stop at every step is one before the second level opens, and one after it.
        assert [row["levels_open"] for row in tracker.rows.values()] == [1, 2, 2, 2]
        found[name] = (everything(trainer), tracker.rows)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_run_stopped_at_every_step_ends_like_an_uninterrupted_one(
    tiny_store: Store, tmp_path: Path, uninterrupted: Any, case: str
) -> None:
    """The first step, the last of an epoch, the one before and the one after a skipped batch."""
    changes, spoil = CASES[case]
    trainer, tracker = stopped(tiny_store, tmp_path, list(range(1, STEPS)), spoil, **changes)
    end, rows = uninterrupted[case]
    assert same(everything(trainer), end)
    assert tracker.rows == rows
    assert trainer.steps.skipped == (0 if spoil is None else 1)


def test_a_signal_in_the_last_step_finishes_the_run(tiny_store: Store, tmp_path: Path) -> None:
    trainer = Interrupted(config(), tiny_store, tmp_path, FixedMonitor())
    trainer.stop_at = STEPS
    trainer.fit(Rows())
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None and found.state.finished and found.state.step == STEPS


def test_a_second_signal_is_not_held_back(tiny_store: Store, tmp_path: Path) -> None:
    """Ctrl-C twice: someone is impatient, or the first step hangs."""

    class Twice(Interrupted):
        def _agree(self) -> None:
            if self.signals.received:
                os.kill(os.getpid(), signal.SIGINT)
            super()._agree()

    # A shell starts what it puts into the background with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer = Twice(config(), tiny_store, tmp_path, FixedMonitor())
    trainer.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Rows())
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None and found.state.step == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ------------------------------------------------------------------ the command line


@pytest.fixture(scope="module")
def work_of_all(
    tmp_path_factory: pytest.TempPathFactory, store_writer: Callable[..., Store]
) -> Path:
    """A work folder with a store and an uninterrupted run, `whole`, of 3 epochs of 24 steps."""
    return work_with_a_run(tmp_path_factory.mktemp("survival"), store_writer, 1, "whole")


def assert_like_the_whole(work: Path, run: str) -> None:
    """A run ended, and was tracked, like the uninterrupted one of another process."""
    ends = [checkpoint_of(work, name) for name in ("whole", run)]
    assert_near(ends[0].weights, ends[1].weights, ROUNDING)
    clock = ("seconds", "tracking_run", "config")
    whole, parts = ({k: v for k, v in vars(end.state).items() if k not in clock} for end in ends)
    assert_near(whole, parts, ROUNDING)
    assert whole["finished"]
    assert status(work, run) == ["FINISHED"]
    rows = history(work, run)
    assert_near(history(work, "whole"), rows, ROUNDING)
    assert len({row[:2] for row in rows}) == len(rows)
    assert [step for key, step, *_ in rows if key == "train/elbo"] == [1, 2, 3]
    assert logged_images(work, run) == logged_images(work, "whole")
    assert len(logged_images(work, run)) == len(set(logged_images(work, run)))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)],
    ids=["SIGTERM", "SIGINT", "SIGKILL"],
)
def test_a_command_that_is_ended_within_an_epoch_goes_on_as_if_nothing_had_been(
    work_of_all: Path, number: signal.Signals, code: int
) -> None:
    work, run = work_of_all, number.name
    words = words_of(work, run, OFTEN)
    (command,) = interrupted(lambda: [forked(work, words)], work, run, number)
    _assert_stopped(work, run, command, number, code)
    step = checkpoint_of(work, run).state.step
    command = forked(work, words_of(work, run))
    assert command.wait() == 0
    assert f"going on from step {step} in epoch" in command.said.read_text()
    assert_like_the_whole(work, run)


def _assert_stopped(work: Path, run: str, command: Command, number: int, code: int) -> None:
    assert command.code == code
    if code < 0:
        assert status(work, run) == ["RUNNING"]
        return
    said = command.said.read_text()
    name = signal.Signals(number).name
    assert said.splitlines()[-1] == (
        f"stopped by {name}, state saved: the same command continues from there"
    )
    assert "Traceback" not in said and status(work, run) == ["KILLED"]


@pytest.mark.parametrize("call", ["save_checkpoint", "mark_best", "remove_old"])
def test_a_kill_between_two_writes_of_a_save_changes_nothing(work_of_all: Path, call: str) -> None:
    """Before the checkpoint, the epoch is tracked already: it is repeated, and not doubled."""
    work, run = work_of_all, f"killed-before-{call}"

    def prepare_to_be_killed() -> None:
        called = getattr(loop, call)

        def killed(folder: Path, *rest: Any, **options: Any) -> Any:
            steps = [getattr(value, "step", None) for value in rest]  # save_checkpoint's state
            if path_of(folder, 48).exists() or 48 in steps:
                os.kill(os.getpid(), signal.SIGKILL)
            return called(folder, *rest, **options)

        setattr(loop, call, killed)

    command = forked(work, words_of(work, run), prepare_to_be_killed)
    assert command.wait() == -9
    tracked = [row for row in history(work, run) if row[0] == "train/elbo"]
    assert [step for _, step, *_ in tracked] == [1, 2]
    saved = checkpoint_of(work, run).state.step
    assert saved == (24 if call == "save_checkpoint" else 48)
    assert forked(work, words_of(work, run)).wait() == 0
    assert_like_the_whole(work, run)
    best = [best_step(work / "runs" / name / "checkpoints") for name in (run, "whole")]
    assert best[0] == best[1]


# ------------------------------------------------------------------ killed while it saves


def _save_for_ever(folder: Path, first: int, report: int) -> None:
    """Save checkpoints whose every number is their step, telling each that is complete."""
    step = first
    while True:
        value = torch.full((400_000,), float(step))
        weights = {"one": value, "two": 2 * value}
        state = TrainingState(step=step, optimizer={"moment": value.clone()})
        save_checkpoint(folder, weights, state)
        os.write(report, f"{step}\n".encode())
        remove_old(folder, 2)
        step += 1


def test_a_killed_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    moments, done, seen = random.Random(0), 0, 0
    for _ in range(10):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                _save_for_ever(tmp_path, done + 1, writer)
            finally:
                os._exit(70)
        os.close(writer)
        select.select([reader], [], [], 60)  # it is at work: the first is there
        time.sleep(moments.uniform(0.0, 0.06))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        with os.fdopen(reader) as lines:
            reported = [int(line) for line in lines]
        found = latest_checkpoint(tmp_path)
        assert found is not None
        step = found.state.step
        assert step in (reported[-1], reported[-1] + 1)
        assert bool(
            (found.weights["one"] == step).all() and (found.weights["two"] == 2 * step).all()
        )
        assert bool((found.state.optimizer["moment"] == step).all())
        folders, whole = (
            len(list(tmp_path.glob(f"step-*{end}"))) for end in ("", "/manifest.json")
        )
        seen += len(list(tmp_path.rglob(".*.tmp"))) + folders - whole
        done = step
    assert seen  # some kills met a half-written file
    remove_old(tmp_path, 2)
    names = {path.name for path in tmp_path.rglob("*")}
    whole = {"weights.safetensors", "state.pt", "manifest.json"}
    assert names == {f"step-{done:08d}", f"step-{done - 1:08d}"} | whole


# ------------------------------------------------------------------ the disk is full


@pytest.mark.parametrize("limit", [0, 1000, 250_000])
def test_a_save_on_a_full_disk_is_an_input_error_and_leaves_the_checkpoint_before(
    tmp_path: Path, limit: int
) -> None:
    """The limit of a file's size stands for the disk: it fails in the middle of a write."""
    save_numbered(tmp_path, 1)
    pid = os.fork()
    if not pid:
        code = 70
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                save_numbered(tmp_path, 2, 100_000)
            except InputError as error:
                words = (str(path_of(tmp_path, 2)), "make room", "\n")
                code = 0 if [word in str(error) for word in words] == [True, True, False] else 71
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert number_of(latest_checkpoint(tmp_path)) == 1
    assert not list(tmp_path.rglob(".*.tmp"))
    save_numbered(tmp_path, 2)
    assert number_of(latest_checkpoint(tmp_path)) == 2


def _full_for_a_checkpoint() -> None:
    save = loop.save_checkpoint

    def filling(folder: Path, weights: Any, state: Any) -> Path:
        if state.step == 48:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        return save(folder, weights, state)

    loop.save_checkpoint = filling


def _full_for_the_mark() -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    loop.mark_best = no_space


def _full_for_mlflow() -> None:
    validate = Trainer._validate

    def filling(self: Trainer) -> dict[str, float]:
        if self.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        return validate(self)

    Trainer._validate = filling  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (_full_for_a_checkpoint, "step-00000048 can't be written"),
        (_full_for_the_mark, "No space left on device: make room, then give the same command"),
        (_full_for_mlflow, ""),
    ],
)
def test_a_run_on_a_disk_that_fills_ends_in_one_line_and_goes_on_when_there_is_room(
    work_of_all: Path, fill: Callable[[], None], said: str
) -> None:
    """MLflow's database lies on the same disk: it must not hide what happened."""
    work, run = work_of_all, fill.__name__
    command = forked(work, words_of(work, run), fill)
    code, text = command.wait(), command.said.read_text()
    (error,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert code == 2 and said in error and "Traceback" not in text
    assert forked(work, words_of(work, run)).wait() == 0
    assert_like_the_whole(work, run)


# ------------------------------------------------------------------ nothing is finite


def test_a_run_that_is_not_finite_ends_with_exit_code_2(
    work_of_all: Path,
) -> None:
    work = work_of_all

    def ruin() -> None:
        def spoilt(self: Trainer, images: Tensor) -> Tensor:
            return images * math.nan

        Trainer._augmented = spoilt  # type: ignore[method-assign]

    command = forked(work, words_of(work, "ruined", "--training.max_skipped=5"), ruin)
    code, said = command.wait(), command.said.read_text().splitlines()
    assert code == 2
    assert [line for line in said if "error" in line] == [said[-1]]
    assert (
        said[-1].startswith("error: 6 batches in a row") and "the images are not finite" in said[-1]
    )
    assert status(work, "ruined") == ["FAILED"]
