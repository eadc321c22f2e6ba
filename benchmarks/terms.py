"""What the blur term costs: whole training steps against those of the plain Gaussian term."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from measure import Spread, alternate, ratio
from torch import Tensor
from torch.nn import functional as F

from pipeline.blur.likelihood import nll, optimal_scale
from pipeline.blur.spectrum import precision
from pipeline.config import Config
from pipeline.distributed import Processes
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig, describe_levels
from pipeline.training.objective import Objective, build_objective
from pipeline.training.step import TrainingStep

TERMS = ("gaussian", "blur", "straightforward")


@dataclass(frozen=True)
class Case:
    """Images of side², kernels of kernel_size², levels, batch on a CPU and on a GPU, rounds."""

    side: int
    kernel_size: int
    levels: tuple[Level, ...]
    batch: int
    gpu_batch: int
    rounds: int
    target: float | None = None
    """Largest ratio aimed at on a CPU."""


DEFAULT = tuple(ModelConfig().levels)  # the finest of half the side at 64²
LARGE = (Level(8, 16), Level(16, 8), Level(32, 4), Level(64, 2))
CASES = (
    Case(64, 11, DEFAULT, batch=16, gpu_batch=64, rounds=25, target=1.10),
    Case(128, 21, LARGE, batch=16, gpu_batch=64, rounds=15, target=1.10),
    Case(256, 41, LARGE, batch=8, gpu_batch=32, rounds=11, target=1.10),
)
GPU_TARGET = 1.05


class StraightforwardObjective(Objective):
    """The blur objective as one would first write it; the same values, at a higher price.

    Full complex FFTs in the likelihood; k ∗ x as a grouped convolution over the circularly padded
    image; the kernel network evaluated once for step (A) and once more for step (B).
    """

    def forward(
        self, image: Tensor, noise: Tensor, *, beta: float, warm_up: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if warm_up or not self.detach_kernel or self.kernel_network is None:
            raise ValueError("only the blur term with a detached kernel is written out here")
        found = self.vae.infer(image, noise)
        latent, reconstruction = found.latent, found.reconstruction
        with torch.no_grad():
            kernel = self.kernel_network(latent)
        distortion, scale = self._likelihood(image - reconstruction, kernel)
        rate = found.posterior.rate()
        kernel = self.kernel_network(latent.detach())
        difference = circular_convolution(image, kernel) - reconstruction.detach()
        blur = difference.square().sum(dim=(1, 2, 3)).mean()
        loss = (distortion + beta * rate).mean() + blur
        means = {
            "elbo": -(distortion + rate).mean(),
            "distortion": distortion.mean(),
            "rate": rate.mean(),
            "scale": scale,
            "kernel_loss": blur,
        }
        return loss / image[0].numel(), {name: value.detach() for name, value in means.items()}

    def _likelihood(self, residual: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """−log N(e; 0, σ²Σ_k) of (B,C,H,W) and (B,1,s,s) in nats (B,), and σ ()."""
        channels, height, width = residual.shape[1:]
        side = kernel.shape[-1]
        padded = F.pad(kernel, (0, width - side, 0, height - side))
        centred = padded.roll((-(side // 2), -(side // 2)), dims=(-2, -1))
        spectrum = precision(torch.fft.fft2(centred), self.term.constant, self.term.form)
        power = torch.fft.fft2(residual, norm="ortho").abs().square()
        quadratic = (spectrum * power).sum(dim=(1, 2, 3))
        log_determinant = channels * spectrum.log().sum(dim=(1, 2, 3))
        values = channels * height * width
        scale = self.term.scale(optimal_scale(quadratic, values))
        return nll(quadratic, log_determinant, values, scale), scale


def circular_convolution(image: Tensor, kernel: Tensor) -> Tensor:
    """k ∗ x on a periodic image, each with its own kernel: (B,C,H,W), (B,1,s,s) -> (B,C,H,W)."""
    batch, channels, height, width = image.shape
    edge = kernel.shape[-1] // 2
    padded = F.pad(image, (edge, edge, edge, edge), mode="circular")
    # conv2d correlates; each image and channel is a group, so that each meets its own kernel.
    weight = kernel.flip(-2, -1).repeat_interleave(channels, dim=0)
    rows = padded.reshape(1, batch * channels, *padded.shape[-2:])
    blurred = F.conv2d(rows, weight, groups=batch * channels)
    return blurred.reshape(batch, channels, height, width)


def configuration(case: Case) -> Config:
    """The project's default model at another size, all levels open."""
    return Config(
        model=ModelConfig(levels=list(case.levels)),
        likelihood=LikelihoodConfig(kernel_size=case.kernel_size),
    )


