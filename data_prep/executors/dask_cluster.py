"""A Dask cluster that does the work: https://distributed.dask.org."""

import importlib.util
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data_prep.common.errors import InputError
from data_prep.config import TRANSFORM_VERSION

Work = Callable[[Any], Any]  # what is made of one item

# What a shard's bytes depend on beside the program: all machines must have the same.
DECISIVE_PACKAGES = ("numpy", "scipy", "nibabel", "torch", "monai", "pillow", "SimpleITK")

SECONDS_TO_CONNECT = 30


def run_on_cluster(address: str, function: Work, items: Sequence[Any], died: Work) -> Iterator[Any]:
    """`local.run_all` by the workers of a scheduler, which must see the same files under the same
    paths. The cluster retries an item itself when a worker dies.

    address: tcp://host:port.

    Raises:
        InputError: dask.distributed is missing, no scheduler or no worker there, workers of other
            versions, or the cluster went away.
    """
    if importlib.util.find_spec("distributed") is None:
        raise InputError(
            "prepare.scheduler needs dask.distributed: install the extra 'dask', or leave it out "
            "to use the processes of this machine"
        )
    from distributed import Client
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    if not items:
        return
    try:
        client = Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError, TimeoutError, ImportError) as error:
        raise InputError(
            f"prepare.scheduler: there is no Dask scheduler at {address} ({error})"
        ) from None
    try:
        _check(client, address)
        yield from _stream(client, partial(_checked, versions(), function), items, died)
    except (FutureCancelledError, CommClosedError):
        raise InputError(
            f"prepare.scheduler: the Dask cluster at {address} went away: the same command goes on "
            "from here"
        ) from None
    finally:
        client.close(timeout=5)


def _check(client: Any, address: str) -> None:
    """Raise InputError where no worker is there, or one lacks this program."""
    try:
        client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
    except TimeoutError:
        raise InputError(
            f"prepare.scheduler: the scheduler at {address} has no workers: start some with dask "
            f"worker {address}"
        ) from None
    for worker, answer in client.run(versions, on_error="return").items():
        if isinstance(answer, Exception):
            raise InputError(
                f"prepare.scheduler: worker {worker} cannot import this program ({answer}): "
                "install it there, too"
            )


def _stream(client: Any, function: Work, items: Sequence[Any], died: Work) -> Iterator[Any]:
    from distributed import KilledWorker, as_completed

    waiting = iter(items)
    running: dict[Any, Any] = {}
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
    """What the bytes of a shard depend on, as it is in this process; "" for what is not there."""
    own = {"the program's arithmetic": str(TRANSFORM_VERSION)}
    for name in DECISIVE_PACKAGES:
        try:
            own[name] = version(name)
        except PackageNotFoundError:
            own[name] = ""
    return own


def _checked(expected: dict[str, str], function: Work, item: Any) -> Any:
    """`function(item)`, on a worker whose versions are these: one may join at any time."""
    for name, here in versions().items():
        if here != expected[name]:
            raise InputError(
                f"prepare.scheduler: a worker on {socket.gethostname()} has {name} "
                f"{here or 'not installed'}, this process {expected[name] or 'has not'}: their "
                "bytes could differ"
            )
    return function(item)
