"""Where the files of runs lie; files that are there whole or not at all are data_prep's."""

from pathlib import Path

from data_prep import (
    atomic_file,
    find_folder,
    locked,
    sync_folder,
    work_folder,
    writable,
    write_text,
)
from pipeline.errors import InputError

__all__ = [
    "atomic_file",
    "find_folder",
    "locked",
    "run_folder",
    "sync_folder",
    "work_folder",
    "writable",
    "write_text",
]


def run_folder(run: str) -> Path:
    """The folder of a run. Raises InputError where the name is no plain folder name."""
    if not run or run in (".", "..") or "/" in run or "\\" in run:
        raise InputError(f"--run must be a plain name, not {run!r}")
    return work_folder() / "runs" / run
