"""The exceptions that the command line answers with a line and an exit code."""

import signal

from data_prep.common.errors import InputError

__all__ = ["Failed", "InputError", "Stopped"]


class Failed(Exception):
    """A training that came to nothing (exit code 3)."""


class Stopped(BaseException):  # as KeyboardInterrupt is
    """A signal asked a run to stop, and its state is saved (exit code 128 + signal)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
