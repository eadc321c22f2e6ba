"""The one exception a user is meant to read."""


class InputError(Exception):
    """A bad input, told in one line that names the file or key and the way out (exit code 2)."""
