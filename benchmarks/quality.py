"""Time to quality: how good reconstructions of unseen subjects are after so many seconds.

Every model trains on the same slices, in the same order, with the same augmentation and batch
size. The clock of a peer stands still while it is scored; this project's runs on, for its scores
are taken by the real training loop.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import synchronise
from peers import PROJECT, PROJECT_SHORT, Contestant, count, project_notes, reconstruct
from torch import Tensor

from data_prep.common.tracking import Tracker
from pipeline.config import Config
from pipeline.data.augmentation import augment
from pipeline.data.slices import Batches, EpochSampler, SliceDataset, Store
from pipeline.errors import InputError
from pipeline.metrics.fidelity import psnr
from pipeline.metrics.sharpness import high_frequency_ratio
from pipeline.randomness import Stream, generator
from pipeline.training.loop import Trainer
from pipeline.training.objective import Objective

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]

METRICS = ("lpips_alex", "psnr", "high_frequency_ratio")
KEPT = 0.5
LIMIT = 16
"""Slices scored per subject, as in ValidationMonitor."""
FIRST_SCORES = (5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0)
INTERVAL = 20.0
# No clock and no slow machine comes near: time alone ends a run.
ENDLESS = 1_000_000


@dataclass(frozen=True)
class Point:
    """Scores after so many seconds and steps; rate in nats, psnr in dB."""

    seconds: float
    step: int
    psnr: float
    high_frequency_ratio: float
    rate: float
    lpips_alex: float | None = None
    """None where it is not measured."""


@dataclass
class Run:
    """What a model did in its time."""

    name: str
    notes: str
    parameters: int
    curve: list[Point] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    diverged: bool = False


def goodness(point: Point, metric: str) -> float:
    """Higher is better: LPIPS the lower, PSNR the higher, high-frequency ratio the nearer 1."""
    value = getattr(point, metric)
    if metric == "psnr":
        return value
    return -value if metric == "lpips_alex" else -abs(math.log(max(value, 1e-9)))


def best(curve: Sequence[Point], metric: str) -> Point | None:
    """The best point of a run, the first of equals; None where there is none.

    High frequencies count only at points that one would keep, with a PSNR within KEPT dB of the
    run's best: the noise of a network that has hardly learned has high frequencies, too.
    """
    if metric == "high_frequency_ratio" and curve:
        highest = max(point.psnr for point in curve)
        curve = [point for point in curve if point.psnr >= highest - KEPT]
    curve = [point for point in curve if getattr(point, metric) is not None]
    return max(curve, key=lambda point: goodness(point, metric), default=None)


def first_reached(curve: Sequence[Point], targets: dict[str, Point]) -> Point | None:
    """The first point that is at least as good as every metric's target at once."""
    for point in curve:
        if all(goodness(point, name) >= goodness(target, name) for name, target in targets.items()):
            return point
    return None


class Schedule:
    """When to score: after FIRST_SCORES seconds, then every INTERVAL."""

    def __init__(self) -> None:
        self._times = itertools.chain(
            FIRST_SCORES, itertools.count(FIRST_SCORES[-1] + INTERVAL, INTERVAL)
        )
        self._next = next(self._times)

    def due(self, seconds: float) -> bool:
        """Whether a score is due; times that were missed are not made up for."""
        due = seconds >= self._next
        while seconds >= self._next:
            self._next = next(self._times)
        return due


class Scorer:
    """Scores reconstructions of the validation subjects: means over subjects of slice means."""

    def __init__(
        self, store: Store, device: torch.device, limit: int = LIMIT, *, perceptual: bool = True
    ) -> None:
        """perceptual: whether LPIPS is measured, which torch alone can't.

        Raises InputError where there is no subject to score, or no weights for LPIPS.
        """
        data = SliceDataset(store, store.subjects("validation"))
        if not len(data):
            raise InputError(f"store {store.name} has no validation subjects: see prepare.split")
        self.subjects = [
            data.of_subject(index, limit).to(device) for index in range(len(data.subjects))
        ]
        self.distance: Any = None
        if not perceptual:
            return
        from pipeline.metrics.perceptual import PerceptualDistance, WeightsNotFound

        try:
            self.distance = PerceptualDistance("alex")
        except WeightsNotFound as error:
            raise InputError(str(error)) from error

    def __call__(self, reconstruct: Reconstruct) -> dict[str, float] | None:
        """The scores by name; None where a reconstruction is not finite."""
        rows = []
        for images in self.subjects:
            found, rate = reconstruct(images)
            if not found.isfinite().all():
                return None
            found = found.float().clamp(0.0, 1.0).contiguous()
            row = {
                "psnr": psnr(images, found).mean().item(),
                "high_frequency_ratio": high_frequency_ratio(images, found),
                "rate": rate.mean().item(),
            }
            if self.distance is not None:
                row["lpips_alex"] = self.distance(images, found).mean().item()
            rows.append(row)
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def training_slices(store: Store, limit: int) -> Tensor:
    """At most `limit` training slices (n,C,H,W), evenly spread."""
    data = SliceDataset(store, store.subjects("train"))
    if not len(data):
        raise InputError(f"store {store.name} has no training slices: see prepare.split")
    wanted = np.linspace(0, len(data) - 1, min(limit, len(data))).round().astype(int)
    return data.__getitems__(wanted.tolist())


