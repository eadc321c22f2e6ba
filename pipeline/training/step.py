"""One training step: gradients, their check, both optimisers, averaged weights."""

import logging
import math
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.config import TrainingConfig
from pipeline.distributed import Processes
from pipeline.errors import InputError
from pipeline.losses.base import Scale
from pipeline.training.checkpoint import StepState
from pipeline.training.graph import CapturedPass
from pipeline.training.objective import Objective

log = logging.getLogger(__name__)


class TrainingStep:
    """What a batch changes: weights, both optimisers, averaged weights, the count of skipped.

    Weights and images are channels_last: convolutions need no reordering, and a CPU's step takes
    three quarters of the time.
    """

    def __init__(
        self, objective: Objective, settings: TrainingConfig, processes: Processes | None = None
    ) -> None:
        self.settings = settings
        self.processes = processes or Processes("cpu")
        self.objective = objective.to(self.processes.device)
        self.use_memory_format(torch.channels_last)
        self.averaged_steps = 0
        self._averaged = AveragedModel(objective, multi_avg_fn=self._average)
        self._scales = [part for part in objective.modules() if isinstance(part, Scale)]
        # Some terms have parameters of their own, as the shape of a density.
        self._learned = [*objective.vae.parameters(), *objective.term.parameters()]
        self.optimizer = _adam(self._learned, settings.learning_rate)
        network = objective.kernel_network
        self.kernel_optimizer = (
            _adam(list(network.parameters()), settings.kernel_learning_rate) if network else None
        )
        if settings.compile:
            objective.vae.compile()
        self._wrapped = self.processes.wrap(objective)
        self.skipped = self.skipped_in_a_row = 0
        self._captured: CapturedPass | None = None
        if self._graph_fits():
            self._captured = CapturedPass(objective)

    def _graph_fits(self) -> bool:
        """Whether the pass may be a CUDA graph: one GPU, the whole batch at once."""
        settings = self.settings
        alone = self.processes.count == 1 and settings.accumulation == 1
        on_gpu = self.processes.device.type == "cuda"
        return on_gpu and alone and settings.cuda_graph and not settings.compile

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """How weights and images lie in memory; the values are the same."""
        self.memory_format = memory_format
        self.objective.to(memory_format=memory_format)

    @property
    def averaged(self) -> Objective:
        """The objective with averaged weights."""
        return cast(Objective, self._averaged.module)

    def set_learning_rate(self, factor: float) -> None:
        """Scale the configured rate of VAE and term; the kernel network keeps its own."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor

    def __call__(
        self, batch: Tensor, noise: Tensor, *, beta: float = 1.0, warm_up: bool = False
    ) -> dict[str, float]:
        """Train on this process's share of a batch; returns the means of the whole batch.

        batch (b,C,H,W) in [0,1]; noise (b,L), standard normal. Where a loss or a
        gradient is not finite nothing is changed, and the dictionary is empty.
        Raises InputError if that happens more than `training.max_skipped` times in a row.
        """
        objective, settings = self.objective, self.settings
        objective.train()
        before = [buffer.clone() for buffer in objective.buffers()]  # the forward pass moves σ
        means = self._gradients(
            batch.contiguous(memory_format=self.memory_format), noise, beta, warm_up
        )
        norm = nn.utils.clip_grad_norm_(self._learned, settings.gradient_clip or math.inf)
        sound = batch.isfinite().all().to(norm.dtype)
        row = torch.stack([*means.values(), norm, *self._kernel_norm(), sound])
        # The one point at which the processor waits for a GPU.
        found = self.processes.mean(row).tolist()
        if not all(map(math.isfinite, found)):
            for buffer, old in zip(objective.buffers(), before, strict=True):
                buffer.copy_(old)
            self._skip(found[: len(means)], images_sound=found[-1] == 1)
            return {}
        self.skipped_in_a_row = 0
        self.optimizer.step()
        if self.kernel_optimizer is not None:
            self.kernel_optimizer.step()
        self._averaged.update_parameters(objective)
        self.averaged_steps += 1
        return dict(zip([*means, "gradient_norm"], found, strict=False))

    def _gradients(
        self, batch: Tensor, noise: Tensor, beta: float, warm_up: bool
    ) -> dict[str, Tensor]:
        """Gradients of the whole batch in the parameters; returns its means."""
        if self._captured is not None:
            try:
                return self._captured(
                    lambda images, draw, weight: self._forward(images, draw, weight, warm_up),
                    batch, noise, beta, warm_up,
                )  # fmt: skip
            except RuntimeError as error:
                reason = str(error).splitlines()[0][:120]
                log.warning("no CUDA graph of the step (%s): it runs without, slower", reason)
                self._captured = None
        self.objective.zero_grad(set_to_none=True)
        return self._accumulate(batch, noise, beta, warm_up)

    def _forward(
        self, images: Tensor, noise: Tensor, beta: float | Tensor, warm_up: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        half = self.settings.precision == "bf16"
        # Without its cache, which would keep casts of weights from before a capture.
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=half, cache_enabled=self._captured is None
        ):
            return self._wrapped(images, noise, beta=beta, warm_up=warm_up)

    def _accumulate(
        self, batch: Tensor, noise: Tensor, beta: float, warm_up: bool
    ) -> dict[str, Tensor]:
        """Gradients of the batch, piece by piece; only the last piece synchronises processes.

        An optimal scale is that of the whole batch: of pieces it is found in a pass before.
        """
        pieces = self.settings.accumulation
        rows: list[dict[str, Tensor]] = []
        parts = list(zip(batch.chunk(pieces), noise.chunk(pieces), strict=True))
        if pieces > 1 and any(scale.fixed is None for scale in self._scales):
            for scale in self._scales:
                scale.listen()
            with torch.no_grad():
                for images, draw in parts:
                    self._forward(images, draw, beta, warm_up)
            for scale in self._scales:
                scale.hold()
        for images, draw in parts:
            waits = len(rows) < pieces - 1
            with self.processes.unsynchronised(self._wrapped) if waits else nullcontext():
                loss, means = self._forward(images, draw, beta, warm_up)
                (loss / pieces).backward()
            rows.append(means)
        for scale in self._scales:
            scale.release()
        return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, _: Any) -> None:
        """Exponential moving average whose memory grows with the number of steps at first.

        Counted here: torch's own count lies on the device, and asking for it would wait for it.
        """
        steps = self.averaged_steps
        weight = min(self.settings.ema_decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(averaged, current, 1 - weight)

    def _kernel_norm(self) -> list[Tensor]:
        network = self.objective.kernel_network
        if network is None:
            return []
        return [
            nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        ]

    def _skip(self, losses: list[float], images_sound: bool) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.settings.max_skipped:
            raise InputError(
                f"{self.skipped_in_a_row} batches in a row without a finite loss and gradient "
                f"(training.max_skipped {self.settings.max_skipped}): "
                f"{self._cause(losses, images_sound)}"
            )

    def _cause(self, losses: list[float], images_sound: bool) -> str:
        """What is the likely cause, and the way out."""
        if not images_sound:
            return "the images are not finite: prepare the store again"
        if not all(p.isfinite().all() for p in self.objective.parameters()):
            return "the weights are not finite: train anew with --restart true"
        where = "a gradient" if all(map(math.isfinite, losses)) else "the loss"
        where += " overflows"
        if self.settings.precision == "bf16":
            where += " in bf16 (try training.precision float32)"
        return (
            f"{where}: lower training.learning_rate or raise likelihood.constant, then give the "
            "same command with another RUN, or with --restart true"
        )

    def state(self) -> tuple[dict[str, Tensor], StepState]:
        """Weights by name, and everything else that a step depends on."""
        weights = {f"objective.{k}": v for k, v in self.objective.state_dict().items()}
        weights |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        kernel_optimizer = self.kernel_optimizer
        return weights, StepState(
            optimizer=self.optimizer.state_dict(),
            kernel_optimizer=kernel_optimizer.state_dict() if kernel_optimizer else None,
            averaged_steps=self.averaged_steps,
            skipped=self.skipped,
            skipped_in_a_row=self.skipped_in_a_row,
        )

    def resume(self, weights: dict[str, Tensor], state: StepState) -> None:
        """Continue from what `state` returned."""
        self.objective.load_state_dict(part_of(weights, "objective"))
        self.averaged.load_state_dict(part_of(weights, "averaged"))
        self.averaged_steps = state.averaged_steps
        self._averaged.n_averaged.fill_(self.averaged_steps)
        self.optimizer.load_state_dict(state.optimizer)
        if self.kernel_optimizer is not None and state.kernel_optimizer is not None:
            self.kernel_optimizer.load_state_dict(state.kernel_optimizer)
        self.skipped, self.skipped_in_a_row = state.skipped, state.skipped_in_a_row


def part_of(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with `prefix.`, by the rest of their names."""
    return {
        name.removeprefix(f"{prefix}."): value
        for name, value in weights.items()
        if name.startswith(f"{prefix}.")
    }


def _adam(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
