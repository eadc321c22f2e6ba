"""Timing side by side, and what it was timed on."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Any) -> "Spread":
        low, median, high = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75])
        return cls(float(median), float(low), float(high))


def synchronise(device: torch.device) -> None:
    """Wait for a GPU to finish what it was given; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    actions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    *,
    warm_up: int = 2,
    budget: float = float("inf"),
    least: int = 3,
) -> Times:
    """Seconds of each action in each round, the actions taking turns: A, B, C, A, B, C, …

    So a machine that slows down for a while slows all of them. After `budget` seconds no further
    round begins, but at least `least` are taken.
    """
    for _ in range(warm_up):
        for action in actions.values():
            action()
    times: Times = {name: [] for name in actions}
    began = time.perf_counter()
    for done in range(rounds):
        if done >= least and time.perf_counter() - began > budget:
            break
        for name, action in actions.items():
            synchronise(device)
            start = time.perf_counter()
            action()
            synchronise(device)
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Times, name: str, to: str) -> Spread:
    """How many times as long `name` takes as `to`, from the ratio in each round."""
    return Spread.of(np.array(times[name]) / np.array(times[to]))


def machine(device: torch.device) -> dict[str, Any]:
    """What figures depend on: processor, cores, threads, versions, GPU."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": device.type,
        "gpu": gpu,
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as Linux gives it, else the platform's."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
