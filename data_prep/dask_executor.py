"""A Dask cluster as executor: https://distributed.dask.org."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

from data_prep.config import TRANSFORM_VERSION
from data_prep.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

# What a shard's bytes depend on beside the program: all machines must have the same.
DECISIVE_PACKAGES = ("numpy", "scipy", "nibabel", "monai")

SECONDS_TO_CONNECT = 30


class DaskCluster:
    """The workers of a scheduler, which must see the same files under the same paths."""

    def __init__(self, address: str) -> None:
        """address: tcp://host:port. Raises InputError where dask.distributed is missing."""
        if importlib.util.find_spec("distributed") is None:
            raise InputError(
                "prepare.scheduler needs dask.distributed: install the extra 'dask', or leave it "
                "out to use the processes of this machine"
            )
        self.address = address

    def run_all(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        died: Callable[[Item], Result],
    ) -> Iterator[Result]:
        """As `Executor.run_all`. The cluster retries an item itself when a worker dies.

        Raises:
            InputError: no scheduler or no worker there, workers of other versions, or the cluster
                went away.
        """
        from distributed import Client
        from distributed.client import FutureCancelledError
        from distributed.comm.core import CommClosedError

        if not items:
            return
        try:
            client = Client(self.address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
        except (OSError, ValueError, TimeoutError, ImportError) as error:
            raise InputError(
                f"prepare.scheduler: there is no Dask scheduler at {self.address} ({error})"
            ) from None
        try:
            self._check(client)
            yield from self._stream(client, function, items, died)
        except (FutureCancelledError, CommClosedError):
            raise InputError(
                f"prepare.scheduler: the Dask cluster at {self.address} went away: the same "
                "command goes on from here"
            ) from None
        finally:
            client.close(timeout=5)

    def _check(self, client: Any) -> None:
        """Raise InputError where no worker is there, or one would make other bytes."""
        try:
            client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
        except TimeoutError:
            raise InputError(
                f"prepare.scheduler: the scheduler at {self.address} has no workers: start some "
                f"with dask worker {self.address}"
            ) from None
        ours = versions()
        for worker, theirs in client.run(versions, on_error="return").items():
            if isinstance(theirs, Exception):
                raise InputError(
                    f"prepare.scheduler: worker {worker} cannot import this program ({theirs}): "
                    "install it there, too"
                )
            for name, ours_is in ours.items():
                if theirs[name] != ours_is:
                    raise InputError(
                        f"prepare.scheduler: worker {worker} has {name} {theirs[name]}, this "
                        f"process {ours_is}: their bytes could differ"
                    )

    def _stream(
        self,
        client: Any,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        died: Callable[[Item], Result],
    ) -> Iterator[Result]:
        from distributed import KilledWorker, as_completed

        waiting = iter(items)
        running: dict[Any, Item] = {}
        finished = as_completed(loop=client.loop)

        def submit() -> None:
            for item in waiting:
                future = client.submit(function, item, pure=False)
                running[future] = item
                finished.add(future)
                return

        # A few more in flight than can run, for workers that join later and for the way there.
        for _ in range(2 * sum(client.nthreads().values()) + 8):
            submit()
        suspects = []
        for future in finished:
            item = running.pop(future)
            submit()
            try:
                result = future.result()
            except KilledWorker:
                suspects.append(item)
                continue
            yield result
        for item in suspects:  # alone, so that none is blamed for a neighbour
            try:
                result = client.submit(function, item, pure=False).result()
            except KilledWorker:
                result = died(item)
            yield result


def versions() -> dict[str, str]:
    """What the bytes of a shard depend on, as it is in this process."""
    found = {name: version(name) for name in DECISIVE_PACKAGES}
    return found | {"the program's arithmetic": str(TRANSFORM_VERSION)}
