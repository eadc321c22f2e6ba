"""The training loop: alternating steps, schedule, averaged weights, checkpoints, tracking."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.blur.kernel_loss import kernel_width
from pipeline.config import Config
from pipeline.data.augmentation import augment
from pipeline.data.slices import SliceDataset, Store, shuffled_batches
from pipeline.errors import InputError
from pipeline.progress import Reporter
from pipeline.tracking import NoTracker
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.objective import Objective
from pipeline.training.rate import RateController

LAST, BEST = "last.pt", "best.pt"


class Monitor(Protocol):
    """What looks at the model between epochs; handed in, for its rooms lie above this one."""

    images: Tensor
    """The fixed images (N,C,H,W) that `picture` and `kernels` show."""

    def validate(self, objective: Objective, beta: float, warm_up: bool) -> dict[str, float]:
        """Metrics on the validation people; `psnr` decides which checkpoint is best."""

    def picture(self, objective: Objective) -> np.ndarray:
        """A grid of fixed images and their reconstructions, uint8 (H,W,3)."""

    def kernels(self, objective: Objective) -> Tensor | None:
        """Kernels of some fixed images, (N,1,s,s); None without a kernel network."""


def choose_device(name: str) -> torch.device:
    """auto, cpu, cuda, cuda:1 -> device. Raises InputError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"training.device {name!r} is not usable here: choose auto, cpu or cuda"
        ) from error
    return device


