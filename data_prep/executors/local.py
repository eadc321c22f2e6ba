"""Runs one function over many items in other processes and loses none when one of them dies."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from data_prep.config import IMAGE_SETS, PrepareConfig

Work = Callable[[Any], Any]  # what is made of one item


def run_all(
    config: PrepareConfig, function: Work, items: Sequence[Any], died: Work
) -> Iterator[Any]:
    """`function(item)` for every item, in the order in which they finish.

    By the Dask cluster of prepare.scheduler, or by processes of this machine. function and items
    must pickle. An item whose process dies (killed for memory, a crash in compiled code) runs again
    apart from the others; one that kills that process too yields `died(item)`. Exceptions of
    `function` are raised here: catch what is expected there.

    Raises:
        InputError: a scheduler is given that cannot be used.
    """
    if config.scheduler:
        from data_prep.executors.dask_cluster import run_on_cluster

        return run_on_cluster(config.scheduler, function, items, died)
    if config.workers == 1:  # the quickest for little work, but a crash ends the command
        return map(function, items)
    # MONAI takes seconds to import.
    heavy = [] if config.source in IMAGE_SETS else ["data_prep.volume.transforms"]
    return run_in_processes(config.workers or available_cores(), function, items, died, heavy)


def available_cores() -> int:
    """The number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_in_processes(
    workers: int, function: Work, items: Sequence[Any], died: Work, preload: Sequence[str] = ()
) -> Iterator[Any]:
    """`run_all` in processes forked from a server that has imported what they need.

    Not from this process: forking a process with threads can hang. preload: modules whose import
    takes long.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.sources.volumes", *preload])

    def pool(size: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(size, context, initializer=_begin_worker)

    waiting = deque(items)
    workers = min(workers, len(items))
    while waiting:
        suspects: list[Any] = []
        running: dict[Future[Any], Any] = {}
        with pool(workers) as executor:
            while (waiting or running) and not suspects:
                # No more in flight than workers, so that few are suspects when one dies.
                while waiting and len(running) < workers and not suspects:
                    item = waiting.popleft()
                    try:
                        running[executor.submit(function, item)] = item
                    except BrokenProcessPool:
                        suspects.append(item)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    item = running.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        suspects.append(item)
                        continue
                    yield result
        for item in [*suspects, *running.values()]:
            with pool(1) as executor:
                try:
                    result = executor.submit(function, item).result()
                except BrokenProcessPool:
                    result = died(item)
            yield result


def _begin_worker() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # there is a worker for every core
    # Ctrl-C reaches every process of a terminal; a worker finishes its item silently.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A pool's workers do not notice when their parent is killed. They would wait forever, or
    # write what they still have into a store that a later run is working on.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
