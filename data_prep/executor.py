"""Runs one function over many items in worker processes and loses none when a worker dies."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_count(requested: int) -> int:
    """`requested`, or for 0 the number of cores this process may use."""
    if requested:
        return requested
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    died: Callable[[Item], Result],
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order in which they finish.

    function and items must pickle: workers are spawned, as forking a process that has threads can
    hang. One worker runs inline. When a worker dies (killed for memory, a crash in compiled code),
    the items that were in flight run once more, each in a process of its own; one that kills that
    too yields `died(item)`. Exceptions of `function` are raised here: catch what is expected there.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    waiting = deque(items)
    while waiting:
        suspects: list[Item] = []
        running: dict[Future[Result], Item] = {}
        with _pool(workers) as pool:
            while (waiting or running) and not suspects:
                # No more in flight than workers, so that a death accuses few.
                while waiting and len(running) < workers and not suspects:
                    item = waiting.popleft()
                    try:
                        running[pool.submit(function, item)] = item
                    except BrokenProcessPool:
                        suspects.append(item)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    item = running.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        suspects.append(item)
                        continue
                    yield result
        suspects += running.values()
        for item in suspects:
            with _pool(1) as pool:
                try:
                    result = pool.submit(function, item).result()
                except BrokenProcessPool:
                    result = died(item)
            yield result


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_leave_interrupts_to_the_parent)


def _leave_interrupts_to_the_parent() -> None:
    """Ctrl-C reaches every process of a terminal; a worker finishes its item and says nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
