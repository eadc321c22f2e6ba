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
import yaml
from tiny import TINY

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.training.checkpoint import Checkpoint, latest_checkpoint

ROOT = Path(__file__).parents[2]
# A checkpoint after every few steps.
OFTEN = "--training.checkpoint_minutes=0.0001"

Words = tuple[str, ...]


@dataclass
class Command:
    """A running command line, what it writes to both streams, and how to wait for its end."""

    pid: int
    said: Path
    code: int | None = None

    def running(self) -> bool:
        if self.code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if found else None
        return self.code is None

    def wait(self, seconds: float = 200.0) -> int:
        """The exit code, −N after a signal N."""
        self.until(lambda: False, seconds)
        assert self.code is not None
        return self.code

    def until(self, seen: Callable[[], bool], seconds: float = 200.0) -> bool:
        """Wait until something is seen; False where the command ended before."""
        end = time.monotonic() + seconds
        while self.running():
            if seen():
                return True
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"nothing in {seconds} s: {self.said.read_text()}")
            time.sleep(0.005)
        return False


def prepared_work(
    folder: Path, store_writer: Callable[..., Store], batch_size: int, slices: int
) -> Path:
    """A work folder with a tiny store and a configuration, and all imports paid for."""
    work = folder.resolve() / "work"
    store_writer(work, slices=slices)
    training = TINY["training"] | {"batch_size": batch_size}
    (work / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"training": training}))
    with pytest.MonkeyPatch.context() as patch:
        # Elsewhere, so that no forked process inherits an open database.
        patch.setenv("WORK", str(folder / "imports"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = f"--data.store={work}/stores/tiny"
        assert main(words_of(work, "imports", store, "--training.epochs=1")) == 0
    return work


def work_with_a_run(
    folder: Path, store_writer: Callable[..., Store], batch_size: int, run: str
) -> Path:
    """`prepared_work` with slices enough for epochs of many steps, and an uninterrupted run."""
    work = prepared_work(folder, store_writer, batch_size, slices=8)
    command = forked(work, words_of(work, run))
    assert command.wait() == 0, command.said.read_text()
    return work


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
    work: Path, words: Words, count: int, before: Callable[[], None] | None = None
) -> list[Command]:
    """`count` forked processes that train together, with what torchrun would tell each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1",
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    ranks = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [forked(work, words, before, rank) for rank in ranks]


def spawned(work: Path, words: Words, launcher: Words = ()) -> Command:
    """The command line as a user starts it; launcher: python's words that start torchrun."""
    said = work / f"said-{time.monotonic_ns()}.txt"
    environment = os.environ | {"WORK": str(work), "OMP_NUM_THREADS": "1"}
    # "--", for torchrun would take --run for its own.
    module = (*launcher, "-m", "--", "pipeline") if launcher else ("-m", "pipeline")
    with said.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *module, *words],
            cwd=ROOT, env=environment, stdout=stream, stderr=stream,
        )  # fmt: skip
    return Command(process.pid, said)


def interrupted(
    start: Callable[[], list[Command]], work: Path, run: str, number: int, whom: int = 0
) -> list[Command]:
    """Start a run, and again where needed, until a signal to one process met it within an epoch."""
    folder = work / "runs" / run / "checkpoints"
    for _ in range(5):
        before = {path.name for path in folder.glob("step-*")} | {"step-00000000"}
        commands = start()

        def within(known: set[str] = before) -> bool:
            found = folder.glob("step-*/manifest.json")
            return any(path.parent.name not in known for path in found)

        assert commands[0].until(within), commands[0].said.read_text()
        os.kill(commands[whom].pid, number)
        for command in commands:
            command.wait()
        if checkpoint_of(work, run).state.batch > 0:
            return commands
    raise AssertionError("five times a signal came at the end of an epoch")


# ------------------------------------------------------------------ what a command leaves


def checkpoint_of(work: Path, run: str) -> Checkpoint:
    """The run's latest checkpoint."""
    found = latest_checkpoint(work / "runs" / run / "checkpoints")
    assert found is not None
    return found


def files_of(work: Path, run: str) -> list[str]:
    """The files of a run, by their paths in its folder."""
    folder = work / "runs" / run
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def asked(work: Path, question: str, *values: str) -> list[tuple[Any, ...]]:
    """Rows of MLflow's database."""
    with contextlib.closing(sqlite3.connect(work / "mlflow.db")) as database:
        return database.execute(question, values).fetchall()


# The MLflow runs of the trainings of a run of this name.
OF_RUN = (
    "run_uuid in (select run_uuid from tags where key = 'run' and value = ?) and "
    "run_uuid in (select run_uuid from tags where key = 'stage' and value = 'training')"
)


def status(work: Path, run: str) -> list[str]:
    """The status of each MLflow run of a training."""
    return [row[0] for row in asked(work, f"select status from runs where {OF_RUN}", run)]


def history(work: Path, run: str) -> list[tuple[Any, ...]]:
    """(key, step, value, is NaN) of all that was tracked, but for what the clock decides."""
    return asked(
        work,
        f"select key, step, value, is_nan from metrics where {OF_RUN} "
        "and key <> 'train/images_per_second' and key not like 'system/%' order by key, step",
        run,
    )


def logged_images(work: Path, run: str) -> list[str]:
    """The logged images' names without the clock's part."""
    ((folder,),) = asked(work, f"select artifact_uri from runs where {OF_RUN}", run)
    names = [path.name for path in (Path(folder.removeprefix("file://")) / "images").iterdir()]
    return sorted(name.split("timestamp")[0] + Path(name).suffix for name in names)
