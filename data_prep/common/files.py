"""Files that are there whole or not at all, safe tables, locks, and the folder of all results."""

import contextlib
import csv
import errno
import getpass
import hashlib
import io
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from data_prep.common.errors import InputError

# Beginnings that a spreadsheet, which runs formulas, takes for one: OWASP, CSV Injection; the last
# four are the wide forms that some programs read alike.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")

# What a network file system without locks answers: better to work without locks than not at all.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


def work_folder() -> Path:
    """The folder of everything generated: WORK in the environment, else work/; ~ is the home."""
    return Path(os.environ.get("WORK") or "work").expanduser()


def usable_environment() -> None:
    """Give libraries a home, a user's name and a temporary folder where the machine has none.

    A container under a number that nobody has (--user 12345) has neither home nor name, and
    libraries end in tracebacks there. What they keep goes below WORK, which is ours.
    """
    work = work_folder().absolute()
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(work / ".home")
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        place = work / ".tmp"
        with contextlib.suppress(OSError):  # whoever needs it says so
            place.mkdir(parents=True, exist_ok=True)
            os.environ["TMPDIR"] = tempfile.tempdir = str(place)  # of child processes, too


def find_folder(name: str, kind: str, work: Path | None = None) -> Path:
    """The folder that a name on the command line means: WORK/kind/name, or with a "/" in it a path.

    kind: "stores", "packages" or "runs".
    """
    return Path(name) if "/" in name else (work or work_folder()) / kind / name


def expanded(path: str, key: str) -> Path:
    """A path with ~ replaced. Raises InputError, naming the key, where nobody knows that home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{key}: {path}: {error}") from None


def writable(folder: Path) -> None:
    """Make a folder and try to write there, before the work whose results it is for. OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp"):
        pass


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary stream that becomes `path` when the block ends well, and nothing when it does not.

    The temporary file lies in the same folder (a rename cannot cross file systems), begins with a
    dot and carries a random part, so that two writers never share one. It is on disk before it
    gets its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; where it cannot be read, words in its place."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with atomic_file(path) as stream:
        stream.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power loss, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, busy: str = "") -> Iterator[None]:
    """Hold the lock file `path` for a block. It ends with the process, however that ends.

    Waits for a process that holds it; with `busy`, a message, raises InputError at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0 if busy else -1)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(busy) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


def safe_cell(value: Any) -> Any:
    """A cell's value; text that a spreadsheet would calculate gets an apostrophe in front.

    >>> safe_cell("=1+1"), safe_cell("-0.5"), safe_cell(-2)
    ("'=1+1", '-0.5', -2)
    """
    if isinstance(value, str) and value.startswith(FORMULA) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def csv_line(cells: Iterable[Any]) -> str:
    """A row of a csv file, with its end of line; None is an empty cell."""
    line = io.StringIO()
    # The writer puts what holds a character of its end of line into quotes: either has to be one.
    csv.writer(line, lineterminator="\r\n").writerow([safe_cell(cell) for cell in cells])
    return line.getvalue().removesuffix("\r\n") + "\n"