class Trainer:
    """Trains one objective on one store. `fit` runs from where the last checkpoint ended."""

    def __init__(self, config: Config, store: Store, folder: Path, monitor: Monitor) -> None:
        """folder: the run's, WORK/runs/RUN. Raises InputError where store and config disagree."""
        self.config, self.store, self.folder = config, store, folder
        self.monitor = monitor
        self.tracker = NoTracker()
        settings = config.training
        self.device = choose_device(settings.device)
        self.subjects = store.subjects("train")
        self.data = SliceDataset(store, self.subjects)
        if not len(self.data):
            raise InputError(f"store {store.name} has no training slices: see prepare.split")
        self.flip = config.data.flip and store.plane != "sagittal"

        torch.manual_seed(settings.seed)
        self.objective = build_objective(config, store.image_shape).to(self.device)
        self.averaged = AveragedModel(
            self.objective, multi_avg_fn=_averager(settings.ema_decay), use_buffers=False
        )
        self.optimizer = torch.optim.Adam(
            self.objective.vae.parameters(), lr=settings.learning_rate, fused=True
        )
        self.kernel_optimizer: torch.optim.Adam | None = None
        if self.objective.kernel_network is not None:
            self.kernel_optimizer = torch.optim.Adam(
                self.objective.kernel_network.parameters(),
                lr=settings.kernel_learning_rate,
                fused=True,
            )
        # Order, augmentation and posterior noise each have a stream of their own, so that every
        # term sees the same batches.
        self.order, self.changes = (
            torch.Generator().manual_seed(settings.seed + offset) for offset in (1, 2)
        )
        self.noise = torch.Generator(self.device).manual_seed(settings.seed + 3)
        self.controller = RateController(beta=settings.beta, target=settings.rate_target)
        self.epoch = self.step = 0
        self.seconds = 0.0
        self.best_psnr = -math.inf
        self.kernel_history: dict[int, Tensor] = {}
        self.steps_per_epoch = max(len(self.data) // settings.batch_size, 1)

    @property
    def smoothed(self) -> Objective:
        """The objective with averaged weights."""
        return cast(Objective, self.averaged.module)

    def fit(self, tracker: NoTracker) -> dict[str, float]:
        """Train to the end, telling `tracker` about it. Returns the last epoch's metrics."""
        self.tracker = tracker
        settings = self.config.training
        metrics: dict[str, float] = {}
        start = time.monotonic() - self.seconds
        if self.epoch == 0:
            self._picture()  # MLflow's viewer opens at step 0; the initial kernel tells, too
        with Reporter("epoch", settings.epochs) as reporter:
            while self.epoch < settings.epochs and not self._time_is_up():
                metrics = self._epoch(start)
                self.epoch += 1
                self.seconds = time.monotonic() - start
                last = self.epoch == settings.epochs or self._time_is_up()
                if last or self.epoch % settings.validate_every == 0:
                    metrics |= self._validate()
                if last or self.epoch % settings.figure_every == 0:
                    self._picture()
                self.tracker.metrics(metrics, self.epoch)
                if last or self.epoch % settings.checkpoint_every == 0:
                    self.tracker.flush()
                    save_checkpoint(self.folder / "checkpoints" / LAST, self.state(finished=last))
                reporter.update(self.epoch, summary(metrics))
        return metrics

    def _progress(self, start: float) -> float:
        """How much of the run is done, by steps or by the clock, whichever is further."""
        settings = self.config.training
        done = self.step / (settings.epochs * self.steps_per_epoch)
        if settings.max_minutes > 0:
            done = max(done, (time.monotonic() - start) / (60 * settings.max_minutes))
        return min(done, 1.0)

    def _time_is_up(self) -> bool:
        minutes = self.config.training.max_minutes
        return minutes > 0 and self.seconds >= 60 * minutes

    def _epoch(self, start: float) -> dict[str, float]:
        """One pass over the training slices. Returns the epoch's means."""
        settings = self.config.training
        self.objective.train()
        sums: dict[str, float] = {}
        began, images = time.monotonic(), 0
        for indices in shuffled_batches(len(self.data), settings.batch_size, self.order):
            self._set_learning_rates(self._progress(start))
            batch = torch.stack(self.data.__getitems__(indices)).to(self.device)
            batch = augment(batch, self.config.data.augmentation, self.flip, self.changes)
            parts = self._train_step(batch.contiguous(memory_format=torch.channels_last))
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value * len(indices)
            images += len(indices)
            self.seconds = time.monotonic() - start
            if self._time_is_up():
                break
        metrics = {name: value / images for name, value in sums.items()}
        metrics["images_per_second"] = images / (time.monotonic() - began)
        metrics["beta"] = self.controller.beta
        self.controller.update(metrics["rate"])
        return metrics

    @property
    def warm_up(self) -> bool:
        """Whether this epoch is trained under the plain Gaussian term."""
        return self.epoch < self.config.likelihood.warmup_epochs

    def _train_step(self, batch: Tensor) -> dict[str, float]:
        """Step (A), then step (B), on one batch (B,C,H,W). Returns the batch's means."""
        objective, clip = self.objective, self.config.training.gradient_clip
        parts = objective.elbo(batch, self.noise, warm_up=self.warm_up)
        # Per pixel value, so that clipping and Adam's epsilon mean the same at every size.
        loss = (parts.distortion + self.controller.beta * parts.rate).mean() / batch[0].numel()
        self._check_finite(loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip > 0:
            nn.utils.clip_grad_norm_(objective.vae.parameters(), clip)
        self.optimizer.step()
        metrics = {
            "elbo": parts.elbo.mean().item(),
            "distortion": parts.distortion.mean().item(),
            "rate": parts.rate.mean().item(),
            "scale": parts.scale.item(),
        }
        with torch.no_grad():
            kernel = parts.kernel if parts.kernel is not None else objective.kernel(parts.latent)
        if kernel is not None:
            metrics["kernel_width"] = kernel_width(kernel).mean().item()

        kernel_loss = objective.kernel_loss(batch, parts)
        if kernel_loss is not None and self.kernel_optimizer is not None:
            self.kernel_optimizer.zero_grad(set_to_none=True)
            (kernel_loss.mean() / batch[0].numel()).backward()
            self.kernel_optimizer.step()
            metrics["kernel_loss"] = kernel_loss.mean().item()
        self.averaged.update_parameters(objective)
        self.step += 1
        return metrics

    def _check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is not finite at step {self.step}: lower training.learning_rate or "
                "raise likelihood.constant, then train with --restart true"
            )

    def _set_learning_rates(self, progress: float) -> None:
        """Linear warm-up, then cosine decay to zero; the kernel network keeps its own rate."""
        settings = self.config.training
        warm = min((self.step + 1) / max(settings.lr_warmup_steps, 1), 1.0)
        factor = warm * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor

    def _validate(self) -> dict[str, float]:
        """Score the averaged weights; keep them if they are the best since the warm-up."""
        found = self.monitor.validate(
            self.smoothed, self.controller.beta, warm_up=self.epoch <= self._warm_up_end
        )
        psnr = found.get("psnr", math.nan)
        if self.epoch > self._warm_up_end and psnr > self.best_psnr:
            self.best_psnr = psnr
            save_checkpoint(self.folder / "checkpoints" / BEST, self.state())
        return {f"validation_{name}": value for name, value in found.items()}

    @property
    def _warm_up_end(self) -> int:
        """Epochs done when the warm-up ends; the last epoch counts as trained in any case."""
        return min(self.config.likelihood.warmup_epochs, self.config.training.epochs - 1)

    def _picture(self) -> None:
        self.tracker.image(self.monitor.picture(self.smoothed), "reconstructions", self.epoch)
        kernels = self.monitor.kernels(self.objective)
        if kernels is not None:
            self.kernel_history[self.epoch] = kernels

    def state(self, finished: bool = False) -> dict[str, Any]:
        """Everything to go on from, and what evaluation must know: tensors and plain values."""
        kernel_optimizer = self.kernel_optimizer
        return {
            "objective": self.objective.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "kernel_optimizer": kernel_optimizer.state_dict() if kernel_optimizer else None,
            "generators": [g.get_state() for g in (self.order, self.changes, self.noise)],
            "controller": asdict(self.controller),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "best_psnr": self.best_psnr,
            "kernel_history": self.kernel_history,
            "kernel_images": self.monitor.images.cpu(),
            "finished": finished,
            "config": asdict(self.config),
            "image_shape": list(self.store.image_shape),
            "store": {"name": self.store.name, "digest": self.store.digest},
            "trained_on": [
                {"subject": e.subject, "family": e.family, "source_sha256": e.source_sha256}
                for e in self.subjects
            ],
            "tracking_run": self.tracker.run_id,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.objective.load_state_dict(state["objective"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.kernel_optimizer is not None:
            self.kernel_optimizer.load_state_dict(state["kernel_optimizer"])
        for generator, saved in zip(
            (self.order, self.changes, self.noise), state["generators"], strict=True
        ):
            generator.set_state(saved)
        self.controller = RateController(**state["controller"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.seconds, self.best_psnr = state["seconds"], state["best_psnr"]
        self.kernel_history = state["kernel_history"]


def build_objective(config: Config, image_shape: tuple[int, int, int]) -> Objective:
    """The objective that a configuration describes. Raises InputError naming the wrong key."""
    try:
        objective = Objective(image_shape, config.model, config.likelihood)
    except ValueError as error:
        raise InputError(str(error)) from error
    return objective.to(memory_format=torch.channels_last)


def load_objective(path: Path, config: Config) -> tuple[Objective, dict[str, Any]]:
    """The averaged weights of a checkpoint, ready to evaluate, and the checkpoint's state."""
    state = load_checkpoint(path)
    channels, height, width = state["image_shape"]
    averaged = AveragedModel(build_objective(config, (channels, height, width)))
    try:
        averaged.load_state_dict(state["averaged"])
    except RuntimeError as error:
        raise InputError(
            f"checkpoint {path} does not fit its run's configuration: train again"
        ) from error
    return cast(Objective, averaged.module.eval()), state


def summary(metrics: dict[str, float]) -> str:
    """An epoch in a few words for the progress display."""
    shown = {
        "distortion": "distortion {:.0f}",
        "rate": "rate {:.0f} nats",
        "beta": "β {:.2f}",
        "kernel_width": "kernel {:.2f} px",
        "validation_psnr": "validation {:.2f} dB",
        "validation_high_frequency_ratio": "high frequencies {:.2f}",
        "images_per_second": "{:.0f} images/s",
    }
    return ", ".join(text.format(metrics[key]) for key, text in shown.items() if key in metrics)


def _averager(decay: float) -> Any:
    """Exponential moving average whose memory grows with the number of steps at first."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Any) -> None:
        steps = float(count)
        weight = min(decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(averaged, current, 1 - weight)

    return update
