"""Whether a device computes what a CPU does, and twice the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from terms import resized
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.config import Config
from pipeline.distributed import Processes
from pipeline.training.objective import Objective, build_objective
from pipeline.training.step import TrainingStep

# Relative, of the gradients of either step; ‖g − g₀‖ / ‖g₀‖ over all its parameters.
TOLERANCE = 1e-3


class FourierWatch(TorchFunctionMode):
    """Notes the dtype of every FFT's input, and whether autocast was on."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device.type
        self.seen: set[tuple[torch.dtype, bool]] = set()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if "fft" in getattr(function, "__name__", "") and isinstance(args[0], Tensor):
            self.seen.add((args[0].dtype, torch.is_autocast_enabled(self.device)))
        return function(*args, **(kwargs or {}))


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """A block with TF32, which NVIDIA's matrix units compute float32 in, allowed or not."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def gradients(
    objective: Objective, images: Tensor, noise: Tensor, *, half: bool = False
) -> dict[str, Tensor]:
    """Gradients of step (A), encoder and decoder, and of step (B), kernel network: float64, CPU."""
    objective.zero_grad(set_to_none=True)
    objective.term.scale.running.fill_(torch.nan)  # σ as in the first step
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        loss, _ = objective(images, noise, beta=1.0, warm_up=False)
    loss.backward()
    assert objective.kernel_network is not None
    return {
        name: torch.cat(
            [p.grad.flatten().double().cpu() for p in part.parameters() if p.grad is not None]
        )
        for name, part in (("A", objective.vae), ("B", objective.kernel_network))
    }


def measure_agreement(
    config: Config, slices: Tensor, device: torch.device, seed: int, *, batch: int = 8
) -> dict[str, Any]:
    """Relative errors of the gradients of both steps against a CPU in float64.

    Raises AssertionError where an FFT ran in another type than float32, or within autocast.
    """
    side = slices.shape[-1]
    images = resized(slices, side, batch)
    noise = torch.randn(
        (batch, config.model.latent_size), generator=torch.Generator().manual_seed(seed)
    )
    torch.manual_seed(seed)
    objective = build_objective(config, tuple(images.shape[1:]))
    reference = gradients(objective.double(), images.double(), noise.double())
    found: dict[str, dict[str, Tensor]] = {}
    found["CPU, float32"] = gradients(objective.float(), images, noise)
    objective, images, noise = objective.to(device), images.to(device), noise.to(device)
    if device.type == "cuda":
        with tensor_float(False):
            found["device, float32"] = gradients(objective, images, noise)
        found["device, float32, torch's default (TF32 convolutions)"] = gradients(
            objective, images, noise
        )
    watch = FourierWatch(device)
    with watch:
        found["device, bf16"] = gradients(objective, images, noise, half=True)
    assert watch.seen == {(torch.float32, False)}, f"FFTs ran as {watch.seen}"
    rows = {
        name: {step: _relative(of[step], exact) for step, exact in reference.items()}
        for name, of in found.items()
    }
    judged = rows.get("device, float32", rows["CPU, float32"])
    return {
        "side": side,
        "errors": rows,
        "tolerance": TOLERANCE,
        "agrees": max(judged.values()) <= TOLERANCE,
        "ffts": "float32, outside autocast",
    }


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def trained_weights(
    config: Config, images: Tensor, processes: Processes, seed: int, steps: int
) -> Tensor:
    """All weights after a few steps from a seed, on the CPU."""
    torch.manual_seed(seed)
    objective = build_objective(config, tuple(images.shape[1:]))
    step = TrainingStep(objective, replace(config.training, accumulation=1), processes)
    random = torch.Generator(images.device).manual_seed(seed)
    size = (len(images), config.model.latent_size)
    for _ in range(steps):
        step(images, torch.randn(size, generator=random, device=images.device))
    return torch.cat([p.detach().flatten().cpu() for p in objective.parameters()])


def measure_repeat(
    config: Config, slices: Tensor, processes: Processes, seed: int, *, steps: int = 20
) -> list[dict[str, Any]]:
    """Whether two runs end with the same bits: as trained, and with deterministic algorithms."""
    images = resized(slices, slices.shape[-1], config.training.batch_size).to(processes.device)
    search = torch.backends.cudnn.benchmark
    rows = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.backends.cudnn.benchmark = search and not deterministic
        try:
            one, other = (trained_weights(config, images, processes, seed, steps) for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.benchmark = search
        rows.append(
            {
                "deterministic": deterministic,
                "steps": steps,
                "equal": torch.equal(one, other),
                "largest_difference": float((one - other).abs().max()),
            }
        )
        print(f"repeat: {rows[-1]}", flush=True)
    return rows
