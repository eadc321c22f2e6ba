"""The solver finds the posterior's maximum: against dense algebra where the decoder is linear."""

import pytest
import torch
from torch import Tensor

from pipeline.analysis.inverse.masks import cartesian_mask
from pipeline.analysis.inverse.operators import MaskedFourier
from pipeline.analysis.inverse.solver import (
    SolverSettings,
    apply_precision,
    best_departure,
    conjugate_gradient,
    gaussian,
    solve,
    support,
)
from pipeline.blur.spectrum import precision, transfer_function
from pipeline.losses.law import GaussianLaw, LaplaceLaw
from pipeline.models.vae import Posterior

SIDE, LATENTS = 8, 3


class LinearPrior:
    """decode(z) = ½ + W z, and one law for all z: everything is Gaussian."""

    image_shape = (1, SIDE, SIDE)

    def __init__(self, deviation: float | Tensor = 0.1) -> None:
        self.deviation = torch.as_tensor(deviation, dtype=torch.float64)
        generator = torch.Generator().manual_seed(3)
        shape = (SIDE * SIDE, LATENTS)
        self.matrix = 0.03 * torch.randn(shape, generator=generator, dtype=torch.float64)
        kernel = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
        kernel[..., 1, :], kernel[..., :, 1], kernel[..., 1, 1] = 0.1, 0.1, 0.6
        self.spectrum = precision(transfer_function(kernel, (SIDE, SIDE)), 0.025)

    def decode(self, latent: Tensor) -> Tensor:
        return 0.5 + (latent @ self.matrix.T).reshape(-1, 1, SIDE, SIDE)

    def encode(self, image: Tensor) -> Posterior:
        zeros = torch.zeros(len(image), LATENTS, dtype=torch.float64)
        return Posterior(zeros, zeros)

    def law(self, latent: Tensor, decoded: Tensor | None = None) -> GaussianLaw:
        return GaussianLaw(self.deviation, self.spectrum)

    def inverse(self) -> Tensor:
        """(S C S)⁻¹ as a matrix."""
        return _dense(
            lambda x: apply_precision(x / self.deviation, self.spectrum) / self.deviation, SIDE
        )


def _map() -> Tensor:
    """Deviations of 0.03 to 0.2, (1,1,SIDE,SIDE)."""
    generator = torch.Generator().manual_seed(5)
    shape = (1, 1, SIDE, SIDE)
    return 0.03 + 0.17 * torch.rand(shape, generator=generator, dtype=torch.float64)


LAWS = pytest.mark.parametrize("deviation", [0.1, _map()], ids=["one scale", "a scale a pixel"])


def _dense(function, side: int) -> Tensor:
    """The matrix of a map of images, column by column; complex rows as two real ones."""
    images = torch.eye(side * side, dtype=torch.float64).reshape(-1, 1, side, side)
    columns = function(images).flatten(1)
    if columns.is_complex():
        columns = torch.cat([columns.real, columns.imag], dim=1)
    return columns.T


def _joint(prior: LinearPrior, forward: Tensor, noise: float) -> Tensor:
    """The matrix of ‖Ax‖²/2s² + (x−Wz)ᵀP(x−Wz)/2 + ‖z‖²/2 over (x, z), P = (S C S)⁻¹."""
    inverse = prior.inverse()
    top = torch.cat([forward.T @ forward / noise**2 + inverse, -inverse @ prior.matrix], dim=1)
    gram = prior.matrix.T @ inverse @ prior.matrix + torch.eye(LATENTS, dtype=torch.float64)
    return torch.cat([top, torch.cat([-prior.matrix.T @ inverse, gram], dim=1)])


@LAWS
def test_the_image_phase_finds_the_joint_maximum(deviation: float | Tensor) -> None:
    prior, noise = LinearPrior(deviation), 0.05
    operator = MaskedFourier(cartesian_mask((SIDE, SIDE), 2, 0.2).double())
    truth = prior.decode(torch.randn(2, LATENTS, dtype=torch.float64))
    truth = truth + 0.03 * torch.randn(truth.shape, dtype=torch.float64)
    measured = operator.forward(truth)
    settings = SolverSettings(latent_steps=50, image_steps=800, learning_rate=0.05, cg_steps=20)
    found = solve(prior, operator, measured, noise, truth, settings)

    forward, inverse = _dense(operator.forward, SIDE), prior.inverse()
    flat = torch.cat([measured.real.flatten(1), measured.imag.flatten(1)], dim=1)
    half = torch.full((SIDE * SIDE,), 0.5, dtype=torch.float64)
    right = torch.cat(
        [
            flat @ forward / noise**2 + inverse @ half,
            -(inverse @ half @ prior.matrix).expand(2, -1),
        ],
        dim=1,
    )
    expected = torch.linalg.solve(_joint(prior, forward, noise), right.T).T
    torch.testing.assert_close(
        found.image.flatten(1), expected[:, : SIDE * SIDE], atol=2e-4, rtol=0
    )
    torch.testing.assert_close(found.latent, expected[:, SIDE * SIDE :], atol=2e-2, rtol=0)


