"""Checkpoints: their writer and their reader.

    checkpoints/step-00000340/weights.safetensors   weights and averaged weights
    checkpoints/step-00000340/state.pt              a TrainingState, tensors and plain values only
    checkpoints/step-00000340/manifest.json         SHA-256 of both; written last
    checkpoints/best.json                           which step is the best

Every file is written beside its place and then renamed. Reading never runs code.
"""

import hashlib
import io
import json
import logging
import re
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from data_prep.common.wording import command
from pipeline.errors import InputError
from pipeline.files import atomic_file, sync_folder, write_text

SCHEMA_VERSION = 4
WEIGHTS, STATE, MANIFEST, BEST = "weights.safetensors", "state.pt", "manifest.json", "best.json"

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainingState:
    """Everything in a checkpoint but the weights: where the run is, and what it was made from.

    The keys of state.pt are the names of the fields. Random numbers need no state: they are
    functions of the seed, the epoch and the step.
    """

    step: int
    epoch: int = 0
    """Epochs done."""
    batch: int = 0
    """Batches done since."""
    images: int = 0
    """Images seen since."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of metrics over these images."""
    seconds: float = 0.0
    finished: bool = False
    setbacks: list[str] = field(default_factory=list)
    """Run-aways after which the training went back to an earlier checkpoint, in words; each halved
    the learning rate."""
    best: dict[str, Any] = field(default_factory=dict)
    """Step and PSNR of the best checkpoint so far."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    kernel_optimizer: dict[str, Any] | None = None
    """Their state_dict()."""
    averaged_steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    controller: dict[str, Any] = field(default_factory=dict)
    """Fields of the RateController."""

    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration, by section."""
    store: dict[str, str] = field(default_factory=dict)
    """Name and digest of the store."""
    image_shape: list[int] = field(default_factory=list)
    """Channels, height, width."""
    roles: list[dict[str, str]] = field(default_factory=list)
    """subject, family, source_sha256 and role (train, validation, test) of each of the store's."""
    tracking_run: str | None = None
    """Id of the MLflow run."""
    kernel_images: Tensor | None = None
    """Fixed images (N,C,H,W), and their kernels by epoch, (N,1,s,s)."""
    kernel_history: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name, and the state beside them.

    digest: SHA-256 of the manifest, which holds those of the other files.
    """

    path: Path
    weights: dict[str, Tensor]
    state: TrainingState
    digest: str


def path_of(folder: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return folder / f"step-{step:08d}"


def save_checkpoint(folder: Path, weights: dict[str, Tensor], state: TrainingState) -> Path:
    """Write the checkpoint of a step into `folder`; returns its path.

    Raises InputError if it can't be written; earlier checkpoints stay as they are.
    """
    path = path_of(folder, state.step)
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    stream = io.BytesIO()
    torch.save({"schema_version": SCHEMA_VERSION, **vars(state)}, stream)
    contents = {WEIGHTS: safetensors.torch.save(plain), STATE: stream.getvalue()}
    digests = {name: _sha256(content) for name, content in contents.items()}
    manifest = {"schema_version": SCHEMA_VERSION, "step": state.step, "sha256": digests}
    contents[MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode()
    try:
        for name, content in contents.items():
            with atomic_file(path / name) as file:
                file.write(content)
        sync_folder(folder)
    except OSError as error:
        raise InputError(
            f"checkpoint {path} can't be written ({error.strerror or error}): make room, then give "
            "the same command again; it continues from the checkpoint before"
        ) from error
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises InputError naming it and the way out."""
    try:
        written = (path / MANIFEST).read_bytes()
        manifest = json.loads(written)
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {manifest['schema_version']}, not {SCHEMA_VERSION}")
        contents = {name: (path / name).read_bytes() for name in (WEIGHTS, STATE)}
        for name, content in contents.items():
            if _sha256(content) != manifest["sha256"][name]:
                raise ValueError(f"{name} is not what was written")
        weights = safetensors.torch.load(contents[WEIGHTS])
        kept = torch.load(io.BytesIO(contents[STATE]), map_location="cpu", weights_only=True)
        names = {key.name for key in fields(TrainingState)}
        state = TrainingState(**{key: kept[key] for key in names & kept.keys()})
    except Exception as error:  # whatever a damaged file makes the readers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"checkpoint {path} can't be read ({reason[:120]}): delete it, then train again"
        ) from error
    return Checkpoint(path, weights, state, _sha256(written))


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The latest valid checkpoint, None without any. A warning names each damaged one.

    Raises InputError if there are checkpoints, but no valid one.
    """
    steps = steps_kept(folder)
    for step in reversed(steps):
        try:
            return load_checkpoint(path_of(folder, step))
        except InputError as error:
            log.warning("%s; looking for the one before", error)
    if steps:
        raise InputError(f"no checkpoint in {folder} can be read: train anew with --restart true")
    return None


def steps_kept(folder: Path) -> list[int]:
    """Steps whose checkpoints were written to their end, in order."""
    names = (path.parent.name for path in folder.glob(f"step-*/{MANIFEST}"))
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{8,}", name))


def find_checkpoint(folder: Path, which: Literal["best", "last"]) -> Checkpoint:
    """The best checkpoint, or the latest valid one if none is marked or `which` is "last".

    Raises InputError if there is none, or the best one is damaged.
    """
    step = best_step(folder) if which == "best" else None
    if step is not None:
        return load_checkpoint(path_of(folder, step))
    latest = latest_checkpoint(folder)
    if latest is None:
        again = command("train", makes=folder.parent.name)
        raise InputError(f"no checkpoint in {folder}: train first ({again})")
    return latest


def best_step(folder: Path) -> int | None:
    """The step that is marked as the best; None if none is."""
    try:
        return int(json.loads((folder / BEST).read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mark_best(folder: Path, step: int, **why: float) -> None:
    """Mark a step's checkpoint as the best; `why` is written beside it."""
    write_text(folder / BEST, json.dumps({"step": step, **why}, indent=1) + "\n")


def remove_old(folder: Path, keep: int, latest: int | None = None) -> None:
    """Delete all but the latest `keep` checkpoints and the best, and what a crash left behind.

    latest: the step that was just saved; later ones are damaged, and do not count.
    """
    sound = [step for step in steps_kept(folder) if latest is None or step <= latest]
    kept = {path_of(folder, step).name for step in sound[-keep:]}
    best = best_step(folder)
    if best is not None:
        kept.add(path_of(folder, best).name)
    for path in folder.glob("step-*"):
        if path.name not in kept:
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that no half of it looks whole
            shutil.rmtree(path, ignore_errors=True)
    for stale in folder.rglob(".*.tmp"):
        stale.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
