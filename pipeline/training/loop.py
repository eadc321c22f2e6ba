"""The training loop: epochs, schedule, validation, checkpoints, tracking."""

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.common.progress import Reporter
from data_prep.common.tracking import Tracker
from pipeline.config import Config
from pipeline.data.augmentation import apply, draw
from pipeline.data.slices import Batches, EpochSampler, SliceDataset, Store
from pipeline.distributed import Processes
from pipeline.errors import Failed, InputError, Stopped
from pipeline.randomness import Stream, generator
from pipeline.tracking.runs import epoch_name
from pipeline.training.checkpoint import (
    BEST,
    Checkpoint,
    TrainingState,
    load_checkpoint,
    mark_best,
    path_of,
    remove_old,
    save_checkpoint,
    steps_kept,
)
from pipeline.training.control import Diverged, RateController, StopSignals, Watch
from pipeline.training.description import rates, summary
from pipeline.training.monitor import ValidationMonitor
from pipeline.training.objective import Objective, build_objective
from pipeline.training.step import TrainingStep, part_of

log = logging.getLogger(__name__)

# A training goes back so often, each time at half the learning rate, before it is given up.
MOST_SETBACKS = 3
# After so many steps reconstructions that are no better than the mean slice are no early stage.
LONG_ENOUGH = 500
WAY_OUT = (
    "train anew, --restart true, with a lower training.learning_rate, another training.seed or "
    "other model.levels"
)
NO_BEST = {"step": -1, "psnr": -math.inf}
# Attributes of a Trainer that a checkpoint keeps under the same names: where the run is.
PLACE = ("step", "epoch", "batch", "images", "sums", "seconds", "best", "kernel_history",
         "setbacks", "finished")  # fmt: skip


