"""Inverse problems under a decoder's prior: y = A x + noise, x from p(x|z), z from N(0,I).

The noise is Gaussian of standard deviation s in each real number of y; p(x|z) = N(decode(z), σ²Σ_z)
with Σ⁻¹ circulant, its eigenvalues λ. Two phases:

latent  minimise over z   ‖A decode(z) − y‖² / 2t²  +  ½‖z‖²,   t² = s² + σ² mean(1/λ), of each
        image over the whole spectrum: the image is
        one that the decoder can draw (Bora et al., Compressed Sensing using Generative Models,
        2017), and what it can't draw counts as noise.
image   minimise over z and x   ‖A x − y‖² / 2s²  +  (x − decode(z))ᵀ Σ⁻¹ (x − decode(z)) / 2σ²  +
        ½‖z‖²: the image may leave the decoder's range as far as the likelihood says it does (Tezcan
        et al., MR Image Reconstruction Using Deep Density Priors, IEEE TMI 2019). Given z the best
        x is linear, found by conjugate gradients; z follows the gradient at that x, which is
        the gradient of the minimum over x.

λ is that of the current z and gets no gradient: log|Σ⁻¹| belongs to every frequency, measured or
not, and a maximum over x (in place of the integral) would be pulled to kernels that promise most.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.analysis.operators import Operator
from pipeline.blur.whitening import marginal_variance
from pipeline.models.vae import Posterior

Notice = Callable[[float], None]


class Prior(Protocol):
    """What is used of a decoder package."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def scale(self) -> float: ...
    def decode(self, latent: Tensor, /) -> Tensor: ...
    def encode(self, image: Tensor, /) -> Posterior: ...
    def precision(self, latent: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class SolverSettings:
    """How long and from where both phases search."""

    latent_steps: int = 120
    image_steps: int = 100
    restarts: int = 1
    support: bool = True
    learning_rate: float = 0.05
    cg_steps: int = 4
    final_cg_steps: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Solution:
    """latent z; drawn: decode(z) after the latent phase; image: x of the image phase, in [0,1]."""

    latent: Tensor
    drawn: Tensor
    image: Tensor


# Below this the data would be believed beyond float32's rounding.
LEAST_NOISE = 1e-3
# λ of a frequency that the kernel lost is next to 0; its variance must not swamp the mean.
LEAST_PRECISION = 0.05
# Intensity above which the decoder draws tissue, and how much of σ is left far from it.
TISSUE = 0.04
OUTSIDE = 0.05


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, steps: int
) -> Tensor:
    """Solve apply(x) = right, apply symmetric and positive, for each image of a batch (B,C,H,W).

    Hestenes & Stiefel 1952. Stops after `steps`, or when every residual fell to 1e-6 of `right`.
    """

    def dot(left: Tensor, other: Tensor) -> Tensor:
        return (left * other).flatten(1).sum(dim=1)[:, None, None, None]

    solution = start
    residual = right - apply(start)
    direction, size = residual, dot(residual, residual)
    enough = 1e-12 * dot(right, right)
    for _ in range(steps):
        if bool((size <= enough).all()):
            break
        moved = apply(direction)
        length = size / dot(direction, moved).clamp_min(torch.finfo(size.dtype).tiny)
        solution = solution + length * direction
        residual = residual - length * moved
        before, size = size, dot(residual, residual)
        direction = residual + size / before.clamp_min(torch.finfo(size.dtype).tiny) * direction
    return solution


def colour(image: Tensor, precision: Tensor) -> Tensor:
    """Σ⁻¹ x: image (B,C,H,W) through its precision spectrum λ (B,1,H,W//2+1)."""
    return torch.fft.irfft2(torch.fft.rfft2(image) * precision, s=image.shape[-2:])


def support(drawn: Tensor) -> Tensor:
    """How far an image may depart from what was drawn, τ: 1 at tissue, little far from any.

    drawn (B,C,H,W) -> the same shape. Tissue is where the decoder draws more than TISSUE; around it
    τ falls over a pixel or two.
    """
    tissue = (drawn > TISSUE).to(drawn.dtype)
    pool = torch.nn.functional
    grown = pool.max_pool2d(tissue, 3, stride=1, padding=1)
    soft = pool.avg_pool2d(grown, 3, stride=1, padding=1)
    return OUTSIDE + (1 - OUTSIDE) * soft