@LAWS
def test_draws_have_the_posteriors_mean_and_deviation(deviation: float | Tensor) -> None:
    prior, noise, count = LinearPrior(deviation), 0.05, 400
    operator = MaskedFourier(cartesian_mask((SIDE, SIDE), 2, 0.2).double())
    truth = prior.decode(torch.ones(1, LATENTS, dtype=torch.float64))
    settings = SolverSettings(
        latent_steps=50, image_steps=300, learning_rate=0.05, cg_steps=10, samples=count
    )
    found = solve(prior, operator, operator.forward(truth), noise, truth, settings)
    assert found.samples is not None and found.samples.shape == (count, 1, 1, SIDE, SIDE)
    forward = _dense(operator.forward, SIDE)
    covariance = torch.linalg.inv(_joint(prior, forward, noise))[: SIDE * SIDE, : SIDE * SIDE]
    expected = covariance.diagonal().sqrt()
    drawn = found.samples.reshape(count, -1)
    assert (drawn.std(dim=0) / expected).mean().item() == pytest.approx(1, abs=0.03)
    assert ((drawn.std(dim=0) / expected - 1).abs() < 0.2).all()
    off = (drawn.mean(dim=0) - found.image.flatten()) / expected
    assert off.square().mean().item() < 3 / count


def test_a_law_that_is_no_gaussian_is_refused() -> None:
    with pytest.raises(ValueError, match="Gaussian"):
        gaussian(LaplaceLaw(torch.tensor(0.1)))


def test_conjugate_gradients_solve_each_image_for_itself() -> None:
    root = torch.randn(9, 9, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(9, dtype=torch.float64)
    right = (
        torch.randn(3, 1, 3, 3, dtype=torch.float64)
        * torch.tensor([1.0, 1e3, 1e-3])[:, None, None, None].double()
    )

    def apply(image: Tensor) -> Tensor:
        return (image.flatten(1) @ matrix).reshape(image.shape)

    found = conjugate_gradient(apply, right, torch.zeros_like(right), 50)
    expected = torch.linalg.solve(matrix, right.flatten(1).T).T.reshape(right.shape)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)


def test_what_was_not_measured_stays_as_it_was_drawn() -> None:
    """Under white residuals the measured frequencies move, by 1/(1 + s²), and no others."""
    shape = (8, 9)
    operator = MaskedFourier(cartesian_mask(shape, 3, 0.1, "equispaced").double())
    drawn = torch.rand(1, 1, *shape, dtype=torch.float64)
    measured = operator.forward(torch.rand(1, 1, *shape, dtype=torch.float64))
    white = torch.ones(1, 1, 8, 5, dtype=torch.float64)
    start = torch.zeros_like(drawn)
    moved = best_departure(operator, measured, drawn, white, torch.ones(()), 0.5, start, 100)
    gradient = operator.adjoint(operator.forward(drawn + moved) - measured) + 0.25 * moved
    assert gradient.abs().max() < 1e-6
    misfit = operator.forward(drawn + moved) - measured
    assert misfit.abs().sum() < (operator.forward(drawn) - measured).abs().sum()


def test_the_seed_decides_and_restarts_of_one_minimum_agree() -> None:
    prior = LinearPrior()
    operator = MaskedFourier(torch.ones(SIDE, SIDE, dtype=torch.float64))
    measured = operator.forward(prior.decode(torch.ones(1, LATENTS, dtype=torch.float64)))
    settings = SolverSettings(latent_steps=300, image_steps=2, restarts=3)
    guess = torch.full((1, 1, SIDE, SIDE), 0.5, dtype=torch.float64)
    first = solve(prior, operator, measured, 0.05, guess, settings)
    again = solve(prior, operator, measured, 0.05, guess, settings)
    assert torch.equal(first.image, again.image)
    one = SolverSettings(latent_steps=300, image_steps=2, restarts=1)
    alone = solve(prior, operator, measured, 0.05, guess, one)
    torch.testing.assert_close(first.drawn, alone.drawn, atol=1e-3, rtol=0)
    assert first.image.aminmax().min >= 0 and first.image.aminmax().max <= 1


class UnequalPrior(LinearPrior):
    """The spectrum depends on the image."""

    def encode(self, image: Tensor) -> Posterior:
        mean = 10 * (image.flatten(1) - 0.5) @ self.matrix
        return Posterior(mean, torch.zeros_like(mean))

    def law(self, latent: Tensor, decoded: Tensor | None = None) -> GaussianLaw:
        size = latent.detach().square().sum(dim=1).reshape(-1, 1, 1, 1)
        return GaussianLaw(self.deviation, self.spectrum / (1 + 50 * size))


def test_an_image_is_solved_alike_whatever_is_beside_it() -> None:
    prior, settings = UnequalPrior(), SolverSettings(latent_steps=20, image_steps=0)
    operator = MaskedFourier(cartesian_mask((SIDE, SIDE), 2, 0.25).double())
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(2, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    measured = operator.forward(images)
    together = solve(prior, operator, measured, 0.05, images, settings).latent
    for k in range(2):
        alone = solve(prior, operator, measured[[k]], 0.05, images[[k]], settings).latent
        torch.testing.assert_close(together[[k]], alone)


def test_the_support_is_the_tissue_and_a_rim() -> None:
    drawn = torch.zeros(1, 1, 15, 15)
    drawn[..., 5:10, 5:10] = 0.5
    reach = support(drawn)
    assert (reach[..., 5:10, 5:10] == 1).all()
    assert reach[..., :3, :].max() == pytest.approx(0.05)
    assert (reach >= 0.05).all() and (reach <= 1).all()
