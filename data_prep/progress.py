"""A bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(
    items: Iterable[Item], total: int, what: str, say: Callable[[str], None]
) -> Iterator[Item]:
    """Yield `items` and show how many of `total` are done: a line each tenth without a terminal."""
    if not total:
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        yield from track(items, what, total, console=console, transient=True)
        return
    shown = 0
    for count, item in enumerate(items, 1):
        tenth = 10 * count // total
        if tenth > shown:
            shown = tenth
            say(f"{what}: {count} of {total}")
        yield item
