"""How many images a second each model trains on, what it computes for them, and how fast batches
come from the store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from measure import Spread, alternate
from peers import Contestant, Project
from terms import resized
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Config
from pipeline.data.augmentation import augment
from pipeline.data.slices import Batches, EpochSampler, SliceDataset, Store
from pipeline.distributed import Processes
from pipeline.randomness import Stream, generator

LARGE_BATCH = 64


def multiply_adds(contestant: Contestant, batch: Tensor) -> float:
    """Multiply-adds of one training step per image, forward and backward.

    torch's counter knows convolutions and matrix products, and counts a multiply-add as two;
    FFTs, normalisation and other work on single values are left out.
    """
    with FlopCounterMode(display=False) as counter:
        contestant.step(batch)
    return counter.get_total_flops() / 2 / len(batch)


def measure_throughput(
    builders: Mapping[str, Callable[[], Contestant]],
    slices: Tensor,
    batches: Sequence[int],
    device: torch.device,
    *,
    rounds: int = 15,
    budget: float = 60.0,
) -> list[dict[str, Any]]:
    """A row a model: parameters, multiply-adds, and images/s at every batch size.

    slices (N,C,H,W) in [0,1]; budget: seconds a batch size may take, at least three rounds apart.
    """
    models = {name: build() for name, build in builders.items()}
    side = slices.shape[-1]
    rows: dict[str, dict[str, Any]] = {
        name: {
            "name": name,
            "parameters": model.parameters,
            "multiply_adds": multiply_adds(model, resized(slices, side, batches[0]).to(device)),
            "images_per_second": {},
        }
        for name, model in models.items()
    }
    for size in batches:
        images = resized(slices, side, size).to(device)
        times = alternate(
            {name: partial(model.step, images) for name, model in models.items()},
            rounds,
            device,
            warm_up=1,
            budget=budget,
        )
        for name, values in times.items():
            speed = Spread.of([size / seconds for seconds in values])
            rows[name]["images_per_second"][str(size)] = asdict(speed)
            print(f"throughput, batch {size}, {name}: {speed.median:.1f} images/s", flush=True)
    return list(rows.values())


def measure_reading(
    config: Config, store: Store, processes: Processes, *, rounds: int = 15
) -> dict[str, Any]:
    """Images/s of reading, of reading with augmentation, and of training, taking turns.

    A turn is an epoch of reading, another with augmentation, and three training steps.
    """
    device, settings = processes.device, config.training
    data = SliceDataset(store, store.subjects("train"))
    sampler = EpochSampler(len(data), settings.batch_size, settings.seed)
    batches = Batches(data, sampler, config.data, device)
    model = Project(store.image_shape, processes, config)
    images = next(iter(batches))
    random = generator(settings.seed, Stream.AUGMENTATION, 0)
    steps = 3

    def read() -> None:
        for _ in batches:
            pass

    def read_and_augment() -> None:
        for batch in batches:
            augment(batch, config.data.augmentation, True, random)

    def train() -> None:
        for _ in range(steps):
            model.step(images)

    actions = {"reading": read, "reading and augmentation": read_and_augment, "training": train}
    times = alternate(actions, rounds, device, budget=60.0)
    epoch = len(sampler) * sampler.batch_size
    counts = {"reading": epoch, "reading and augmentation": epoch, "training": steps * len(images)}
    speed = {name: [counts[name] / seconds for seconds in values] for name, values in times.items()}
    ratios = {
        name: [one / other for one, other in zip(speed[name], speed["training"], strict=True)]
        for name in ("reading", "reading and augmentation")
    }
    found = {
        "batch": sampler.batch_size,
        "workers": config.data.workers,
        "images_per_second": {name: asdict(Spread.of(values)) for name, values in speed.items()},
        "ratio": {name: asdict(Spread.of(values)) for name, values in ratios.items()},
    }
    print(
        f"reading: {found['ratio']['reading']['median']:.0f} times what training takes", flush=True
    )
    return found
