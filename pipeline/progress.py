"""Progress of long work: a bar on a terminal, plain lines otherwise."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Shows how far `total` units of work are.

    Without a terminal a line is printed at most every `seconds`, and for the last unit.
    """

    def __init__(self, title: str, total: int, seconds: float = 10.0) -> None:
        self._title = title
        self._total = total
        self._seconds = seconds
        self._printed = -seconds
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(),
            )
            self._task = self._bar.add_task(title, total=total, note="")

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """So much is done; `note` says in a few words how it goes."""
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if done >= self._total or now - self._printed >= self._seconds:
            self._printed = now
            print(f"{self._title} {done}/{self._total}  {note}".rstrip(), flush=True)
