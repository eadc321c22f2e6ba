"""Write a run's decoder package, prove it, and register it in MLflow.

python -m pipeline export --run RUN                                  -> WORK/packages/RUN
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.data.slices import Store, open_store
from pipeline.decoder_package import DecoderPackage, describe, write
from pipeline.decoder_package.metadata import hashed_people
from pipeline.errors import InputError
from pipeline.files import work_folder
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import ModelConfig
from pipeline.stages import run_folder
from pipeline.training.checkpoint import MANIFEST, Checkpoint, find_checkpoint
from pipeline.training.step import part_of

# A part of a checkpoint -> that of a package. What only training needs stays behind.
PARTS = {
    "vae.encoder": "encoder",
    "vae.decoder": "decoder",
    "kernel_network": "kernel_network",
    "term": "density",
}
# Keys of a store's configuration that only say where a machine keeps files.
PLACES = ("root", "subjects_table")


@dataclass(frozen=True)
class Options:
    """What to export, and where to."""

    run: str = ""
    """Name of a trained run under WORK/runs."""
    output: str = ""
    """Folder of the package; "" = WORK/packages/RUN."""
    onnx: bool = False
    """Whether every graph is written as .onnx, too."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("say which run to export: --run RUN")


def run(options: Options) -> None:
    """The command. Raises InputError where there is no such run, or no place for the package."""
    package = package_of_run(options.run, options.checkpoint)
    folder = Path(options.output or work_folder() / "packages" / options.run)
    if write(folder, package, onnx=options.onnx):
        print(f"decoder package of run {options.run}: {folder}")
    else:
        print(f"package {folder} is written already: nothing to do")


def package_of_run(run: str, which: Literal["best", "last"] = "best") -> DecoderPackage:
    """The package of a run's checkpoint, averaged weights, not yet written.

    Raises InputError where the run, its checkpoint or its store can't be used.
    """
    folder = run_folder(run)
    if not folder.is_dir():
        raise InputError(f"no run at {folder}: train it first (make train)")
    checkpoint = find_checkpoint(folder / "checkpoints", which)
    state = checkpoint.state
    store = _store(state, run)
    channels, height, width = state["image_shape"]
    model, likelihood = _sections(checkpoint)
    metadata = describe(
        (channels, height, width),
        model,
        likelihood,
        spacing_mm=store.spacing_mm,
        orientation=store.orientation,
        plane=store.plane,
        prepare={k: v for k, v in store.manifest["configuration"].items() if k not in PLACES},
        run={
            "name": run,
            "id": state["tracking_run"],
            "checkpoint": {"step": state["step"], "sha256": _digest(checkpoint)},
            "seed": state["config"]["training"]["seed"],
        },
        store={"name": store.name, "digest": store.digest, "simulated": store.simulated},
        evaluation=evaluation_of(folder, checkpoint),
        trained_on=hashed_people(state["trained_on"]),
    )
    package = DecoderPackage(metadata)
    try:
        package.load_state_dict(_weights(checkpoint, package))
    except RuntimeError as error:
        raise InputError(
            f"checkpoint {checkpoint.path} does not fit its run's configuration: train again"
        ) from error
    if package.density is not None and not math.isfinite(package.scale):
        raise InputError(
            f"run {run} never trained under its likelihood {likelihood.term}, which has no scale "
            "yet: train for more epochs than likelihood.warmup_epochs"
        )
    return package


def evaluation_of(folder: Path, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Metrics of this very checkpoint, and what they were made from; None without."""
    try:
        inputs = json.loads((folder / "evaluation/inputs.json").read_bytes())
        metrics = json.loads((folder / "evaluation/metrics.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(inputs, dict) or inputs.get("checkpoint") != _digest(checkpoint):
        return None
    return {"metrics": metrics, "inputs": inputs}


def _digest(checkpoint: Checkpoint) -> str:
    return hashlib.sha256((checkpoint.path / MANIFEST).read_bytes()).hexdigest()


def _store(state: dict[str, Any], run: str) -> Store:
    """The store the run was trained on."""
    store = open_store(state["config"]["data"]["store"], work_folder())
    if store.digest != state["store"]["digest"]:
        raise InputError(
            f"store {store.path} is another than run {run} was trained on: prepare it as it was, "
            "or train again"
        )
    return store


def _sections(checkpoint: Checkpoint) -> tuple[ModelConfig, LikelihoodConfig]:
    config = checkpoint.state["config"]
    try:
        return ModelConfig(**config["model"]), LikelihoodConfig(**config["likelihood"])
    except (TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint {checkpoint.path} is of another version of this program ({error}): "
            "train again"
        ) from error


def _weights(checkpoint: Checkpoint, package: DecoderPackage) -> dict[str, Any]:
    """The checkpoint's averaged weights under the names of the package's parts."""
    averaged = part_of(checkpoint.weights, "averaged")
    return {
        f"{new}.{name}": value
        for old, new in PARTS.items()
        if getattr(package, new) is not None
        for name, value in part_of(averaged, old).items()
    }
