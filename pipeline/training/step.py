"""One training step: gradients, their check, both optimisers, averaged weights."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.config import TrainingConfig
from pipeline.distributed import Processes, mean_over_processes
from pipeline.errors import InputError
from pipeline.losses.base import Scale
from pipeline.training.checkpoint import TrainingState
from pipeline.training.objective import Objective

log = logging.getLogger(__name__)

# Passes before a capture, in which libraries choose their kernels and allocate their workspace.
WARM_UP = 3

# (images, noise, β, warm-up) -> the loss (), and means to report.
Forward = Callable[[Tensor, Tensor, float | Tensor, bool], tuple[Tensor, dict[str, Tensor]]]


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
        self.averaged_steps = self.skipped = self.skipped_in_a_row = 0
        self._averaged = AveragedModel(objective, multi_avg_fn=self._average)
        self._scales = [part for part in objective.modules() if isinstance(part, Scale)]
        # Some terms have parameters of their own, as the shape of a density.
        self._learned = [*objective.vae.parameters(), *objective.term.parameters()]
        self.optimizer = torch.optim.Adam(self._learned, lr=settings.learning_rate, fused=True)
        self.kernel_optimizer: torch.optim.Adam | None = None
        if objective.kernel_network is not None:
            weights, rate = objective.kernel_network.parameters(), settings.kernel_learning_rate
            self.kernel_optimizer = torch.optim.Adam(weights, lr=rate, fused=True)
        if settings.compile:
            objective.vae.compile()
        self._wrapped = self.processes.wrap(objective)
        # One GPU, and the whole batch at once.
        alone = self.processes.count == 1 and settings.accumulation == 1
        on_gpu = self.processes.device.type == "cuda"
        fits = on_gpu and alone and settings.cuda_graph and not settings.compile
        self._captured = CapturedPass(objective, self._forward) if fits else None

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """Lay weights and images out otherwise in memory; the values are the same."""
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
        objective = self.objective
        objective.train()
        before = [buffer.clone() for buffer in objective.buffers()]  # the forward pass moves σ
        images = batch.contiguous(memory_format=self.memory_format)
        means = self._gradients(images, noise, beta, warm_up)
        clip = self.settings.gradient_clip or math.inf
        row = [*means.values(), nn.utils.clip_grad_norm_(self._learned, clip)]
        if objective.kernel_network is not None:
            kernel = [p.grad for p in objective.kernel_network.parameters() if p.grad is not None]
            row.append(nn.utils.get_total_norm(kernel))
        row.append(batch.isfinite().all().to(row[0].dtype))
        # The one point at which the processor waits for a GPU.
        told = mean_over_processes(torch.stack(row)).tolist()
        if not all(map(math.isfinite, told)):
            for buffer, old in zip(objective.buffers(), before, strict=True):
                buffer.copy_(old)
            self._skip(told[: len(means)], images_sound=told[-1] == 1)
            return {}
        self.skipped_in_a_row = 0
        self.optimizer.step()
        if self.kernel_optimizer is not None:
            self.kernel_optimizer.step()
        self._averaged.update_parameters(objective)
        self.averaged_steps += 1
        return dict(zip([*means, "gradient_norm"], told, strict=False))

    def _gradients(
        self, batch: Tensor, noise: Tensor, beta: float, warm_up: bool
    ) -> dict[str, Tensor]:
        """Gradients of the whole batch in the parameters; returns its means.

        Piece by piece where asked for; only the last piece synchronises processes. An optimal scale
        is that of the whole batch: of pieces it is measured in a pass before.
        """
        if self._captured is not None:
            try:
                return self._captured(batch, noise, beta, warm_up)
            except RuntimeError as error:
                reason = str(error).splitlines()[0][:120]
                log.warning("no CUDA graph of the step (%s): it runs without, slower", reason)
                self._captured = None
        self.objective.zero_grad(set_to_none=True)
        pieces = self.settings.accumulation
        parts = list(zip(batch.chunk(pieces), noise.chunk(pieces), strict=True))
        if pieces > 1 and any(scale.fixed is None for scale in self._scales):
            for scale in self._scales:
                scale.listen()
            with torch.no_grad():
                for images, draw in parts:
                    self._forward(images, draw, beta, warm_up)
            for scale in self._scales:
                scale.hold()
        rows: list[dict[str, Tensor]] = []
        for images, draw in parts:
            waits = len(rows) < pieces - 1
            with self.processes.unsynchronised(self._wrapped) if waits else nullcontext():
                loss, means = self._forward(images, draw, beta, warm_up)
                (loss / pieces).backward()
            rows.append(means)
        for scale in self._scales:
            scale.release()
        return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}

    def _forward(
        self, images: Tensor, noise: Tensor, beta: float | Tensor, warm_up: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        half = self.settings.precision == "bf16"
        # Without its cache, which would keep casts of weights from before a capture.
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=half, cache_enabled=self._captured is None
        ):
            return self._wrapped(images, noise, beta=beta, warm_up=warm_up)

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, _: Any) -> None:
        """Exponential moving average whose memory grows with the number of steps at first.

        Counted here: torch's own count lies on the device, and asking for it would wait for it.
        """
        steps = self.averaged_steps
        weight = min(self.settings.ema_decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(averaged, current, 1 - weight)

    def _skip(self, losses: list[float], images_sound: bool) -> None:
        """Count a batch that left no trace; too many in a row end the run, the cause named."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row <= self.settings.max_skipped:
            return
        if not images_sound:
            cause = "the images are not finite: prepare the store again"
        elif not all(p.isfinite().all() for p in self.objective.parameters()):
            cause = "the weights are not finite: train anew with --restart true"
        else:
            what = "a gradient" if all(map(math.isfinite, losses)) else "the loss"
            half = self.settings.precision == "bf16"
            in_half = " in bf16 (try training.precision float32)" if half else ""
            cause = (
                f"{what} overflows{in_half}: lower training.learning_rate or raise "
                "likelihood.constant, then give the same command with another RUN, or with "
                "--restart true"
            )
        raise InputError(
            f"{self.skipped_in_a_row} batches in a row without a finite loss and gradient "
            f"(training.max_skipped {self.settings.max_skipped}): {cause}"
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights by name, and everything else that a step depends on: fields of TrainingState."""
        weights = {f"objective.{k}": v for k, v in self.objective.state_dict().items()}
        weights |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        kernel = self.kernel_optimizer
        return weights, {
            "optimizer": self.optimizer.state_dict(),
            "kernel_optimizer": kernel.state_dict() if kernel else None,
            "averaged_steps": self.averaged_steps,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def resume(self, weights: dict[str, Tensor], state: TrainingState) -> None:
        """Continue from a checkpoint's weights and state."""
        self.objective.load_state_dict(part_of(weights, "objective"))
        self.averaged.load_state_dict(part_of(weights, "averaged"))
        self.averaged_steps = state.averaged_steps
        self._averaged.n_averaged.fill_(self.averaged_steps)
        self.optimizer.load_state_dict(state.optimizer)
        if self.kernel_optimizer is not None and state.kernel_optimizer is not None:
            self.kernel_optimizer.load_state_dict(state.kernel_optimizer)
        self.skipped, self.skipped_in_a_row = state.skipped, state.skipped_in_a_row


class CapturedPass:
    """Forward and backward pass of a step as one CUDA graph.

    At the batches of a small store a step is some thousand short kernels: a GPU computes them in a
    quarter of the time that Python takes to launch them one by one. Captured once, they are
    launched together (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), and again
    whenever the batch's shape or the phase of the training changes. The same kernels run on the
    same numbers; what changes between steps (images, noise, β, which levels are open, σ) lies in
    tensors that the graph reads.

    Gradients stay in the graph's own memory: they are overwritten by every call, and must not be
    set to None between two of them.
    """

    def __init__(self, objective: Objective, forward: Forward) -> None:
        self._objective, self._forward = objective, forward
        self._key: Any = None
        self._graph: Any = None

    def __call__(
        self, images: Tensor, noise: Tensor, beta: float, warm_up: bool
    ) -> dict[str, Tensor]:
        """Put the gradients of the loss into the parameters; returns the means of `forward`.

        Raises RuntimeError where it can't be captured.
        """
        key = (warm_up, images.shape)
        if key != self._key:
            self._capture(images, noise, warm_up)
            self._key = key
        self._images.copy_(images)
        self._noise.copy_(noise)
        self._beta.fill_(beta)
        self._graph.replay()
        return self._means

    def _capture(self, images: Tensor, noise: Tensor, warm_up: bool) -> None:
        self._key = self._graph = None
        self._images, self._noise = images.clone(), noise.clone()
        self._beta = torch.ones((), device=images.device)
        before = [buffer.clone() for buffer in self._objective.buffers()]  # σ moves in each pass
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._objective.zero_grad(set_to_none=True)
                loss, _ = self._forward(self._images, self._noise, self._beta, warm_up)
                loss.backward()
        current.wait_stream(side)
        self._objective.zero_grad(set_to_none=True)
        del loss
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss, self._means = self._forward(self._images, self._noise, self._beta, warm_up)
            loss.backward()
        for buffer, old in zip(self._objective.buffers(), before, strict=True):
            buffer.copy_(old)
        self._graph = graph


def part_of(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with `prefix.`, by the rest of their names."""
    return {
        name.removeprefix(f"{prefix}."): value
        for name, value in weights.items()
        if name.startswith(f"{prefix}.")
    }
