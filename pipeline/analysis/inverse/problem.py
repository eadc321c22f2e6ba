"""An inverse problem, its solution by every method, and scores where there is a reference."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pipeline.analysis.inverse.operators import Composed, Operator, Within
from pipeline.analysis.inverse.solver import Prior, SolverSettings, solve, support
from pipeline.analysis.inverse.total_variation import best_weight, solve_total_variation
from pipeline.analysis.inverse.wavelets import solve_wavelets
from pipeline.analysis.results import Parts
from pipeline.metrics.fidelity import psnr, ssim

TV, WAVELETS = "total variation", "wavelets"
LATENT, IMAGE = "decoder, latent", "decoder, image"
# Methods without a decoder, each with a weight: operator, measurement, weight, start -> image.
CLASSICAL = {TV: solve_total_variation, WAVELETS: solve_wavelets}
Weights = dict[str, float]
METRICS = ("psnr", "ssim", "nrmse")
# Pixels below which torch works on one thread, but for its Fourier transforms.
SMALL = 32768
# Shows what the decoder adds beyond the outline of the head.
TV_WITHIN = "TV, decoder's support"


@dataclass(frozen=True)
class Problem:
    """Slices of one subject that were measured alike.

    operator A; measurement y; noise s, intensity units; simple (B,C,H,W): the image without a
    prior; reference (B,C,H,W) in [0,1], the true image where there is one; mask (H,W) of k-space.
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
    """A subject's problem, solved: images (B,C,H,W) in [0,1] by method."""

    name: str
    problem: Problem
    images: dict[str, Tensor]
    deviation: Tensor | None = None
    """Standard deviation of each pixel of IMAGE over draws from the posterior, (B,C,H,W)."""
    coverage: float | None = None
    """Share of the head's pixels within the 90% intervals of those draws about IMAGE."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    family: str = ""


def solve_case(
    name: str,
    problem: Problem,
    simple_name: str,
    prior: Prior,
    weights: Weights,
    settings: SolverSettings,
    progress: Callable[[float], None],
) -> Case:
    """Solve a problem by every method.

    Args:
        name: of the subject.
        problem: what was measured.
        simple_name: of the method without a prior, whose image `problem.simple` is.
        prior: the decoder package.
        weights: of the CLASSICAL methods.
        settings: of the search under the prior.
        progress: gets the share that is done.

    Returns:
        Images by method and, where there is a reference, their scores, means over slices.
    """
    images = {simple_name: problem.simple.clamp(0, 1)}
    for method in CLASSICAL:
        images[method] = solve_classical(method, problem, weights[method])
    found = solve(
        prior,
        problem.operator,
        problem.measurement,
        problem.noise,
        problem.simple,
        settings,
        progress,
    )
    within = (support(found.drawn) > 0.5).to(found.drawn.dtype)
    inside = replace(problem, operator=Composed(Within(within), problem.operator))
    images[TV_WITHIN] = within * solve_classical(TV, inside, weights[TV])
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


def solve_classical(method: str, problem: Problem, weight: float) -> Tensor:
    """The image (B,C,H,W) of one of the CLASSICAL methods."""
    with _threads_for(problem.simple):
        return CLASSICAL[method](problem.operator, problem.measurement, weight, problem.simple)


@contextmanager
def _threads_for(images: Tensor) -> Iterator[None]:
    """One thread where the images are small.

    Hundreds of tiny Fourier transforms gain nothing by two, and beside another program each waits
    for the slower one (4 s became 19 s).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if images.numel() < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    method: str, problems: Sequence[Problem], parts: Parts, progress: Callable[[float], None]
) -> float:
    """The weight of a CLASSICAL method with the highest SSIM over problems with references.

    The SSIM of each weight that is tried is kept in `parts`.
    """

    def score(weight: float) -> float:
        found = []
        for p in problems:
            assert p.reference is not None
            found.append(_scores(p.reference, solve_classical(method, p, weight))["ssim"])
        return float(np.mean(found))

    def kept(weight: float) -> float:
        return float(parts.part(f"{method}, weight {weight!r}", lambda: score(weight)))

    return best_weight(kept, progress)
