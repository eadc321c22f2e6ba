"""Train a run, or go on with it: a configuration in, checkpoints and an MLflow run out."""

import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from data_prep.common.tracking import flat_keys
from data_prep.common.wording import quantity, run_option
from data_prep.config import where_keys
from pipeline.config import Config, work_keys
from pipeline.data.slices import Store, open_store
from pipeline.distributed import Processes
from pipeline.errors import InputError
from pipeline.files import locked_run, run_folder, work_folder, write_text
from pipeline.fits.fits import FOLDER, fit, read_fits, write_fits
from pipeline.metrics.statistics import few_calibrated
from pipeline.tracking.runs import track
from pipeline.training.checkpoint import (
    TrainingState,
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    path_of,
)
from pipeline.training.control import StopSignals
from pipeline.training.description import (
    levels_of,
    rates,
    run_name,
    run_note,
    run_tags,
    summary,
)
from pipeline.training.loop import Trainer, load_objective
from pipeline.training.monitor import ValidationMonitor

# Sections that decide what a training run computes; and keys in them that do not.
DECISIVE = ("data", "model", "prior", "likelihood", "training")
INDIFFERENT = {
    f"{section}.{key}"
    for section in DECISIVE
    for key in where_keys(getattr(Config(), section)) | work_keys(getattr(Config(), section))
}
# Nats of a whole level below which it carries no information.
LEAST_RATE = 0.5


def train_run(config: Config, run: str, restart: bool = False) -> None:
    """Train, or go on with, a run; a finished one with the same configuration is left alone.

    Under torchrun every process calls this; the main one writes, tracks and prints.
    Raises InputError if the run exists with another configuration, unless `restart`; Stopped,
    with the state saved, where a signal asked to stop.
    """
    folder = run_folder(run)
    store = open_store(config.data.store, work_folder())
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    with ExitStack() as held:
        with Processes(config.training.device) as processes:
            if processes.main:
                held.enter_context(locked_run(run))
            _train(config, run, restart, store, processes)
        # The others have left: no collective waits for what only one process fits.
        if processes.main:
            _fit(config, folder, store, processes.device)


def _train(config: Config, run: str, restart: bool, store: Store, processes: Processes) -> None:
    """Every process's part in a training."""
    folder, main = run_folder(run), processes.main
    report = print if main else lambda _: None

    # The checkpoint to go on from is the main process's choice, which all of them read.
    kept = latest_checkpoint(folder / "checkpoints") if main and not restart else None
    step = processes.from_main(kept.state.step if kept else None)
    if kept is None and step is not None:
        kept = load_checkpoint(path_of(folder / "checkpoints", step))
    if kept is not None:
        check_unchanged(kept.state, config, store, run)
        if kept.state.finished:
            report(f"run {run} is already trained ({kept.state.epoch} epochs): nothing to do")
            return

    trainer = Trainer(config, store, folder, None, processes)
    if main:
        trainer.monitor = ValidationMonitor(store, processes.device)
    tracking = replace(config.tracking, enabled=config.tracking.enabled and main)
    continued = kept.state.tracking_run if kept else None
    tags = {"stage": "training", **run_tags(config, store, run)} if main else {}
    tracked = track(
        tracking,
        work_folder(),
        run_name(config, store.name, run),
        continued=continued,
        tags=tags,
        machine=True,
    )
    with StopSignals() as signals, tracked as tracker:
        resolved = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
        if kept is not None:
            trainer.resume(kept)
            report(f"run {run}: going on from step {trainer.step} in epoch {trainer.epoch + 1}")
        elif main:  # without what an older run left
            for name in (FOLDER, "checkpoints"):
                shutil.rmtree(folder / name, ignore_errors=True)
            write_text(folder / "config.yaml", resolved)
        if tracker.run_id != continued:  # a new run, or one in place of a deleted one
            tracker.parameters(asdict(config))
            tracker.text(resolved, "config.yaml")
            tracker.dataset(store.name, store.digest, store.path, "training")
            tracker.note(run_note(config, store, run))
        parameters = sum(p.numel() for p in trainer.objective.vae.parameters())
        report(
            f"run {run}: {quantity(len(trainer.data), 'slice')} of "
            f"{quantity(len(trainer.subjects), 'subject')} from store {store.name}, "
            f"{parameters / 1e6:.2f} M parameters, on {processes}"
        )
        metrics = trainer.fit(tracker, signals)

    report(f"run {run} is trained in {trainer.epoch} epochs\n  {summary(metrics)}")
    if by_level := rates(metrics):
        report(f"  {by_level}")
    for note in missed(trainer, metrics):
        report(f"note: {note}")
    report(f"checkpoints: {folder / 'checkpoints'}")


def missed(trainer: Trainer, metrics: dict[str, float]) -> Iterator[str]:
    """Aims that a finished run has missed, and the way out. metrics: of its last epoch."""
    settings = trainer.config.training
    mean = trainer.monitor.psnr_of_the_mean() if trainer.monitor else -math.inf
    if (psnr := metrics.get("validation_psnr", math.inf)) <= mean:
        yield (
            f"at {psnr:.1f} dB reconstructions are no better than the mean slice ({mean:.1f} dB): "
            "the training diverged, or was too short. Train anew, --restart true, with a lower "
            f"training.learning_rate (now {settings.learning_rate:g}), another training.seed or "
            "more epochs"
        )
    for side, rate in levels_of(metrics).items():
        if rate < LEAST_RATE:
            yield f"the level of side {side} is not used: it holds {rate:.1f} nats"
    if not trainer.controller.settled:
        yield trainer.controller.miss(trainer.epoch, settings.rate_warmup_steps)


def _fit(config: Config, folder: Path, store: Store, device: torch.device) -> None:
    """The prior of samples and the law of the residuals, of the checkpoint that is scored."""
    checkpoint = find_checkpoint(folder / "checkpoints", "best")
    vae = load_objective(checkpoint, config).to(device).vae
    with suppress(InputError):  # not there, or damaged
        if read_fits(folder, checkpoint.digest, vae).digest:
            return
    fits = fit(vae, config, store)
    write_fits(folder, checkpoint.digest, fits)
    if fits.law is not None and (note := few_calibrated(fits.families)):
        print(f"note: {note}")


def check_unchanged(state: TrainingState, config: Config, store: Store, run: str) -> None:
    """Raise InputError if a checkpoint's run was made with another configuration or store."""
    changed = differences(state.config, asdict(config))
    if state.store["digest"] != store.digest:
        changed.append("prepared store")
    if changed:
        raise InputError(
            f"run {run} was trained with another {', '.join(changed)}: choose another name "
            f"({run_option()}…), or train it anew with --restart true"
        )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted keys of the decisive sections whose values differ."""
    before, now = dict(flat_keys(old)), dict(flat_keys(new))
    return [
        key
        for key in sorted({*before, *now} - INDIFFERENT)
        if key.split(".")[0] in DECISIVE and before.get(key) != now.get(key)
    ]
