"""The folder of an analysis's results: earlier results are removed, other files are left alone."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.files import writable, write_text

# Patterns of the files that the last run in a folder may have written, a line each.
LIST = ".results"


def begin(output: Path, patterns: Iterable[str]) -> None:
    """Make the folder, check that it can be written to, and remove an earlier run's results.

    Args:
        output: the folder.
        patterns: relative paths of all files that this run may write, `*` allowed. They are kept in
            the folder, so that the next run removes these and nothing else.

    Raises:
        OSError: it can't be written to.
    """
    writable(output)
    home, kept = output.resolve(), output / LIST
    earlier = kept.read_text(errors="replace").splitlines() if kept.is_file() else []
    for pattern in earlier:
        if not pattern or Path(pattern).is_absolute():
            continue
        for path in output.glob(pattern):
            if path.is_file() and path.resolve().is_relative_to(home):
                path.unlink()
    write_text(kept, "".join(f"{pattern}\n" for pattern in patterns))
