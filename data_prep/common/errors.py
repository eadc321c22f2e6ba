"""The exceptions that a command line answers with a line, and those of one volume."""

import operator
import signal
from typing import Any


class InputError(Exception):
    """A bad input: one line that names the file or key and the way out.

    The command line prints the text and exits with code 2; nothing has been half-written.

    Example:
        >>> try:
        ...     load_config("missing.yaml")
        ... except InputError as error:
        ...     print(error)
        configuration file missing.yaml can't be read: No such file or directory
    """

    def __init__(self, message: str) -> None:
        # One line whatever the cause's own text looked like: scripts read lines.
        super().__init__(" ".join(message.encode("utf-8", "replace").decode().split()))


class Failed(Exception):
    """A training that came to nothing (exit code 3)."""


class Stopped(BaseException):  # as KeyboardInterrupt is
    """A signal asked a run to stop, and its state is saved (exit code 128 + signal)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class VolumeError(Exception):
    """One subject's image is not usable: `reason` is a short code, `str(error)` the explanation.

    Raised inside a worker process, so it must survive pickling: both arguments stay in `args`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        # A file name may hold bytes that are no text, which a manifest could not be written with.
        self.message = " ".join(message.encode("utf-8", "replace").decode().split())

    def __str__(self) -> str:
        return self.message


COMPARED = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def require(section: str, settings: Any, bounds: str, *keys: str) -> None:
    """Raise ValueError, naming the key, where a number of a configuration is out of its range.

    bounds: "> 0", or several: ">= 0, < 1".
    """
    for key in keys:
        value = getattr(settings, key)
        for bound in bounds.split(", "):
            sign, limit = bound.split()
            if not COMPARED[sign](value, float(limit)):
                raise ValueError(f"{section}.{key} must be {bounds}, not {value}")
