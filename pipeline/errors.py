"""The exceptions that the command line answers with a line and an exit code."""

import signal


class InputError(Exception):
    """A bad input, told in one line that names the file or key and the way out (exit code 2)."""


class Stopped(Exception):
    """A signal asked a run to stop, and its state is saved (exit code 128 + signal)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
