"""The exceptions that the command line answers with a line and an exit code."""

from data_prep.common.errors import Failed, InputError, Stopped

__all__ = ["Failed", "InputError", "Stopped"]
