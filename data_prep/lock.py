"""One preparation of a store at a time."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.errors import InputError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for a block. It ends with the process, however that ends.

    Raises:
        InputError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is preparing this store (it holds {path}): wait for its end, or "
                "choose another prepare.name"
            ) from None
        except OSError as error:
            # Some network file systems have no locks: better to work without than not at all.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
                raise
        yield
