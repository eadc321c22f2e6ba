"""Runs of a comparison, several at once, each in a process of its own."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from data_prep import quieten_mlflow, steady_output
from pipeline.comparison.plan import Entry
from pipeline.errors import InputError, Stopped
from pipeline.files import locked
from pipeline.progress import Reporter

LOGS, LOCKS = "logs", "locks"
GRACE_SECONDS = 3.0
# What every run's process needs; and what one that tracks does.
IMPORTED = ["pipeline.commands.train", "pipeline.evaluation.evaluate", "matplotlib.pyplot"]
TRACKING = ["mlflow.store.tracking.sqlalchemy_store"]


def run_entries(
    entries: Iterable[Entry],
    jobs: int,
    folder: Path,
    *,
    done: int,
    restart: bool,
) -> dict[str, str]:
    """Train and score every entry, each in a process; a failure does not stop the others.

    The processes do not outlive this one: when it dies, they save their state and stop.

    Args:
        entries: the runs to do.
        jobs: how many at once.
        folder: an entry's output goes to logs/RUN.log in it.
        done: how many of the comparison's runs were finished before.
        restart: train anew where there are checkpoints.

    Returns:
        The reasons of the runs that failed, by run.
    """
    waiting = deque(entries)
    total = done + len(waiting)
    running: dict[int, tuple[ForkServerProcess, Entry, float, int]] = {}
    failed: dict[str, str] = {}
    # Forked from a process that has done the imports, which take longer than scoring a small run.
    context = multiprocessing.get_context("forkserver")
    tracked = any(entry.config.tracking.enabled for entry in waiting)
    quieten_mlflow()
    context.set_forkserver_preload(IMPORTED + TRACKING * tracked)
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    (folder / LOCKS).mkdir(exist_ok=True)
    first = done
    try:
        with Reporter(seconds=30) as reporter:
            while waiting or running:
                while waiting and len(running) < jobs:
                    entry = waiting.popleft()
                    arguments = (entry, folder, restart, dict(os.environ))
                    process = context.Process(target=_work, args=arguments, name=entry.run)
                    old_size = _size(_log(folder, entry))
                    process.start()
                    running[process.sentinel] = (process, entry, time.monotonic(), old_size)
                for sentinel in wait(list(running), timeout=1.0):
                    assert isinstance(sentinel, int)
                    process, entry, began, old_size = running.pop(sentinel)
                    process.join()
                    done += 1
                    minutes = (time.monotonic() - began) / 60
                    if process.exitcode:
                        failed[entry.run] = _reason(_log(folder, entry), old_size, process.exitcode)
                        print(f"{entry}: FAILED, {failed[entry.run]}", flush=True)
                    else:
                        print(f"{entry}: done in {minutes:.1f} min ({done} of {total})", flush=True)
                now = ", ".join(f"{e.row} seed {e.seed}" for _, e, *_ in running.values())
                reporter.update((done - first) / max(total - first, 1), f"{done}/{total}: {now}")
    finally:
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.join()
    return failed


def _log(folder: Path, entry: Entry) -> Path:
    return folder / LOGS / f"{entry.run}.log"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(log: Path, start: int, code: int) -> str:
    """Why a run failed: its signal, or the last line of its log after byte `start`."""
    if code < 0:
        return f"stopped by {signal.Signals(-code).name} (see {log})"
    text = log.read_bytes()[start:].decode(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    reason = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
    return f"{reason} (see {log})"


def _work(entry: Entry, folder: Path, restart: bool, environment: dict[str, str]) -> None:
    """Body of a run's process. environment: this one's; the fork's is that of the first call."""
    os.environ.clear()
    os.environ.update(environment)
    with _log(folder, entry).open("a", buffering=1, encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        steady_output()
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.setpgrp()  # Ctrl-C is the comparison's, which passes it on
        threading.Thread(target=_follow, daemon=True).start()
        # The process of a comparison that was killed a moment ago may still be saving its state.
        with locked(folder / LOCKS / entry.run):
            sys.exit(_train_and_score(entry, restart))


def _train_and_score(entry: Entry, restart: bool) -> int:
    from pipeline.commands.train import train_run
    from pipeline.evaluation.evaluate import evaluate_run

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


def _follow() -> None:
    """Ask this process to stop some time after the comparison has died: nothing waits for it.

    Not at once: a scheduler's signal to all of a job's processes has come here as well, and a
    second one would not let the state be saved.
    """
    comparison = multiprocessing.parent_process()
    assert comparison is not None
    comparison.join()
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
