"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")

# Columns of a terminal that has room for a bar.
WIDE = 140


def print_line(line: str) -> None:
    """Print at once: a pipe would hold progress back."""
    print(line, flush=True)


def progress(
    items: Iterable[Item], total: int, what: str, notify: Callable[[str], None]
) -> Iterator[Item]:
    """Yield `items` and show how many of `total` are done."""
    with Reporter(notify=notify) as reporter:
        for count, item in enumerate(items, 1):
            reporter.update(count / total, f"{what}: {count} of {total}")
            yield item


class Reporter:
    """Progress of some work, and the time that is left.

    Without a terminal a line goes to `notify` at most every `seconds`. A bar is there from the
    first update that says what the work is.
    """

    def __init__(
        self,
        shown: bool = True,
        seconds: float = 10.0,
        notify: Callable[[str], None] = print_line,
    ) -> None:
        self._shown, self._seconds, self._notify = shown, seconds, notify
        self._printed = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
            from rich import progress as rich
            from rich.table import Column

            # A narrow terminal has room for the figures and not for a bar; of the note, which
            # may be long, it shows the beginning.
            figures = "{task.percentage:3.0f}%  {task.fields[left]} left"
            rest = Column(ratio=1, no_wrap=True)
            self._bar = rich.Progress(
                rich.TextColumn(figures, markup=False, table_column=Column(no_wrap=True)),
                rich.TextColumn("{task.fields[note]}", markup=False, table_column=rest),
                refresh_per_second=4,
                expand=True,
            )
            if self._bar.console.width >= WIDE:
                self._bar.columns = (rich.BarColumn(bar_width=24), *self._bar.columns)
            self._task = self._bar.add_task("", total=1.0, note="", left="?")

    def __enter__(self) -> "Reporter":
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
            if note:
                self._bar.start()
            return
        now = time.monotonic()
        if now - self._printed >= self._seconds:
            self._printed = now
            self._notify(f"{100 * done:3.0f}%  {left} left  {note}".rstrip())

    def _left(self, done: float, elapsed: float) -> str:
        """Time left at the pace since this program began, not at that of an earlier machine."""
        if self._first is None:
            self._first = (done, elapsed)
        gained, spent = done - self._first[0], elapsed - self._first[1]
        if gained <= 0:
            return "?"
        seconds = round(spent * (1 - done) / gained)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
