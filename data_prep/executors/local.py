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
from typing import Protocol, TypeVar

from data_prep.config import IMAGE_SETS, PrepareConfig

# MONAI is imported where volumes are transformed, which takes seconds.
HEAVY = ("data_prep.volume.transforms",)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Where the work is done."""

    def run_all(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        died: Callable[[Item], Result],
    ) -> Iterator[Result]:
        """Yield `function(item)` forevery item, in the order in which they finish.

        function and items must pickle. An item whose process dies (killed for memory, a crash in
        compiled code) runs again apart from the others; one that kills that process too yields
        `died(item)`. Exceptions of `function` are raised here: catch what is expected there.
        """


def executor_for(config: PrepareConfig) -> Executor:
    """The Dask cluster of prepare.scheduler, else processes of this machine.

    Raises:
        InputError: a scheduler is given and the optional package for it is missing.
    """
    if config.scheduler:
        from data_prep.executors.dask_cluster import DaskCluster

        return DaskCluster(config.scheduler)
    if config.workers == 1:
        return ThisProcess()
    preload = () if config.source in IMAGE_SETS else HEAVY
    return Processes(config.workers or available_cores(), preload)


def available_cores() -> int:
    """The number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ThisProcess:
    """No other process: the quickest for little work, but a crash ends the command."""

    def run_all(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        died: Callable[[Item], Result],
    ) -> Iterator[Result]:
        yield from map(function, items)


class Processes:
    """Worker processes of this machine, forked from a server that has imported what they need.

    Not from this process: forking a process with threads can hang.
    """

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        """preload: modules whose import takes long."""
        self.workers = workers
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["data_prep.sources.volumes", *preload])

    def run_all(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        died: Callable[[Item], Result],
    ) -> Iterator[Result]:
        waiting = deque(items)
        workers = min(self.workers, len(items))
        while waiting:
            suspects: list[Item] = []
            running: dict[Future[Result], Item] = {}
            with self._pool(workers) as pool:
                while (waiting or running) and not suspects:
                    # No more in flight than workers, so that few are suspects when one dies.
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
                with self._pool(1) as pool:
                    try:
                        result = pool.submit(function, item).result()
                    except BrokenProcessPool:
                        result = died(item)
                yield result

    def _pool(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, self.context, initializer=_begin_worker)


def _begin_worker() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # there is a worker forevery core
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
