"""Runs of a comparison, several at once, each in a process of its own."""

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from pipeline.comparison.plan import Entry
from pipeline.errors import InputError, Stopped
from pipeline.progress import Reporter

LOGS, LOCKS = "logs", "locks"


def run_entries(
    entries: Iterable[Entry],
    jobs: int,
    folder: Path,
    *,
    done: int,
    restart: bool,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Train and score every entry; returns what became of those that failed, by their run.

    One that fails costs the others nothing. What an entry says goes to folder/logs/RUN.log.
    `done`: how many of the comparison's runs were finished before. Processes do not outlive this
    one: when it dies, they save their state and stop.
    """
    waiting = deque(entries)
    total = done + len(waiting)
    running: dict[int, tuple[SpawnProcess, Entry, float]] = {}
    failed: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    (folder / LOCKS).mkdir(exist_ok=True)
    first = done
    try:
        with Reporter(seconds=30) as reporter:
            while waiting or running:
                while waiting and len(running) < jobs:
                    entry = waiting.popleft()
                    process = context.Process(
                        target=_work, args=(entry, folder, os.getpid(), restart), name=entry.run
                    )
                    process.start()
                    running[process.sentinel] = (process, entry, time.monotonic())
                for sentinel in wait(list(running), timeout=1.0):
                    assert isinstance(sentinel, int)
                    process, entry, began = running.pop(sentinel)
                    process.join()
                    done += 1
                    minutes = (time.monotonic() - began) / 60
                    if process.exitcode:
                        failed[entry.run] = _last_line(folder, entry, process.exitcode)
                        say(f"{entry}: FAILED, {failed[entry.run]}")
                    else:
                        say(f"{entry}: done in {minutes:.1f} min ({done} of {total})")
                now = ", ".join(f"{e.row} seed {e.seed}" for _, e, _ in running.values())
                reporter.update((done - first) / max(total - first, 1), f"{done}/{total}: {now}")
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()
    return failed


def _last_line(folder: Path, entry: Entry, code: int | None) -> str:
    """Why a run failed, as far as its log tells."""
    path = folder / LOGS / f"{entry.run}.log"
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    lines = [line.strip() for line in lines if line.strip()]
    reason = lines[-1].removeprefix("error: ") if lines and code and code > 0 else f"signal {code}"
    return f"{reason} (see {path})"


def _work(entry: Entry, folder: Path, parent: int, restart: bool) -> None:
    """Body of a run's process."""
    with (
        (folder / LOGS / f"{entry.run}.log").open("a", buffering=1) as log,
        (folder / LOCKS / entry.run).open("w") as lock,
    ):
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
        # The process of a comparison that was killed a moment ago may still be saving its state.
        fcntl.flock(lock, fcntl.LOCK_EX)
        sys.exit(_train_and_score(entry, restart))


def _train_and_score(entry: Entry, restart: bool) -> int:
    from pipeline.stages import evaluate_run, train_run

    try:
        train_run(entry.config, entry.run, restart)
        evaluate_run(entry.config, entry.run)
    except (InputError, OSError) as error:
        print(f"error: {error}", flush=True)
        return 2
    except Stopped as error:
        print(f"{error}, state saved", flush=True)
        return 128 + error.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _follow(parent: int) -> None:
    """Ask this process to stop when its parent is gone: nobody would wait for it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
