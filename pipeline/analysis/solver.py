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
    """Steps of both phases, and how many draws from the posterior are made.

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
    progress: Callable[[float], None] = lambda _: None,
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
        >>> solution = solve(
        ...     open_package("demo"), scanner, measured, 0.01, scanner.adjoint(measured), quick
        ... )
        >>> solution.image.shape
        torch.Size([1, 1, 32, 32])
    """
    search = _Search(prior, operator, max(noise, LEAST_NOISE), settings, progress)
    latent = search.latent_phase(measurement, guess)
    with torch.no_grad():
        drawn = prior.decode(latent).clamp(0, 1)
    nothing = torch.zeros_like(drawn), torch.zeros_like(latent)
    latent, image = search.image_phase(latent, measurement, *nothing)
    samples = search.draws(latent, measurement) if settings.samples else None
    return Solution(latent, drawn, image.clamp(0, 1), samples)


@dataclass
class _Search:
    """Both phases, and draws."""

    prior: Prior
    operator: Operator
    noise: float
    settings: SolverSettings
    progress: Callable[[float], None]
    done: int = 0

    def latent_phase(self, measurement: Tensor, guess: Tensor) -> Tensor:
        """The latent of the lowest energy near the encoder's of the guess."""
        with torch.no_grad():
            start = self.prior.encode(guess.clamp(0, 1)).mean
            law = gaussian(self.prior.law(start))
            law = GaussianLaw(law.deviation, law.precision.clamp_min(LEAST_PRECISION))
            variance = law.standard_deviation(guess.shape).square().mean(dim=(1, 2, 3))
            variance = variance + self.noise**2

        def energy(latent: Tensor) -> Tensor:
            misfit = self.operator.forward(self.prior.decode(latent)) - measurement
            size = misfit.abs().square().flatten(1).sum(dim=1)
            return (size / (2 * variance)).sum() + 0.5 * latent.square().sum()

        return self._descend(start, energy, self.settings.latent_steps)

    def image_phase(
        self, latent: Tensor, measurement: Tensor, departure: Tensor, centre: Tensor
    ) -> tuple[Tensor, Tensor]:
        """z (B,L) from a start, and x; departure (B,C,H,W), centre (B,L): the prior's means of u
        and z, which are 0, or draws for a draw from the posterior."""
        operator, best = self.operator, torch.zeros_like(departure)

        @torch.no_grad()
        def image_at(latent: Tensor, mean: Tensor, steps: int) -> tuple[Tensor, Tensor]:
            """u and x for a z whose decoded image is `mean`.

            u minimises ‖A (base + S u) − y‖²/2s² + uᵀ C⁻¹ u / 2.
            """
            law = gaussian(self.prior.law(latent, decoded=mean))
            reach, base = law.deviation, mean + law.deviation * departure
            right = reach * operator.adjoint(measurement - operator.forward(base))

            def apply(image: Tensor) -> Tensor:
                data = operator.adjoint(operator.forward(reach * image))
                return reach * data + self.noise**2 * apply_precision(image, law.precision)

            moved = conjugate_gradient(apply, right, best, steps)
            return moved, base + reach * moved

        def energy(latent: Tensor) -> Tensor:
            nonlocal best
            mean = self.prior.decode(latent)
            best, image = image_at(latent, mean, self.settings.cg_steps)
            with torch.no_grad():
                pull = operator.adjoint(measurement - operator.forward(image)) / self.noise**2
            # The gradient of the minimum over u: that of the misfit at this x, as if x moved along.
            return -(pull * mean).sum() + 0.5 * (latent - centre).square().sum()

        latent = self._descend(latent, energy, self.settings.image_steps)
        with torch.no_grad():
            mean = self.prior.decode(latent)
        return latent, image_at(latent, mean, self.settings.final_cg_steps)[1]

    def draws(self, latent: Tensor, measurement: Tensor) -> Tensor:
        """(n,B,C,H,W): each the solution of a perturbed problem; all are searched for at once."""
        count, batch = self.settings.samples, len(latent)
        generator = torch.Generator().manual_seed(self.settings.seed + 1)
        measured = measurement.repeat(count, *(1,) * (measurement.ndim - 1))
        measured = measured + complex_noise(measured, self.noise, generator)
        channels, height, width = self.prior.image_shape
        with torch.no_grad():
            precision = gaussian(self.prior.law(latent)).precision
        precision = precision.expand(batch, -1, -1, -1).repeat(count, 1, 1, 1)
        departure = sample_residual(precision, 1.0, channels, width, generator)
        centre = torch.randn((count * batch, latent.shape[1]), generator=generator).to(latent)
        start = latent.repeat(count, 1) + centre  # without data, it is the solution
        _, images = self.image_phase(start, measured, departure, centre)
        return images.reshape(count, batch, channels, height, width)

    def _descend(self, latent: Tensor, energy: Callable[[Tensor], Tensor], steps: int) -> Tensor:
        latent, settings = latent.clone().requires_grad_(), self.settings
        total = settings.latent_steps + settings.image_steps * (1 + bool(settings.samples))
        optimiser = torch.optim.Adam([latent])
        for index in range(steps):
            # A linear fall to a tenth: without it Adam circles the minimum.
            rate = settings.learning_rate * (1 - 0.9 * index / steps)
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad()
            energy(latent).backward()
            optimiser.step()
            self.done += 1
            self.progress(self.done / total)
        return latent.detach()


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, steps: int
) -> Tensor:
    """Solve apply(x) = right, apply symmetric and positive, for each image of a batch (B,C,H,W).

    Hestenes & Stiefel 1952. Stops after `steps`, or when every residual fell to 1e-6 of `right`.
    """

    def dot(left: Tensor, other: Tensor) -> Tensor:
        return (left * other).flatten(1).sum(dim=1)[:, None, None, None]

    solution, residual = start, right - apply(start)
    direction, size = residual, dot(residual, residual)
    enough, tiny = 1e-12 * dot(right, right), torch.finfo(right.dtype).tiny
    for _ in range(steps):
        if bool((size <= enough).all()):
            break
        moved = apply(direction)
        length = size / dot(direction, moved).clamp_min(tiny)
        solution = solution + length * direction
        residual = residual - length * moved
        before, size = size, dot(residual, residual)
        direction = residual + size / before.clamp_min(tiny) * direction
    return solution


def apply_precision(image: Tensor, precision: Tensor) -> Tensor:
    """Σ⁻¹ x: image (B,C,H,W) through its precision spectrum λ (B,1,H,W//2+1)."""
    return torch.fft.irfft2(torch.fft.rfft2(image) * precision, s=image.shape[-2:])


def gaussian(law: Law) -> GaussianLaw:
    """The law itself. Raises ValueError where it is not Gaussian: then u is not linear in y."""
    if not isinstance(law, GaussianLaw):
        raise ValueError("inverse problems need a Gaussian law: use the fitted one")
    return law
