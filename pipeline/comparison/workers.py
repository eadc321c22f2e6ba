"""Runs of a comparison, several at once, each in a process of its own."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pipeline.comparison.plan import Entry
from pipeline.errors import InputError, Stopped
from pipeline.files import locked
from pipeline.progress import Reporter

LOGS, LOCKS = "logs", "locks"
GRACE_SECONDS = 3.0


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
    running: dict[int, tuple[ForkServerProcess, Entry, float, int]] = {}
    failed: dict[str, str] = {}
    # Forked from a process that has done the imports, which cost more than a small run's scores.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.commands.train", "pipeline.evaluation.evaluate"])
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    (folder / LOCKS).mkdir(exist_ok=True)
    first = done
    try:
        with Reporter(seconds=30) as reporter:
            while waiting or running:
                while waiting and len(running) < jobs:
                    entry = waiting.popleft()
                    words = (entry, folder, restart, dict(os.environ))
                    process = context.Process(target=_work, args=words, name=entry.run)
                    said = _size(_log(folder, entry))
                    process.start()
                    running[process.sentinel] = (process, entry, time.monotonic(), said)
                for sentinel in wait(list(running), timeout=1.0):
                    assert isinstance(sentinel, int)
                    process, entry, began, said = running.pop(sentinel)
                    process.join()
                    done += 1
                    minutes = (time.monotonic() - began) / 60
                    if process.exitcode:
                        failed[entry.run] = _reason(_log(folder, entry), said, process.exitcode)
                        say(f"{entry}: FAILED, {failed[entry.run]}")
                    else:
                        say(f"{entry}: done in {minutes:.1f} min ({done} of {total})")
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
    """Why a run failed: the last line of its log behind `start`, if its code says that it is."""
    if code < 0:
        return f"stopped by {signal.Signals(-code).name} (see {log})"
    words = log.read_bytes()[start:].decode(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in words.split("\n") if line.strip()]
    reason = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
    return f"{reason} (see {log})"


def _work(entry: Entry, folder: Path, restart: bool, environment: dict[str, str]) -> None:
    """Body of a run's process. environment: this one's; the fork's is that of the first call."""
    os.environ.clear()
    os.environ.update(environment)
    with _log(folder, entry).open("a", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.setpgrp()  # Ctrl-C is the comparison's, which passes it on
        threading.Thread(target=_follow, daemon=True).start()
        # The process of a comparison that was killed a moment ago may still be saving its state.
        with locked(folder / LOCKS / entry.run):
            sys.exit(_train_and_score(entry, restart))


def _train_and_score(entry: Entry, restart: bool) -> int:
    from pipeline.commands.evaluate import evaluate_run
    from pipeline.commands.train import train_run

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
    """Ask this process to stop some time after the comparison has died: nobody waits for it.

    Not at once: a scheduler's signal to all of a job's processes has come here as well, and a
    second one would not let the state be saved.
    """
    comparison = multiprocessing.parent_process()
    assert comparison is not None
    comparison.join()
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
