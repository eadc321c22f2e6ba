"""An inverse problem, its solution by every method, and scores where the truth is known."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats
from torch import Tensor

from pipeline.analysis.inverse.operators import Composed, Operator, Within
from pipeline.analysis.inverse.solver import Prior, SolverSettings, solve, support
from pipeline.analysis.inverse.total_variation import best_weight, total_variation
from pipeline.analysis.inverse.wavelets import sparse_wavelets
from pipeline.metrics.fidelity import psnr, ssim

TV, WAVELETS = "total variation", "wavelets"
LATENT, IMAGE = "decoder, latent", "decoder, image"
# What is had without a decoder, each with a weight: operator, measurement, weight, start -> image.
CLASSICAL = {TV: total_variation, WAVELETS: sparse_wavelets}
Weights = dict[str, float]
METRICS = ("psnr", "ssim", "nrmse")
# What the decoder adds beyond knowing where the head is shows against this.
TV_WITHIN = "TV, decoder's support"


@dataclass(frozen=True)
class Problem:
    """Slices of one person that were measured alike.

    operator A; measurement y; noise s, intensity units; simple (B,C,H,W): what is had without a
    prior; reference (B,C,H,W) in [0,1], where the truth is known; mask (H,W) of k-space.
    """

    operator: Operator
    measurement: Tensor
    noise: float
    simple: Tensor
    reference: Tensor | None = None
    mask: Tensor | None = None


# Images (B,C,H,W) in [0,1] and their subject's number, which decides mask and noise -> a Problem.
Degrade = Callable[[Tensor, int], Problem]


@dataclass
class Case:
    """A person's problem, solved: images (B,C,H,W) in [0,1] by method."""

    name: str
    problem: Problem
    images: dict[str, Tensor]
    deviation: Tensor | None = None
    """Standard deviation of each pixel of IMAGE over draws from the posterior, (B,C,H,W)."""
    coverage: float | None = None
    """Share of the head's pixels within the 90% intervals of those draws about IMAGE."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def solve_case(
    name: str,
    problem: Problem,
    simple_name: str,
    prior: Prior,
    weights: Weights,
    settings: SolverSettings,
    notice: Callable[[float], None],
) -> Case:
    """One problem by every method, and scores, means over slices, where there is a reference."""
    images = {simple_name: problem.simple.clamp(0, 1)}
    for method, solver in CLASSICAL.items():
        images[method] = solver(
            problem.operator, problem.measurement, weights[method], problem.simple
        )
    found = solve(
        prior,
        problem.operator,
        problem.measurement,
        problem.noise,
        problem.simple,
        settings,
        notice,
    )
    within = (support(found.drawn) > 0.5).to(found.drawn.dtype)
    images[TV_WITHIN] = within * total_variation(
        Composed(Within(within), problem.operator), problem.measurement, weights[TV], problem.simple
    )
    images |= {LATENT: found.drawn, IMAGE: found.image}
    case = Case(name, problem, images)
    if found.samples is not None:
        case.deviation = found.samples.std(dim=0)
        if problem.reference is not None:
            case.coverage = covered(
                problem.reference, found.image, case.deviation, len(found.samples)
            )
    if problem.reference is not None:
        case.scores = {method: _scores(problem.reference, x) for method, x in images.items()}
    return case


def _scores(reference: Tensor, image: Tensor) -> dict[str, float]:
    error, size = (x.square().sum(dim=(1, 2, 3)).sqrt() for x in (reference - image, reference))
    values = {
        "psnr": psnr(reference, image),
        "ssim": ssim(reference, image),
        "nrmse": error / size,
    }
    return {name: float(value.mean()) for name, value in values.items()}


def covered(reference: Tensor, image: Tensor, deviation: Tensor, samples: int) -> float:
    """Share of the head's pixels within their 90% intervals, x ± t·s·√(1 + 1/n).

    reference, image, deviation (B,C,H,W); s of n samples, so t is the 0.95 quantile of Student's t
    with n − 1 degrees of freedom. The head is where the reference is above 0.
    """
    width = float(stats.t.ppf(0.95, samples - 1)) * math.sqrt(1 + 1 / samples)
    inside = (reference - image).abs() <= width * deviation
    return float(inside[reference > 0].double().mean())


def choose_weight(
    method: str, problems: Sequence[Problem], notice: Callable[[float], None]
) -> float:
    """The weight of a CLASSICAL method with the highest SSIM over problems whose truth is known."""

    def score(weight: float) -> float:
        found = []
        for p in problems:
            assert p.reference is not None
            image = CLASSICAL[method](p.operator, p.measurement, weight, p.simple)
            found.append(_scores(p.reference, image)["ssim"])
        return float(np.mean(found))

    return best_weight(score, notice)
