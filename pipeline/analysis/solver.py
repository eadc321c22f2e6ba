"""Inverse problems under a decoder's prior: y = A x + noise, x from p(x|z), z from N(0,I).

The noise is Gaussian of standard deviation s in each real number of y; p(x|z) = N(decode(z), S C S)
is the decoder's law (`losses.law`): S = diag of a deviation a pixel or one number, C⁻¹ circulant,
its eigenvalues λ. Two phases:

latent  minimise over z   ‖A decode(z) − y‖² / 2t²  +  ½‖z‖²,   t² = s² + the law's mean variance a
        pixel, of each image: the image is one that the decoder can draw (Bora et al., Compressed
        Sensing using Generative Models, 2017), and what it can't draw counts as noise.
image   minimise over z and u, x = decode(z) + S u,   ‖A x − y‖² / 2s²  +  uᵀ C⁻¹ u / 2  +  ½‖z‖²:
        the image may leave the decoder's range as far as the law allows (Tezcan et al., MR
        Image Reconstruction Using Deep Density Priors, IEEE TMI 2019). Given z the best u is
        linear, found by conjugate gradients; z follows the gradient at that x, which is the
        gradient of the minimum over u.

S and λ are those of the current z and get no gradient: log|S C S| belongs to every pixel, measured
or not, and a maximum over x (in place of the integral) would be pulled to z that promise most.

Draws from the posterior p(x,z|y) come from the image phase of perturbed problems (perturb and MAP,
Papandreou & Yuille 2010; randomize-then-optimize, Bardsley et al. 2014): y with noise added once
more, u about a draw from N(0,C), z about a draw from N(0,I). Exact where decode is linear.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pipeline.analysis.operators import Operator, complex_noise
from pipeline.blur.likelihood import sample_residual
from pipeline.losses.law import GaussianLaw, Law
from pipeline.models.vae import Posterior

Progress = Callable[[float], None]

# Less noise than this is below float32's rounding of the misfit.
LEAST_NOISE = 1e-3
# Where the kernel passes nothing λ is almost 0: such variances must not dominate the mean.
LEAST_PRECISION = 0.05


class Prior(Protocol):
    """The parts of a decoder package that the solver uses."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    def decode(self, latent: Tensor, /) -> Tensor: ...
    def encode(self, image: Tensor, /) -> Posterior: ...
    def law(self, latent: Tensor, /, decoded: Tensor | None = None) -> Law: ...


@dataclass(frozen=True)
class SolverSettings:
    """How long both phases search, and for what.

    Example:
        >>> SolverSettings(samples=8).latent_steps
        120
    """

    latent_steps: int = 120
    image_steps: int = 100
    learning_rate: float = 0.05
    cg_steps: int = 4
    final_cg_steps: int = 100
    seed: int = 0
    samples: int = 0
    """Draws from the posterior."""


@dataclass(frozen=True)
class Solution:
    """latent z; drawn: decode(z) after the latent phase; image: x of the image phase, in [0,1].

    samples: draws from the posterior, where there are any; they may leave [0,1].
    """

    latent: Float[Tensor, "B L"]
    drawn: Float[Tensor, "B C H W"]
    image: Float[Tensor, "B C H W"]
    samples: Float[Tensor, "n B C H W"] | None = None


def solve(
    prior: Prior,
    operator: Operator,
    measurement: Shaped[Tensor, "..."],
    noise: float,
    guess: Float[Tensor, "B C H W"],
    settings: SolverSettings,
    progress: Progress = lambda _: None,
) -> Solution:
    """Both phases for a batch of measurements of one operator, and draws from the posterior.

    The same seed gives the same solution.

    Args:
        prior: a decoder package with a Gaussian law of its residuals.
        operator: A.
        measurement: y, what A gives of images (B,C,H,W).
        noise: s, intensity units; less than 0.001 counts as 0.001.
        guess: (B,C,H,W), encoded as the start, such as zero filling.
        settings: steps, draws, seed.
        progress: gets the share that is done.

    Raises:
        ValueError: the law is not Gaussian.

    Example:
        >>> image = torch.rand(1, 1, 32, 32)
        >>> scanner = MaskedFourier(cartesian_mask((32, 32), acceleration=2))
        >>> measured = scanner.forward(image)
        >>> quick = SolverSettings(latent_steps=2, image_steps=2)
        >>> found = solve(
        ...     open_package("demo"), scanner, measured, 0.01, scanner.adjoint(measured), quick
        ... )
        >>> found.image.shape
        torch.Size([1, 1, 32, 32])
    """
    noise = max(noise, LEAST_NOISE)
    total = settings.latent_steps + settings.image_steps * (1 + bool(settings.samples))
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done / max(total, 1))

    latent = _latent_phase(prior, operator, measurement, noise, guess, settings, step)
    with torch.no_grad():
        drawn = prior.decode(latent).clamp(0, 1)
    search = _ImagePhase(prior, operator, noise, settings, step)
    latent, image = search(latent, measurement, torch.zeros_like(drawn), torch.zeros_like(latent))
    samples = _draws(search, latent, measurement) if settings.samples else None
    return Solution(latent, drawn, image.clamp(0, 1), samples)


