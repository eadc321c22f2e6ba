"""A folder for each question asked, and results that appear in it when all of them are made."""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from data_prep.common.provenance import code_version
from pipeline.analysis.options import PackageOptions
from pipeline.errors import InputError
from pipeline.files import locked, swapped_in, work_folder, writable, write_text

QUESTION = "question.json"
# Options that name inputs, or places: a folder is not called after them.
UNNAMED = ("package", "store", "image", "kspace", "like", "other_people", "output", "device")
LONGEST = 120


def digest_of(path: str) -> str:
    """SHA-256 of a file's bytes; "" of none."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def question_of(options: PackageOptions, **inputs: Any) -> dict[str, Any]:
    """All that decides the results: options, digests of `inputs`, the program's version."""
    kept = {key: value for key, value in asdict(options).items() if key not in ("output", "device")}
    question = {"options": kept, "inputs": inputs, "program": code_version()}
    return json.loads(json.dumps(question))


def image_name(path: Path) -> str:
    """A file's name without suffix, after its subject's folder where others have files so called.

    HCP's 100307/T1w/T1w_acpc_dc_restore_brain.nii.gz is 100307-T1w_acpc_dc_restore_brain. Folders
    are compared up to four levels above the file.
    """
    path = path.resolve()
    names = [re.sub(r"(\.nii|\.hdr|\.img|\.mgh|\.mgz|\.npy)?(\.gz)?$", "", path.name, flags=re.I)]
    for folder in list(path.parents)[:4]:
        pattern = f"*/{glob.escape(str(path.relative_to(folder)))}"
        if any(other.resolve() != path for other in folder.parent.glob(pattern)):
            names.insert(0, folder.name)
    return "-".join(names)


def folder_of(
    options: PackageOptions, kind: str, target: str, question: Mapping[str, Any], *always: str
) -> Path:
    """--output, or WORK/kind/target/PACKAGE-OPTIONS: the options in `always`, and others than
    their defaults.

    Where that folder answers a question of other options, as of a package of this name elsewhere,
    it gets a digest.
    """
    if options.output:
        return Path(options.output)
    words = [Path(options.package).name]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in UNNAMED or (value == field.default and field.name not in always):
            continue
        values = value if isinstance(value, tuple | list) else [value]
        shown = [f"{v:g}" if isinstance(v, float) else Path(str(v)).name for v in values]
        words.append(field.name if value is True else f"{field.name}-{','.join(shown)}")
    name = re.sub(r"[^\w.,+-]", "-", "-".join(words))
    digest = hashlib.sha256(json.dumps(question["options"]).encode()).hexdigest()[:8]
    folder = work_folder() / kind / re.sub(r"[^\w.,+-]", "-", target)
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{digest}"
    recorded = _recorded(folder / name)
    if recorded and recorded["question"]["options"] != question["options"]:
        name = f"{name}-{digest}"
    return folder / name


def _recorded(folder: Path) -> dict[str, Any]:
    """The question that a folder's results answer, and its files; {} where it holds none."""
    try:
        return dict(json.loads((folder / QUESTION).read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise InputError(f"{folder / QUESTION} can't be read: choose another folder") from error


def answered(folder: Path, question: Mapping[str, Any]) -> bool:
    """Whether a folder holds the results of this very question, which is then said."""
    same = _recorded(folder).get("question") == question
    if same:
        print(f"nothing has changed since these results were made: {folder}")
    return same


@contextlib.contextmanager
def answering(folder: Path, question: Mapping[str, Any]) -> Iterator[Path]:
    """A folder for results, which takes the place of `folder` when the block ends well.

    It lies beside `folder` and holds what an interrupted run of the same question has finished.
    Until then nothing in `folder` changes.

    Raises:
        InputError: `folder` holds other things than results, or another process is at work on it.
        OSError: it can't be written to.
    """
    recorded = _recorded(folder)
    writable(folder)
    strange = sorted({path.name for path in folder.iterdir()} - {*recorded.get("files", ())})
    if strange:
        raise InputError(
            f"{folder} holds {strange[0]}, and results replace what is there: give --output a new "
            "folder"
        )
    if not recorded:
        folder.rmdir()
    draft = folder.with_name(f".{folder.name}.unfinished")
    lock = draft / ".lock"
    with locked(lock, busy=f"another process is at work on {folder}: wait for it to end"):
        kept = [path for path in draft.iterdir() if path not in (lock, draft / QUESTION)]
        if _recorded(draft).get("question") == question:
            print(f"goes on with what an interrupted run has finished: {len(kept)} of its results")
        else:
            for path in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_text(draft / QUESTION, json.dumps({"question": question}))
        try:
            yield draft
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"what is finished is kept in {draft}: the same command goes on from there"
            ) from None
        files = sorted(path.name for path in draft.iterdir() if path != lock)
        content = {"question": question, "files": files}
        write_text(draft / QUESTION, json.dumps(content, indent=1) + "\n")
        with swapped_in(folder) as new:
            for name in files:
                os.rename(draft / name, new / name)
        shutil.rmtree(draft)


def print_few(families: int) -> None:
    """A note where there are too few families for intervals that mean much."""
    from pipeline.metrics.statistics import few

    if note := few(families):
        print(f"note: {note}")