def augmented_batches(config: Config, store: Store, device: torch.device) -> Iterator[Tensor]:
    """The batches (B,C,H,W) that the project's own loop trains on, epoch after epoch."""
    settings = config.training
    data = SliceDataset(store, store.subjects("train"))
    sampler = EpochSampler(len(data), settings.batch_size, settings.seed)
    batches = Batches(data, sampler, config.data, device)
    flip = config.data.flip and store.plane != "sagittal"
    steps = itertools.count()
    for epoch in itertools.count():
        sampler.epoch = epoch
        for images in batches:
            random = generator(settings.seed, Stream.AUGMENTATION, next(steps))
            yield augment(images, config.data.augmentation, flip, random)


def train_peer(
    build: Callable[[], Contestant], config: Config, store: Store, scorer: Scorer, seconds: float
) -> Run:
    """Train for so many seconds, scoring time not counted; a run that diverges ends early."""
    device = scorer.subjects[0].device
    torch.manual_seed(config.training.seed)
    contestant = build()
    run = Run(contestant.name, contestant.notes, contestant.parameters)
    schedule, images = Schedule(), 0
    batches = augmented_batches(config, store, device)
    while run.seconds < seconds and not run.diverged:
        began = time.perf_counter()
        batch = next(batches)
        contestant.step(batch)
        synchronise(device)
        run.seconds += time.perf_counter() - began
        run.steps += 1
        images += len(batch)
        if schedule.due(run.seconds) or run.seconds >= seconds:
            run.diverged = not record(run, scorer(contestant.reconstruct))
    run.images_per_second = images / run.seconds
    return run


def record(run: Run, scores: dict[str, float] | None) -> bool:
    """Note scores at the run's present second and step; False where there are none."""
    if scores is None:
        print(f"quality, {run.name}: not finite after {run.steps} steps", flush=True)
        return False
    point = Point(seconds=run.seconds, step=run.steps, **scores)
    run.curve.append(point)
    distance = "" if point.lpips_alex is None else f"LPIPS {point.lpips_alex:.4f}, "
    print(
        f"quality, {run.name}: {point.seconds:.0f} s, {point.step} steps, "
        f"{distance}PSNR {point.psnr:.2f} dB, "
        f"high frequencies {point.high_frequency_ratio:.3f}, rate {point.rate:.0f} nats",
        flush=True,
    )
    return True


class ScoringMonitor:
    """A monitor that scores when it is due, and has no pictures."""

    def __init__(self, scorer: Scorer, run: Run, seconds: float) -> None:
        self.images = scorer.subjects[0][:1]
        self.trainer: Trainer | None = None
        self._scorer, self._run, self._seconds = scorer, run, seconds
        self._schedule = Schedule()

    @torch.no_grad()
    def validate(self, objective: Objective, beta: float, warm_up: bool) -> dict[str, float]:
        assert self.trainer is not None
        run = self._run
        run.seconds, run.steps = self.trainer.seconds, self.trainer.step
        if not self._schedule.due(run.seconds) and run.seconds < self._seconds:
            return {}

        scores = self._scorer(partial(reconstruct, objective.vae))
        run.diverged = not record(run, scores)
        return scores or {}

    def psnr_of_the_mean(self) -> float:
        """A run that learned nothing is shown as such, too."""
        return -math.inf

    def picture(self, objective: Objective) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    def kernels(self, objective: Objective) -> None:
        return None


def train_project(
    config: Config,
    store: Store,
    scorer: Scorer,
    seconds: float,
    folder: Path,
    name: str = PROJECT,
) -> Run:
    """The real training loop for so many seconds, the time of its scores included.

    Its whole schedule (levels, learning rate) fits itself to that time.
    """
    training = replace(config.training, max_minutes=seconds / 60, epochs=ENDLESS, validate_every=1)
    config = replace(config, training=training)
    run = Run(name, project_notes(config), parameters=0)
    monitor = ScoringMonitor(scorer, run, 60 * training.max_minutes)
    trainer = monitor.trainer = Trainer(config, store, folder, monitor)
    run.parameters = count(trainer.objective)
    trainer.fit(Tracker())
    run.images_per_second = run.steps * trainer.sampler.batch_size / run.seconds
    return run


def compare(runs: Sequence[Run], seconds: float) -> dict[str, Any]:
    """When this project reached the best that any peer reached in the whole time, per metric.

    `all` is about the first point at which it holds for all metrics at once. The project's short
    run is shown, and decides nothing here.
    """
    (project,) = (run for run in runs if run.name == PROJECT)
    rows: dict[str, Any] = {}
    targets: dict[str, Point] = {}
    for metric in METRICS:
        bests = {
            run.name: point
            for run in runs
            if run.name not in (PROJECT, PROJECT_SHORT) and (point := best(run.curve, metric))
        }
        if not bests:
            continue
        name = max(bests, key=lambda name: goodness(bests[name], metric))
        targets[metric] = bests[name]
        reached = first_reached(project.curve, {metric: bests[name]})
        rows[metric] = {
            "peer": name,
            "value": getattr(bests[name], metric),
            "peer_seconds": bests[name].seconds,
            "seconds": reached.seconds if reached else None,
            "within_a_fifth": reached is not None and reached.seconds <= seconds / 5,
        }
    reached = first_reached(project.curve, targets) if targets else None
    rows["all"] = {
        "seconds": reached.seconds if reached else None,
        "within_a_fifth": reached is not None and reached.seconds <= seconds / 5,
    }
    return rows