def _latent_phase(
    prior: Prior,
    operator: Operator,
    measurement: Tensor,
    noise: float,
    guess: Tensor,
    settings: SolverSettings,
    step: Callable[[], None],
) -> Tensor:
    """The latent of the lowest energy near the encoder's of the guess, each image for itself."""
    with torch.no_grad():
        first = prior.encode(guess.clamp(0, 1)).mean
        law = gaussian(prior.law(first))
        law = GaussianLaw(law.deviation, law.precision.clamp_min(LEAST_PRECISION))
        variance = law.standard_deviation(guess.shape).square().mean(dim=(1, 2, 3)) + noise**2

    def energy(latent: Tensor) -> Tensor:
        misfit = (operator.forward(prior.decode(latent)) - measurement).abs().square()
        prior_energy = 0.5 * latent.square().flatten(1).sum(dim=1)
        return misfit.flatten(1).sum(dim=1) / (2 * variance) + prior_energy

    latent = first.clone().requires_grad_()
    optimiser = torch.optim.Adam([latent], lr=settings.learning_rate)
    for index in range(settings.latent_steps):
        _cool(optimiser, settings.learning_rate, index, settings.latent_steps)
        _descend(optimiser, energy(latent).sum())
        step()
    return latent.detach()


@dataclass(frozen=True)
class _ImagePhase:
    """The search over z and u about their means in the prior: 0, or a draw for a posterior's."""

    prior: Prior
    operator: Operator
    noise: float
    settings: SolverSettings
    step: Callable[[], None]

    def __call__(
        self, latent: Tensor, measurement: Tensor, departure: Tensor, centre: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of starts (B,L): z, x. departure (B,C,H,W), centre (B,L): the means of u and z."""
        settings = self.settings
        latent = latent.clone().requires_grad_()
        optimiser = torch.optim.Adam([latent], lr=settings.learning_rate)
        best = torch.zeros_like(departure)

        def image_at(mean: Tensor, steps: int) -> tuple[Tensor, Tensor]:
            """u and x for a z whose decoded image is `mean`."""
            law = gaussian(self.prior.law(latent, decoded=mean))
            base = mean + law.deviation * departure
            moved = best_departure(self.operator, measurement, base, law, self.noise, best, steps)
            return moved, base + law.deviation * moved

        for index in range(settings.image_steps):
            _cool(optimiser, settings.learning_rate, index, settings.image_steps)
            mean = self.prior.decode(latent)
            with torch.no_grad():
                best, image = image_at(mean, settings.cg_steps)
                misfit = measurement - self.operator.forward(image)
                pull = self.operator.adjoint(misfit) / self.noise**2
            # The gradient of the minimum over u: that of the misfit at this x, as if x moved along.
            _descend(optimiser, -(pull * mean).sum() + 0.5 * (latent - centre).square().sum())
            self.step()
        with torch.no_grad():
            _, image = image_at(self.prior.decode(latent), settings.final_cg_steps)
        return latent.detach(), image


@torch.no_grad()
def _draws(search: _ImagePhase, latent: Tensor, measurement: Tensor) -> Tensor:
    """(n,B,C,H,W): each the solution of a perturbed problem; all are searched for at once."""
    count, batch = search.settings.samples, len(latent)
    generator = torch.Generator().manual_seed(search.settings.seed + 1)
    starts = latent.repeat(count, 1)
    measured = measurement.repeat(count, *(1,) * (measurement.ndim - 1))
    measured = measured + complex_noise(measured, search.noise, generator)
    law = gaussian(search.prior.law(latent))
    channels, height, width = search.prior.image_shape
    precision = law.precision.expand(batch, -1, -1, -1).repeat(count, 1, 1, 1)
    departure = sample_residual(precision, 1.0, channels, width, generator)
    centre = torch.randn(starts.shape, generator=generator, dtype=starts.dtype)
    with torch.enable_grad():  # without data, the start is the solution
        _, images = search(starts + centre, measured, departure, centre)
    return images.reshape(count, batch, channels, height, width)


def best_departure(
    operator: Operator,
    measurement: Tensor,
    drawn: Tensor,
    law: GaussianLaw,
    noise: float,
    start: Tensor,
    steps: int,
) -> Tensor:
    """The u that minimises ‖A (drawn + S u) − y‖²/2s² + uᵀ C⁻¹ u / 2: (B,C,H,W).

    drawn (B,C,H,W); law: S and the precision λ of C⁻¹; noise s; start: a first guess of u.
    """
    reach = law.deviation
    right = reach * operator.adjoint(measurement - operator.forward(drawn))

    def apply(image: Tensor) -> Tensor:
        data = operator.adjoint(operator.forward(reach * image))
        return reach * data + noise**2 * apply_precision(image, law.precision)

    return conjugate_gradient(apply, right, start, steps)


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


def apply_precision(image: Tensor, precision: Tensor) -> Tensor:
    """Σ⁻¹ x: image (B,C,H,W) through its precision spectrum λ (B,1,H,W//2+1)."""
    return torch.fft.irfft2(torch.fft.rfft2(image) * precision, s=image.shape[-2:])


def gaussian(law: Law) -> GaussianLaw:
    """The law itself. Raises ValueError where it is not Gaussian: then u is not linear in y."""
    if not isinstance(law, GaussianLaw):
        raise ValueError("inverse problems need a Gaussian law: use the fitted one")
    return law


def _cool(optimiser: torch.optim.Optimizer, rate: float, index: int, steps: int) -> None:
    """A linear fall to a tenth: without it Adam circles the minimum."""
    optimiser.param_groups[0]["lr"] = rate * (1 - 0.9 * index / steps)


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