class Trainer:
    """Trains one objective on one store. `fit` runs from where the last checkpoint ended.

    With several processes each has a Trainer; the main one alone has a monitor, tracks and writes.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        folder: Path,
        monitor: ValidationMonitor | None,
        processes: Processes | None = None,
    ) -> None:
        """folder: the run's, WORK/runs/RUN. Raises InputError if store and config disagree."""
        self.config, self.store = config, store
        self.checkpoints = folder / "checkpoints"
        self.monitor = monitor
        self.tracker = Tracker()
        settings = config.training
        self.processes = processes or Processes(settings.device)
        self.device = self.processes.device
        self.subjects = store.subjects("train")
        self.data = SliceDataset(store, self.subjects)
        size, count = min(settings.batch_size, len(self.data)), self.processes.count
        if not size:
            raise InputError(f"store {store.name} has no training slices: see prepare.split")
        if size % (count * settings.accumulation):
            raise InputError(
                f"training.batch_size {size} can't be shared by {count} processes in "
                f"{settings.accumulation} pieces each: make it a multiple of "
                f"{count * settings.accumulation}"
            )
        rank, longest = self.processes.rank, settings.epoch_steps
        self.sampler = EpochSampler(
            len(self.data), size, settings.seed, rank, count, longest=longest
        )
        self.batches = Batches(self.data, self.sampler, config.data, self.device)
        self.flip = config.data.flip and store.plane != "sagittal"

        torch.manual_seed(settings.seed)
        self.objective = build_objective(config, store.image_shape)
        self.steps = TrainingStep(self.objective, settings, self.processes)
        self.controller = RateController(beta=settings.beta, target=settings.rate_target)
        self.watch = Watch(math.prod(store.image_shape))
        self.epoch = self.step = 0
        self.batch = self.images = 0  # done in this epoch
        self.sums: dict[str, float] = {}  # over the images of this epoch
        self.seconds = self.saved_at = self.images_per_second = 0.0
        self.best: dict[str, Any] = dict(NO_BEST)
        self.resumed = self.finished = False
        self.kernel_history: dict[int, Tensor] = {}
        self.setbacks: list[str] = []

    # ---------------------------------------------------------------- from start to end

    def fit(self, tracker: Tracker, signals: StopSignals | None = None) -> dict[str, float]:
        """Train to the end, logging to `tracker`. Returns the last epoch's metrics.

        signals: of a block that the caller has entered, so that none is missed before.
        Raises Stopped, its state saved, where a signal asked for it, and Failed where the run ran
        away more than MOST_SETBACKS times or ends no better than the mean slice.
        """
        self.tracker = tracker
        self.start = time.monotonic() - self.seconds
        metrics: dict[str, float] = {}
        if not self.resumed:
            self._picture()  # MLflow's viewer opens at step 0; and the initial kernel is shown
            self._save()  # a full disk or a lost MLflow run fails now, not after hours
        noted = nullcontext(signals) if signals else StopSignals()
        with noted as self.signals, Reporter(self.processes.main) as self.reporter:
            while not self.finished:
                try:
                    self._train_epoch()
                    metrics = self._end_epoch()
                except Diverged as error:
                    self._go_back(error)
        return metrics

    def _train_epoch(self) -> None:
        """Train on this epoch's batches, from `self.batch` on."""
        minutes = self.config.training.checkpoint_minutes
        self.sampler.epoch, self.sampler.start = self.epoch, self.batch
        began, before = time.monotonic(), self.images
        for images in self.batches:
            self._train_on(images)
            self._agree()
            self._report(self._means())
            self.images_per_second = (self.images - before) / max(time.monotonic() - began, 1e-9)
            if self._time_is_up() or self.batch == len(self.sampler):
                break
            if self.asked:
                self._save()
                raise Stopped(self.asked)
            if minutes and not self.watch.far and self.seconds - self.saved_at > 60 * minutes:
                self._save()

    def _train_on(self, images: Tensor) -> None:
        settings, progress = self.config.training, self._progress()
        # Linear warm-up, then cosine decay to zero; half of it after each setback.
        warm = min((self.step + 1) / max(settings.lr_warmup_steps, 1), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        self.steps.set_learning_rate(warm * cosine * 0.5 ** len(self.setbacks))
        opened = self.objective.vae.decoder.open(progress)
        images, noise = self._augmented(images), self._noise()
        warm_up_epochs = self.config.likelihood.warmup_epochs
        warm_up = self.epoch < warm_up_epochs  # under the plain Gaussian term
        just_ended = self.batch == 0 and self.epoch == warm_up_epochs > 0
        if just_ended and self.controller.target is not None:
            piece = len(images) // settings.accumulation  # what memory has room for
            self.controller.reweight(self.objective.pull_ratio(images[:piece], noise[:piece]))
        grown = min((self.step + 1) / max(settings.rate_warmup_steps, 1), 1.0)
        told = self.steps(images, noise, beta=self.controller.beta * grown, warm_up=warm_up)
        if told:
            self.watch.step(told["rate"], told["distortion"], warm_up)
            self.images += self.sampler.batch_size
            for name, value in {**told, "levels_open": opened}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * self.sampler.batch_size
        self.step += 1
        self.batch += 1

    def _end_epoch(self) -> dict[str, float]:
        """Score, track, show and save an epoch, and begin another. Returns its metrics."""
        settings = self.config.training
        metrics = self._means()
        metrics["images_per_second"] = self.images_per_second
        metrics["beta"] = self.controller.beta
        metrics["skipped_batches"] = self.steps.skipped
        # β must not be lowered for the sake of levels that can't spend nats yet.
        levels, grown = len(self.config.model.levels), settings.rate_warmup_steps
        if metrics.get("levels_open") == levels and self.step - self.batch >= grown:
            self.controller.update(metrics["rate"])
        self.epoch += 1
        self.batch, self.images, self.sums = 0, 0, {}
        # Decided once: a clock that runs out while the epoch is scored ends the next one.
        self.finished = self.epoch == settings.epochs or self._time_is_up()
        if self.finished or self.epoch % settings.validate_every == 0:
            metrics |= self._validate()
        if self.finished or self.epoch % settings.figure_every == 0:
            self._picture()
        if self.finished:
            self._refuse_the_mean(metrics)
        self._agree()
        tracked = {epoch_name(key): value for key, value in metrics.items()}
        self.tracker.metrics(tracked, self.epoch)
        # The best scores since the warm-up, of weights that are sound.
        psnr = metrics.get("validation_psnr", math.nan)
        sound = math.isfinite(psnr) and self.steps.skipped_in_a_row == 0 == self.watch.far
        best = sound and self.epoch > self._warm_up_end and psnr > self.best["psnr"]
        if best:
            self.best = {"step": self.step, "psnr": psnr}
        due = self.epoch % settings.checkpoint_every == 0 and not self.watch.far
        if self.finished or best or self.asked or due:
            self._save(best)
        self._report(metrics)
        if self.asked and not self.finished:
            raise Stopped(self.asked)
        return metrics

    def _go_back(self, error: Diverged) -> None:
        """To the checkpoint before the last, as illness begins unseen, at half the learning rate.

        Raises Failed where that was done MOST_SETBACKS times already.
        """
        rate = self.config.training.learning_rate * 0.5 ** len(self.setbacks)
        where = f"step {self.step}, learning rate {rate:g}: {error}"
        if len(self.setbacks) >= MOST_SETBACKS:
            times = len(self.setbacks) + 1
            raise Failed(f"the training ran away {times} times (at {where}): {WAY_OUT}") from error
        setbacks = self.setbacks
        kept = steps_kept(self.checkpoints) if self.processes.main else [-1]
        step = self.processes.from_main(kept[-2:][0])
        self.resume(load_checkpoint(path_of(self.checkpoints, step)))
        self.setbacks = [*setbacks, f"{where}; went back to step {step} at half the rate"]
        log.warning("the training ran away at %s", self.setbacks[-1])
        self.tracker.tags({"setbacks": "; ".join(self.setbacks)})
        self._save()

    # ---------------------------------------------------------------- a batch's input

    def _augmented(self, images: Tensor) -> Tensor:
        """This process's share of a batch, deformed by its share of what the batch is to get."""
        settings = self.config.data.augmentation
        if not settings.enabled:
            return images
        random = generator(self.config.training.seed, Stream.AUGMENTATION, self.step)
        drawn = draw(self.sampler.batch_size, settings, self.flip, random)
        return apply(images, drawn.part(self.sampler.rows).to(self.device))

    def _noise(self) -> Tensor:
        """The posterior's noise for this process's share of the batch."""
        random = generator(self.config.training.seed, Stream.POSTERIOR, self.step, self.device)
        shape = (self.sampler.batch_size, self.objective.vae.latent_size)
        noise = torch.randn(shape, generator=random, device=self.device)
        return noise[self.sampler.rows]

    # ---------------------------------------------------------------- clock and schedule

    def _agree(self) -> None:
        """Agree on the clock and on a signal to stop with all processes."""
        now = time.monotonic() - self.start
        asked, self.seconds = self.processes.largest([float(self.signals.received), now])
        self.asked = int(asked)

    def _progress(self) -> float:
        """The share of the run that is done, by steps or by the clock, whichever is further."""
        settings = self.config.training
        done = self.step / (settings.epochs * len(self.sampler))
        if settings.max_minutes > 0:
            done = max(done, self.seconds / (60 * settings.max_minutes))
        return min(done, 1.0)

    def _time_is_up(self) -> bool:
        minutes = self.config.training.max_minutes
        return minutes > 0 and self.seconds >= 60 * minutes

    # ---------------------------------------------------------------- scores and pictures

    def _means(self) -> dict[str, float]:
        return {name: value / max(self.images, 1) for name, value in self.sums.items()}

    @property
    def _warm_up_end(self) -> int:
        """Epochs done when the warm-up ends; the last epoch counts as trained in any case."""
        return min(self.config.likelihood.warmup_epochs, self.config.training.epochs - 1)

    def _validate(self) -> dict[str, float]:
        """Scores of the averaged weights."""
        if self.monitor is None:
            return {}
        warm_up = self.epoch <= self._warm_up_end
        scores = self.monitor.validate(self.steps.averaged, self.controller.beta, warm_up)
        return {f"validation_{name}": value for name, value in scores.items()}

    def _refuse_the_mean(self, metrics: dict[str, float]) -> None:
        """Raise Failed where a run would end, after a fair number of steps, with a mean image."""
        mean = self.monitor.psnr_of_the_mean() if self.monitor else -math.inf
        psnr = metrics.get("validation_psnr", math.inf)
        if self.processes.from_main(self.step >= LONG_ENOUGH and psnr <= mean):
            raise Failed(
                f"the training learned nothing: at {psnr:.1f} dB reconstructions are no better "
                f"than the mean slice ({mean:.1f} dB): {WAY_OUT}"
            )

    def _picture(self) -> None:
        if self.monitor is None:
            return
        picture = self.monitor.picture(self.steps.averaged)
        self.tracker.image(picture, "reconstructions", self.epoch)
        kernels = self.monitor.kernels(self.objective)
        if kernels is not None:
            self.kernel_history[self.epoch] = kernels

    def _report(self, metrics: dict[str, float]) -> None:
        """Show the run's progress; metrics are those of the epoch so far, or of the last one."""
        done = self.epoch + self.batch / len(self.sampler)
        words = f"epoch {done:.1f}/{self.config.training.epochs}  {summary(metrics)}"
        words = f"{words}  {rates(metrics)}".rstrip()
        self.reporter.update(self._progress(), words, self.seconds)

    # ---------------------------------------------------------------- checkpoints

    def _save(self, best: bool = False) -> None:
        """Write a checkpoint, after the epoch's metrics are tracked."""
        self.saved_at = self.seconds
        if not self.processes.main:
            return
        weights, of_the_step = self.steps.state()
        state = TrainingState(
            **of_the_step,
            **{name: getattr(self, name) for name in PLACE},
            controller=asdict(self.controller),
            config=asdict(self.config),
            store={"name": self.store.name, "digest": self.store.digest},
            image_shape=list(self.store.image_shape),
            roles=[
                {
                    "subject": entry.subject,
                    "family": entry.family,
                    "source_sha256": entry.source_sha256,
                    "role": entry.split,
                }
                for entry in self.store.entries
            ],
            tracking_run=self.tracker.run_id,
            kernel_images=self.monitor.images.cpu() if self.monitor else None,
        )
        save_checkpoint(self.checkpoints, weights, state)
        if best:
            mark_best(self.checkpoints, **self.best)
        remove_old(self.checkpoints, self.config.training.keep_checkpoints, self.step)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.resumed = True
        self.steps.resume(checkpoint.weights, checkpoint.state)
        self.controller = RateController(**checkpoint.state.controller)
        for name in PLACE:
            setattr(self, name, getattr(checkpoint.state, name))
        self.saved_at = self.seconds
        if not self.processes.main:
            return
        # A crash may have come before the mark of the best, or damage after it.
        folder = checkpoint.path.parent
        if path_of(folder, self.best["step"]).exists():
            mark_best(folder, **self.best)
        else:
            (folder / BEST).unlink(missing_ok=True)
            self.best = dict(NO_BEST)


def load_objective(checkpoint: Checkpoint, config: Config) -> Objective:
    """The objective with averaged weights, ready to evaluate."""
    channels, height, width = checkpoint.state.image_shape
    objective = build_objective(config, (channels, height, width))
    try:
        objective.load_state_dict(part_of(checkpoint.weights, "averaged"))
    except RuntimeError as error:
        raise InputError(
            f"checkpoint {checkpoint.path} does not fit its run's configuration: train again"
        ) from error
    return objective.eval()
