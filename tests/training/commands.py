"""The command line in processes of its own, and what it leaves in the files and in MLflow."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.__main__ import main
from pipeline.training.checkpoint import Checkpoint, latest_checkpoint

ROOT = Path(__file__).parents[2]
# A checkpoint after every few steps.
OFTEN = "--training.checkpoint_minutes=0.0001"
# Of weights between a run and another process's: bits are promised within one process only.
ROUNDING = 2e-5

Words = tuple[str, ...]


@dataclass
class Command:
    """A running command line, what it writes to both streams, and how to wait for its end."""

    pid: int
    said: Path
    code: int | None = None

    def wait(self, seconds: float = 200.0, seen: Callable[[], bool] = lambda: False) -> int | None:
        """The exit code, −N after a signal N; None where something was seen before the end."""
        end = time.monotonic() + seconds
        while self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if ended else None
            if self.code is None and seen():
                return None
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"nothing in {seconds} s: {self.said.read_text()}")
            time.sleep(0.005)
        return self.code


def ended(*commands: Command) -> list[str]:
    """What commands that must succeed have said."""
    codes = [command.wait() for command in commands]
    said = [command.said.read_text() for command in commands]
    assert codes == [0] * len(commands), said
    return said


def words_of(work: Path, run: str, *more: str) -> Words:
    """Arguments that train a run."""
    return ("train", "--config", str(work / "tiny.yaml"), "--run", run, *more)


def forked(
    work: Path,
    words: Words,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Command:
    """The command line in a forked process, with `before` called in it first.

    Its imports are paid for; the rest, signals included, is as in a process of its own.
    """
    said = work / f"said-{time.monotonic_ns()}.txt"
    pid = os.fork()
    if pid:
        return Command(pid, said)
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stream = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.environ |= {"WORK": str(work), **(environment or {})}
        if before:
            before()
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def forked_ranks(
    work: Path, words: Words, before: Callable[[], None] | None = None
) -> list[Command]:
    """Two forked processes that train together, with what torchrun would tell each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return [forked(work, words, before, rank) for rank in ranks]


def launched(work: Path, words: Words) -> Command:
    """Two processes as a user starts them, by torchrun."""
    said = work / f"said-{time.monotonic_ns()}.txt"
    environment = os.environ | {"WORK": str(work), "OMP_NUM_THREADS": "1"}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with said.open("w") as stream:
        process = subprocess.Popen(  # "--", for torchrun would take --run for its own
            [sys.executable, *launcher, "-m", "--", "pipeline", *words],
            cwd=ROOT, env=environment, stdout=stream, stderr=stream,
        )  # fmt: skip
    return Command(process.pid, said)


def interrupted(
    start: Callable[[], list[Command]], work: Path, run: str, number: int, whom: int = 0
) -> list[Command]:
    """Start a run, and again where needed, until a signal to one process met it within an epoch."""
    folder = work / "runs" / run / "checkpoints"

    def whole() -> set[str]:
        return {path.parent.name for path in folder.glob("step-*/manifest.json")}

    for _ in range(5):
        known = whole() | {"step-00000000"}
        commands = start()
        code = commands[0].wait(seen=lambda known=known: bool(whole() - known))  # type: ignore[misc]
        assert code is None, commands[0].said.read_text()
        os.kill(commands[whom].pid, number)
        for command in commands:
            command.wait()
        if checkpoint_of(work, run).state.batch > 0:
            return commands
    raise AssertionError("five times a signal came at the end of an epoch")


# ------------------------------------------------------------------ what a command leaves


def checkpoint_of(work: Path, run: str) -> Checkpoint:
    """The run's latest checkpoint."""
    latest = latest_checkpoint(work / "runs" / run / "checkpoints")
    assert latest is not None
    return latest


def files_of(work: Path, run: str) -> list[str]:
    """The files of a run, by their paths in its folder."""
    folder = work / "runs" / run
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The MLflow runs of the trainings of a run of this name.
OF_RUN = (
    "run_uuid in (select run_uuid from tags where key = 'run' and value = ?) and "
    "run_uuid in (select run_uuid from tags where key = 'stage' and value = 'training')"
)


def asked(work: Path, question: str, run: str) -> list[tuple[Any, ...]]:
    """Rows of MLflow's database that belong to a run's trainings."""
    with contextlib.closing(sqlite3.connect(work / "mlflow.db")) as database:
        return database.execute(question.format(OF_RUN), (run,)).fetchall()


def status(work: Path, run: str) -> list[str]:
    """The status of each MLflow run of a training."""
    return [row[0] for row in asked(work, "select status from runs where {}", run)]


def history(work: Path, run: str) -> dict[tuple[str, int], float]:
    """The values by key and step of all that was tracked, but for what the clock decides."""
    rows = asked(
        work,
        "select key, step, value from metrics where {} and key <> 'train/images_per_second' "
        "and key not like 'system/%'",
        run,
    )
    assert len({row[:2] for row in rows}) == len(rows), "nothing is tracked twice"
    return {(key, step): value for key, step, value in rows}


def assert_like(work: Path, one: str, two: str) -> None:
    """A run ended, was tracked, and left the same files as another process's, but for rounding."""
    ends = [checkpoint_of(work, run) for run in (one, two)]
    for keys in ("step", "epoch", "batch", "finished", "averaged_steps", "skipped", "roles"):
        assert getattr(ends[0].state, keys) == getattr(ends[1].state, keys)
    weights, kernels = ([e.weights for e in ends], [e.state.kernel_history for e in ends])
    for left, right in (weights, kernels):
        torch.testing.assert_close(right, left, rtol=0, atol=ROUNDING, equal_nan=True)
    assert ends[0].state.finished and status(work, two) == ["FINISHED"]
    assert history(work, two) == pytest.approx(history(work, one), rel=2e-3, abs=1e-4)
    assert files_of(work, two) == files_of(work, one)
    assert logged_images(work, two) == logged_images(work, one)


def logged_images(work: Path, run: str) -> list[str]:
    """The logged images' names without the clock's part."""
    ((folder,),) = asked(work, "select artifact_uri from runs where {}", run)
    names = [path.name for path in (Path(folder.removeprefix("file://")) / "images").iterdir()]
    return sorted(name.split("timestamp")[0] + Path(name).suffix for name in names)
