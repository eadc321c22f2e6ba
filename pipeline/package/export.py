"""Write a run's decoder package, check it, and register it in MLflow.

python -m pipeline export --run RUN                                  -> WORK/packages/RUN
"""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_prep import PrepareConfig
from data_prep.common.wording import command
from data_prep.config import where_keys
from pipeline.config import EvaluationConfig, work_keys
from pipeline.errors import InputError
from pipeline.files import existing_run, work_folder
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import ModelConfig
from pipeline.tracking.runs import TrackingConfig

if TYPE_CHECKING:
    from pipeline.package.package import DecoderPackage
    from pipeline.training.checkpoint import Checkpoint

# A part of a checkpoint -> the part of a package. What only training needs is left out.
PARTS = {"vae": "vae", "kernel_network": "kernel_network", "term": "density"}
# Settings of an evaluation that depend on the machine and do not decide a score.
MACHINES_OWN = where_keys(EvaluationConfig) | work_keys(EvaluationConfig) | {"batch_size"}


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
    prior: bool = True
    """Whether the package has the prior of samples, which is made from the latents of training
    images: false if those may not be shared."""
    authors: str = "not stated"
    """Who made the decoder, for its metadata."""
    copyright: str = "not stated"
    """Its copyright or licence, for its metadata."""
    register: bool = True
    """Whether it is registered in MLflow as EXPERIMENT-decoder; a run without tracking is not."""
    experiment: str = ""
    """The experiment; "" = the run's."""

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("no run given: use --run RUN")


def run(options: Options) -> None:
    """The command. Raises InputError if there is no such run, or no place for the package."""
    existing_run(options.run)
    print(f"reading run {options.run}, its {options.checkpoint} checkpoint", flush=True)
    from pipeline.evaluation.report import below_floor
    from pipeline.package.format import TOLERANCE, read_metadata, write

    package, tracking = package_of_run(options)
    folder = Path(options.output or work_folder() / "packages" / options.run)
    errors = write(folder, package, onnx=options.onnx, notify=partial(print, flush=True))
    if errors is None:
        print(f"package {folder} is up to date: nothing to do")
    else:
        print(
            "graphs checked in another process: they differ from their networks by at most "
            f"{max(errors.values()):.1g} of the output's largest value ({TOLERANCE:g} is allowed)\n"
            f"decoder package of run {options.run}: {folder}"
        )
    if below_floor((package.metadata["evaluation"] or {}).get("metrics", {})):
        print(
            "warning: this decoder has learned nothing: its reconstructions are no better than "
            "the mean slice"
        )
    if options.register and tracking.enabled:
        print("registering it in MLflow", flush=True)
        from pipeline.tracking.registry import register

        tracking = replace(tracking, experiment=options.experiment or tracking.experiment)
        name, version, new = register(folder, read_metadata(folder), tracking, work_folder())
        print(f"MLflow: {name}, version {version}{'' if new else ' (registered already)'}")


def package_of_run(options: Options) -> "tuple[DecoderPackage, TrackingConfig]":
    """The package of a run's checkpoint with averaged weights, unwritten; and the tracking config.

    Raises InputError if the run, its checkpoint or its store can't be used.
    """
    from pipeline.data.slices import open_store
    from pipeline.evaluation.run import trained_store
    from pipeline.fits.fits import read_fits
    from pipeline.package.format import describe, hashed_subjects
    from pipeline.package.package import DecoderPackage
    from pipeline.training.checkpoint import find_checkpoint
    from pipeline.training.step import part_of

    run, folder = options.run, existing_run(options.run)
    checkpoint = find_checkpoint(folder / "checkpoints", options.checkpoint)
    state = checkpoint.state
    if (store := trained_store(state)) is None:
        store = open_store(state.config["data"]["store"], work_folder())  # or says what is wrong
        raise InputError(
            f"store {store.path} is not the one that run {run} was trained on: prepare it as it "
            "was, or train again"
        )
    try:
        model = ModelConfig(**state.config["model"])
        likelihood = LikelihoodConfig(**state.config["likelihood"])
        tracking = TrackingConfig(**state.config["tracking"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint {checkpoint.path} is of another version of this program ({error}): "
            "train again"
        ) from error
    evaluation = evaluation_of(folder, checkpoint)
    if evaluation is not None and not options.prior:  # scores of samples that it can't draw
        metrics = evaluation["metrics"].items()
        evaluation["metrics"] = {k: v for k, v in metrics if not k.startswith("sample_")}
    machines_own = where_keys(PrepareConfig)
    prepare = store.manifest["configuration"].items()
    channels, height, width = state.image_shape
    metadata = describe(
        (channels, height, width),
        model,
        likelihood,
        spacing_mm=store.spacing_mm,
        orientation=store.orientation,
        plane=store.plane,
        prepare={key: value for key, value in prepare if key not in machines_own},
        run={
            "name": run,
            "id": state.tracking_run,
            "checkpoint": {"step": state.step, "sha256": checkpoint.digest},
            "seed": state.config["training"]["seed"],
        },
        store={"name": store.name, "digest": store.digest, "simulated": store.simulated},
        evaluation=evaluation,
        trained_on=hashed_subjects([who for who in state.roles if who["role"] == "train"]),
        authors=options.authors,
        copyright=options.copyright,
    )
    package = DecoderPackage(metadata)
    averaged = part_of(checkpoint.weights, "averaged")
    package.load_state_dict(
        {
            f"{new}.{name}": value
            for old, new in PARTS.items()
            if getattr(package, new) is not None
            for name, value in part_of(averaged, old).items()
        }
    )
    if package.density is not None and not package.density.has_scale:
        raise InputError(
            f"run {run} was never trained under its likelihood {likelihood.term}, which has no "
            "scale yet: train for more epochs than likelihood.warmup_epochs"
        )
    fits = read_fits(folder, checkpoint.digest, package.vae)
    fitted = [who for who in state.roles if who["role"] == (fits.split or "validation")]
    metadata["fitted_on"] = {"families": fits.families} | hashed_subjects(fitted)
    if fits.law is not None:
        package.residual, package.which = fits.law, "fitted"
        metadata["residual"] = {"floor": float(fits.law.floor)}
    if fits.prior is not None and options.prior:
        package.prior, metadata["prior"] = fits.prior, fits.prior.sizes
    return package, tracking


def evaluation_of(folder: Path, checkpoint: "Checkpoint") -> dict[str, Any] | None:
    """Metrics of this very checkpoint, and what they were made from; None without.

    Settings that depend on the machine are left out. Raises InputError where the scores were made
    with other fits than the run has.
    """
    from pipeline.fits.fits import fits_digest

    try:
        inputs = json.loads((folder / "evaluation/inputs.json").read_bytes())
        metrics = json.loads((folder / "evaluation/metrics.json").read_bytes())
    except (OSError, ValueError):
        return None
    if inputs.get("checkpoint") != checkpoint.digest:
        return None
    if inputs.get("fits") != fits_digest(folder, checkpoint.digest):
        raise InputError(
            f"run {folder.name} was scored with another law of residuals or prior than it has "
            f"now: score it again ({command('evaluate', folder.name)})"
        )
    settings = inputs["evaluation"].items()
    kept = {key: value for key, value in settings if key not in MACHINES_OWN}
    return {"metrics": metrics, "inputs": inputs | {"evaluation": kept}}