def best_departure(
    operator: Operator,
    measurement: Tensor,
    drawn: Tensor,
    precision: Tensor,
    reach: Tensor | float,
    ratio: float,
    start: Tensor,
    steps: int,
) -> Tensor:
    """The u that minimises ‖A (decode(z) + τu) − y‖²/2s² + ‖u‖²_λ/2σ²: (B,C,H,W).

    drawn: decode(z); precision λ; reach τ; ratio s²/σ²; start: a first guess of u.
    """
    right = reach * operator.adjoint(measurement - operator.forward(drawn))

    def apply(image: Tensor) -> Tensor:
        data = operator.adjoint(operator.forward(reach * image))
        return reach * data + ratio * colour(image, precision)

    return conjugate_gradient(apply, right, start, steps)


def solve(
    prior: Prior,
    operator: Operator,
    measurement: Tensor,
    noise: float,
    guess: Tensor,
    settings: SolverSettings,
    notice: Notice = lambda _: None,
) -> Solution:
    """Both phases for a batch of measurements of one operator.

    noise: s, intensity units; guess (B,C,H,W): an image to encode as the first start, such as zero
    filling. notice: is told the share that is done. Deterministic for a seed.
    """
    sigma, noise = float(prior.scale), max(noise, LEAST_NOISE)
    total = settings.latent_steps * settings.restarts + settings.image_steps
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        notice(done / max(total, 1))

    latent = _latent_phase(prior, operator, measurement, noise, guess, settings, step)
    with torch.no_grad():
        drawn = prior.decode(latent).clamp(0, 1)
    ratio = (noise / sigma) ** 2
    latent = latent.clone().requires_grad_()
    optimiser = torch.optim.Adam([latent], lr=settings.learning_rate)
    departure = torch.zeros_like(drawn)
    for index in range(settings.image_steps):
        _cool(optimiser, settings.learning_rate, index, settings.image_steps)
        mean = prior.decode(latent)
        with torch.no_grad():
            precision, reach = prior.precision(latent), _reach(mean, settings)
            departure = best_departure(
                operator, measurement, mean, precision, reach, ratio, departure, settings.cg_steps
            )
            image = mean + reach * departure
            pull = operator.adjoint(measurement - operator.forward(image)) / noise**2
        # The gradient of the minimum over x: that of the misfit at this x, as if x moved along.
        _descend(optimiser, -(pull * mean).sum() + 0.5 * latent.square().sum())
        step()
    with torch.no_grad():
        mean, precision = prior.decode(latent), prior.precision(latent)
        reach, steps = _reach(mean, settings), settings.final_cg_steps
        departure = best_departure(
            operator, measurement, mean, precision, reach, ratio, departure, steps
        )
    return Solution(latent.detach(), drawn, (mean + reach * departure).clamp(0, 1))


def _reach(drawn: Tensor, settings: SolverSettings) -> Tensor:
    return support(drawn) if settings.support else torch.ones_like(drawn)


def _latent_phase(
    prior: Prior,
    operator: Operator,
    measurement: Tensor,
    noise: float,
    guess: Tensor,
    settings: SolverSettings,
    step: Callable[[], None],
) -> Tensor:
    """The latent of the lowest energy over all starts, each image for itself."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        first = prior.encode(guess.clamp(0, 1)).mean
        precision = prior.precision(first).clamp_min(LEAST_PRECISION)
        variance = noise**2 + marginal_variance(precision, prior.scale, guess.shape[-1])

    def energy(latent: Tensor) -> Tensor:
        misfit = (operator.forward(prior.decode(latent)) - measurement).abs().square()
        prior_energy = 0.5 * latent.square().flatten(1).sum(dim=1)
        return misfit.flatten(1).sum(dim=1) / (2 * variance) + prior_energy

    best, lowest = first, torch.full((len(first),), torch.inf)
    for restart in range(settings.restarts):
        start = first if restart == 0 else torch.randn(first.shape, generator=generator).to(first)
        latent = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([latent], lr=settings.learning_rate)
        for index in range(settings.latent_steps):
            _cool(optimiser, settings.learning_rate, index, settings.latent_steps)
            _descend(optimiser, energy(latent).sum())
            step()
        with torch.no_grad():
            found = energy(latent)
            better = found < lowest
            best = torch.where(better[:, None], latent.detach(), best)
            lowest = torch.where(better, found, lowest)
    return best


def _cool(optimiser: torch.optim.Optimizer, rate: float, index: int, steps: int) -> None:
    """A linear fall to a tenth: without it Adam circles the minimum."""
    optimiser.param_groups[0]["lr"] = rate * (1 - 0.9 * index / steps)


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
