"""Images a second and memory of whole training steps of the shipped configurations."""

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Spread, alternate, synchronise
from terms import resized
from torch import Tensor

from pipeline.config import Config, load_config
from pipeline.distributed import Processes
from pipeline.training.objective import build_objective
from pipeline.training.step import TrainingStep

CONFIGS = Path(__file__).parents[1] / "configs"
MIB = 2**20


@dataclass(frozen=True)
class Variant:
    """How a step is computed; the step itself is the same."""

    name: str
    precision: str = "float32"
    compile: bool = False
    channels_last: bool = True
    graph: bool = False


# What a training on a GPU does by default comes first; torch.compile, a minute a size, last.
VARIANTS = (
    Variant("float32, CUDA graph", graph=True),
    Variant("bf16, CUDA graph", "bf16", graph=True),
    Variant("float32"),
    Variant("bf16", "bf16"),
    Variant("float32, contiguous", channels_last=False),
    Variant("bf16, torch.compile", "bf16", compile=True),
)


@dataclass(frozen=True)
class Size:
    """Images of side² under a shipped configuration; batches on a GPU and on a CPU."""

    side: int
    config: str
    gpu_batches: tuple[int, ...]
    cpu_batch: int


SIZES = (
    Size(64, "hcp64.yaml", (16, 256), 16),
    Size(128, "hcp128.yaml", (16, 128), 8),
    Size(256, "hcp.yaml", (32,), 2),
)


class WholeStep:
    """A training step on images that lie on the device: both optimisers, averaged weights."""

    def __init__(
        self, config: Config, variant: Variant, images: Tensor, processes: Processes, seed: int
    ) -> None:
        torch.manual_seed(seed)
        training = replace(
            config.training,
            precision=variant.precision,
            compile=variant.compile,
            cuda_graph=variant.graph,
            accumulation=1,
        )
        objective = build_objective(config, tuple(images.shape[1:]))
        self.step = TrainingStep(objective, training, processes)
        if not variant.channels_last:
            self.step.use_memory_format(torch.contiguous_format)
        self.images = images
        size = (len(images), config.model.latent_size)
        self.noise = torch.randn(size, device=images.device)

    def __call__(self) -> None:
        self.step(self.images, self.noise)


def all_levels_open(path: Path) -> Config:
    """A configuration as its run ends: every level in use."""
    config = load_config(path)
    levels = [replace(level, opens=0.0) for level in config.model.levels]
    return replace(config, model=replace(config.model, levels=levels))


def measure_speed(
    slices: Tensor,
    processes: Processes,
    seed: int,
    *,
    sizes: Sequence[Size] = SIZES,
    variants: Sequence[Variant] = VARIANTS,
    rounds: int = 20,
    deadline: float = float("inf"),
) -> Iterator[list[dict[str, Any]]]:
    """Rows, each time with one more: a variant at a size and a batch.

    slices (N,C,H,W) in [0,1]. deadline: of time.monotonic(); what is not begun by then is left out,
    and its row says so. A variant that fails is a row with its error.
    """
    rows: list[dict[str, Any]] = []
    device = processes.device
    for compiled in (False, True):
        for size in sizes:
            config = all_levels_open(CONFIGS / size.config)
            batches = size.gpu_batches if device.type == "cuda" else (size.cpu_batch,)
            for batch in batches if not compiled else batches[-1:]:
                images = resized(slices, size.side, batch).to(device)
                for variant in (v for v in variants if v.compile is compiled):
                    row = {"side": size.side, "batch": batch, "variant": variant.name}
                    if time.monotonic() > deadline:
                        row["error"] = "no time left"
                    else:
                        step = partial(WholeStep, config, variant, images, processes, seed)
                        row |= _measured(step, device, batch, rounds)
                    rows.append(row)
                    print("speed, " + words(row), flush=True)
                    yield rows


def _measured(
    build: partial[WholeStep], device: torch.device, batch: int, rounds: int
) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    try:
        if on_gpu:
            gc.collect()  # the memory of the variant before
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        step = build()
        began = time.perf_counter()
        step()
        synchronise(device)
        first = time.perf_counter() - began
        times = alternate({"step": step}, rounds, device, warm_up=3 if on_gpu else 1, budget=20.0)
        peak = torch.cuda.max_memory_allocated(device) / MIB if on_gpu else None
        speed = Spread.of([batch / seconds for seconds in times["step"]])
    except Exception as error:  # out of memory, no compiler, …: one variant's fault is a row
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
    finally:
        torch.compiler.reset()
    return {"images_per_second": asdict(speed), "peak_mib": peak, "first_step_seconds": first}


def words(row: dict[str, Any]) -> str:
    """A row as a line of progress."""
    start = f"{row['side']}², batch {row['batch']}, {row['variant']}: "
    if "error" in row:
        return start + row["error"]
    memory = f", {row['peak_mib']:.0f} MiB" if row["peak_mib"] is not None else ""
    return f"{start}{row['images_per_second']['median']:.1f} images/s{memory}"
