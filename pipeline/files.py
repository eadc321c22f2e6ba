"""Folders of runs, and writers of tables, images and JSON; the rest is data_prep's."""

import contextlib
import gzip
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from data_prep.common.files import atomic_file as atomic_file
from data_prep.common.files import csv_line
from data_prep.common.files import find_folder as find_folder
from data_prep.common.files import locked as locked
from data_prep.common.files import sync_folder as sync_folder
from data_prep.common.files import work_folder as work_folder
from data_prep.common.files import writable as writable
from data_prep.common.files import write_text as write_text
from data_prep.common.wording import command
from pipeline.errors import InputError


def run_folder(run: str) -> Path:
    """The folder of a run. Raises InputError if the name is no plain folder name."""
    if not run or run in (".", "..") or "/" in run or "\\" in run:
        raise InputError(f"--run must be a plain name, not {run!r}")
    return work_folder() / "runs" / run


def existing_run(run: str, named: str = "") -> Path:
    """The folder of a run. Raises InputError where there is none of this name.

    named: the configuration's name, where it is not the run's.
    """
    folder = run_folder(run)
    if not folder.is_dir():
        others = sorted(path.name for path in folder.parent.glob("*/"))
        first = command("train", run if named else "", makes=named or run)
        or_one = f", or choose one of {', '.join(others[:9])}" if others else ""
        raise InputError(f"no run at {folder}: train it first ({first}){or_one}")
    return folder


def locked_run(run: str) -> AbstractContextManager[None]:
    """A block in which no other process trains or scores a run. Raises InputError where one does.

    The lock ends with the process, however that ends.
    """
    folder = run_folder(run)
    return locked(
        folder.with_name(f".{run}.lock"),
        f"run {run} is being trained or scored by another process: wait until it has ended, or "
        "choose another name",
    )


def is_address(source: str) -> bool:
    """True for a decoder package's address in MLflow, not its name or path."""
    return source.startswith(("models:/", "runs:/"))


def existing_package(folder: Path) -> Path:
    """The folder itself. Raises InputError where it holds no decoder package."""
    if not (folder / "metadata.json").exists():
        raise InputError(
            f"there is no decoder package at {folder}: write one with {command('export', run='…')}"
        )
    return folder


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """A table with a header; None is an empty cell, and no text is a spreadsheet's formula.

    columns: their names, where there may be no rows; else those of the first row. Raises
    ValueError for a row with another column.
    """
    names = list(columns or rows[0])
    if strange := {key for row in rows for key in row}.difference(names):
        raise ValueError(f"columns {sorted(strange)} are not in the table's header")
    cells = ([row.get(name) for name in names] for row in rows)
    return csv_line(names) + "".join(csv_line(row) for row in cells)


def write_nifti(path: Path, image: Any) -> None:
    """Write a nibabel NIfTI image as .nii.gz, atomically; equal images give equal bytes."""
    with atomic_file(path) as stream:
        stream.write(gzip.compress(image.to_bytes(), 6, mtime=0))


def write_json(path: Path, content: Any, *, sort_keys: bool = False) -> None:
    """Write JSON atomically, indented by a space a level."""
    write_text(path, json.dumps(content, indent=1, sort_keys=sort_keys) + "\n")


@contextlib.contextmanager
def swapped_in(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends well.

    Where it does not, what was at `folder` stays; after a crash between the two renames it comes
    back with the next call. For one process at a time.
    """
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    if old.is_dir() and not folder.exists():
        os.rename(old, folder)
    for stale in (new, old):
        shutil.rmtree(stale, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    finally:
        if old.is_dir() and not folder.exists():
            os.rename(old, folder)
        for stale in (new, old):
            shutil.rmtree(stale, ignore_errors=True)