def objectives(config: Config, shape: tuple[int, int, int], seed: int) -> dict[str, Objective]:
    """Gaussian, blur and straightforward blur from the same initial weights."""
    torch.manual_seed(seed)
    blur = build_objective(config, shape)
    gaussian_config = replace(config, likelihood=replace(config.likelihood, term="gaussian"))
    gaussian = build_objective(gaussian_config, shape)
    gaussian.vae.load_state_dict(blur.vae.state_dict())
    straightforward = StraightforwardObjective(shape, config.model, config.likelihood)
    straightforward.load_state_dict(blur.state_dict())
    return dict(zip(TERMS, (gaussian, blur, straightforward), strict=True))


def check_equal(one: Objective, other: Objective, image: Tensor, noise: Tensor) -> float:
    """Raise AssertionError where losses differ by more than 1e-4; returns the relative difference.

    Leaves both as they were: the running σ is put back.
    """
    found = []
    for objective in (one, other):
        before = objective.term.scale.running.clone()
        with torch.no_grad():
            loss, means = objective(image, noise, beta=1.0, warm_up=False)
        objective.term.scale.running.copy_(before)
        found.append({"loss": loss} | means)
    first, second = found
    for name in first.keys() & second.keys():
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=0.0)
    return float((first["loss"] / second["loss"] - 1).abs())


def measure_case(case: Case, slices: Tensor, processes: Processes, seed: int) -> dict[str, Any]:
    """Times of whole steps in turn, for images made of `slices` (N,C,H,W) in [0,1]."""
    device = processes.device
    batch = case.gpu_batch if device.type == "cuda" else case.batch
    images = resized(slices, case.side, batch).to(device)
    config = configuration(case)
    shape = (images.shape[1], case.side, case.side)
    built = objectives(config, shape, seed)
    steps = {name: TrainingStep(o, config.training, processes) for name, o in built.items()}
    random = torch.Generator(device).manual_seed(seed)
    size = config.model.latent_size
    noise = torch.randn((batch, size), generator=random, device=device)
    difference = check_equal(built["blur"], built["straightforward"], images, noise)
    times = alternate(
        {name: partial(step, images, noise) for name, step in steps.items()},
        case.rounds,
        device,
        warm_up=3,
    )
    return {
        **asdict(case),
        "levels": describe_levels(case.levels),
        "batch": batch,
        "target": GPU_TARGET if device.type == "cuda" else case.target,
        "seconds": {name: asdict(Spread.of(values)) for name, values in times.items()},
        "ratio": {name: asdict(ratio(times, name, "gaussian")) for name in TERMS[1:]},
        "relative_difference": difference,
        "rounds": len(times["blur"]),
    }


def resized(slices: Tensor, side: int, count: int) -> Tensor:
    """`count` of (N,C,H,W) in [0,1], repeated if need be, at side x side."""
    chosen = slices[torch.arange(count) % len(slices)]
    return F.interpolate(chosen, (side, side), mode="bicubic").clamp(0.0, 1.0)


def measure_terms(
    slices: Tensor, processes: Processes, seed: int, cases: Sequence[Case] = CASES
) -> list[dict[str, Any]]:
    """Every case, with a line of progress each."""
    rows = []
    for case in cases:
        row = measure_case(case, slices, processes, seed)
        found = {name: round(spread["median"], 3) for name, spread in row["ratio"].items()}
        print(f"terms, {case.side}²: times the Gaussian step {found}", flush=True)
        rows.append(row)
    return rows
