"""What preparation refuses: the whole input, or one volume."""


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
