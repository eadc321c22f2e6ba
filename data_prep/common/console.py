"""A command on a poor machine: output and figures never end its work.

Text that a terminal cannot show is escaped, and output that nobody takes any more is dropped.
"""

import errno
import io
import os
import select
import sys
from typing import TextIO

from data_prep.common.files import usable_environment

# Reasons for the loss of output that somebody waits for, such as a log on a full disk.
_lost: list[str] = []


def complete(code: int) -> int:
    """A command's exit code once its output is written: 4 in place of 0 where some was lost."""
    sys.stdout.flush()
    if _lost:
        print(f"error: a part of the output is lost: {_lost[0]}", file=sys.stderr)
    return code or (4 if _lost else 0)


class _Patient(io.RawIOBase):
    """A file descriptor to write to, whose failures do not end the work.

    The reader of a pipe may be gone (`| head`), or a terminal closed: nobody misses the output. The
    disk of a log may be full: the exit code tells, see `complete`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content) -> int:  # type: ignore[no-untyped-def]
        while True:
            try:
                return os.write(self._descriptor, content)
            except BlockingIOError:  # a slow terminal that another program made non-blocking
                select.select([], [self._descriptor], [])
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    _lost.append(os.strerror(error.errno))
                return len(content)


def steady_output() -> None:
    """Call it when a command starts, and in each of its processes that prints.

    Letters that the terminal's encoding lacks are written as escapes (a name stays recognisable);
    a closed output is none. Figures are drawn for files: the backend that MPLBACKEND asks for, a
    notebook's for example, may not be installed here, and matplotlib would refuse to be imported.
    """
    usable_environment()
    os.environ["MPLBACKEND"] = "agg"
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # closed by the caller: >&-
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _steady(stream))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _steady(stream: io.TextIOWrapper) -> TextIO:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Patient(stream.fileno())),
        encoding=stream.encoding,
        errors="backslashreplace",
        # Of two streams in one log the order is kept, and a log can be followed.
        line_buffering=True,
    )
