"""Progress of long work: a bar on a terminal, plain lines otherwise."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text


class _Remaining(ProgressColumn):
    """The time left as the reporter sees it."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['left']} left")


class Reporter:
    """Shows how far some work is, how it goes and how long it will take.

    Without a terminal a line is printed at most every `seconds`.
    """

    def __init__(self, shown: bool = True, seconds: float = 10.0) -> None:
        self._shown = shown
        self._seconds = seconds
        self._printed = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
            self._bar = Progress(
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                _Remaining(),
                TextColumn("{task.fields[note]}"),
                console=Console(),
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("", total=1.0, note="", left="?")

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: float, note: str, elapsed: float | None = None) -> None:
        """done: share of the work in [0,1]; note: how it goes; elapsed: seconds, by own clock."""
        if not self._shown:
            return
        left = self._left(done, time.monotonic() if elapsed is None else elapsed)
        if self._bar:
            self._bar.update(self._task, completed=done, note=note, left=left)
            return
        now = time.monotonic()
        if now - self._printed >= self._seconds:
            self._printed = now
            print(f"{100 * done:3.0f}%  {left} left  {note}".rstrip(), flush=True)

    def _left(self, done: float, elapsed: float) -> str:
        """Time left at the pace since this program began, not at that of an earlier machine."""
        if self._first is None:
            self._first = (done, elapsed)
        gained, spent = done - self._first[0], elapsed - self._first[1]
        if gained <= 0:
            return "?"
        seconds = round(spent * (1 - done) / gained)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
