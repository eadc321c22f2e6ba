"""The solver finds the posterior's maximum: against dense algebra where the decoder is linear."""

import pytest
import torch
from torch import Tensor

from pipeline.analysis.operators import MaskedFourier, cartesian_mask
from pipeline.analysis.solver import (
    SolverSettings,
    apply_precision,
    conjugate_gradient,
    gaussian,
    solve,
)
from pipeline.blur.spectrum import precision, transfer_function
from pipeline.losses.law import GaussianLaw, LaplaceLaw
from pipeline.models.vae import Posterior

SIDE, LATENTS, NOISE = 8, 3, 0.05


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
        return _dense(lambda x: apply_precision(x / self.deviation, self.spectrum) / self.deviation)


class UnequalPrior(LinearPrior):
    """The spectrum depends on the image."""

    def encode(self, image: Tensor) -> Posterior:
        mean = 10 * (image.flatten(1) - 0.5) @ self.matrix
        return Posterior(mean, torch.zeros_like(mean))

    def law(self, latent: Tensor, decoded: Tensor | None = None) -> GaussianLaw:
        size = latent.detach().square().sum(dim=1).reshape(-1, 1, 1, 1)
        return GaussianLaw(self.deviation, self.spectrum / (1 + 50 * size))


def _map() -> Tensor:
    """Deviations of 0.03 to 0.2, (1,1,SIDE,SIDE)."""
    generator = torch.Generator().manual_seed(5)
    return 0.03 + 0.17 * torch.rand((1, 1, SIDE, SIDE), generator=generator, dtype=torch.float64)


def _dense(function) -> Tensor:
    """The matrix of a map of images, column by column; complex rows as two real ones."""
    images = torch.eye(SIDE * SIDE, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)
    columns = function(images).flatten(1)
    if columns.is_complex():
        columns = torch.cat([columns.real, columns.imag], dim=1)
    return columns.T


@pytest.mark.parametrize("deviation", [0.1, _map()], ids=["one scale", "a scale a pixel"])
def test_image_and_draws_are_the_posterior_s_maximum_mean_and_deviation(
    deviation: float | Tensor,
) -> None:
    prior, count = LinearPrior(deviation), 200
    operator = MaskedFourier(cartesian_mask((SIDE, SIDE), 2, 0.2).double())
    truth = prior.decode(torch.randn(1, LATENTS, dtype=torch.float64))
    measured = operator.forward(truth + 0.03 * torch.randn(truth.shape, dtype=torch.float64))
    settings = SolverSettings(latent_steps=50, image_steps=300, cg_steps=10, samples=count)
    solution = solve(prior, operator, measured, NOISE, truth, settings)

    # The matrix of ‖Ax‖²/2s² + (x−Wz)ᵀP(x−Wz)/2 + ‖z‖²/2 over (x, z), P = (S C S)⁻¹.
    forward, inverse = _dense(operator.forward), prior.inverse()
    top = torch.cat([forward.T @ forward / NOISE**2 + inverse, -inverse @ prior.matrix], dim=1)
    gram = prior.matrix.T @ inverse @ prior.matrix + torch.eye(LATENTS, dtype=torch.float64)
    joint = torch.cat([top, torch.cat([-prior.matrix.T @ inverse, gram], dim=1)])
    flat = torch.cat([measured.real.flatten(), measured.imag.flatten()])
    half = torch.full((SIDE * SIDE,), 0.5, dtype=torch.float64)
    right = [forward.T @ flat / NOISE**2 + inverse @ half, -(inverse @ half @ prior.matrix)]
    best = torch.linalg.solve(joint, torch.cat(right))
    image, latent = best.split([SIDE * SIDE, LATENTS])
    torch.testing.assert_close(solution.image.flatten(), image, atol=2e-4, rtol=0)
    torch.testing.assert_close(solution.latent[0], latent, atol=2e-2, rtol=0)

    assert solution.samples is not None and solution.samples.shape == (count, 1, 1, SIDE, SIDE)
    expected = torch.linalg.inv(joint).diagonal()[: SIDE * SIDE].sqrt()
    drawn = solution.samples.reshape(count, -1)
    assert (drawn.std(dim=0) / expected).mean().item() == pytest.approx(1, abs=0.03)
    assert ((drawn.std(dim=0) / expected - 1).abs() < 0.25).all()
    off = (drawn.mean(dim=0) - image) / expected
    assert off.square().mean().item() < 3 / count


def test_a_law_that_is_no_gaussian_is_refused() -> None:
    with pytest.raises(ValueError, match="Gaussian"):
        gaussian(LaplaceLaw(torch.tensor(0.1)))


def test_conjugate_gradients_solve_each_image_for_itself() -> None:
    root = torch.randn(9, 9, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(9, dtype=torch.float64)
    sizes = torch.tensor([1.0, 1e3, 1e-3], dtype=torch.float64).reshape(3, 1, 1, 1)
    right = sizes * torch.randn(3, 1, 3, 3, dtype=torch.float64)

    def apply(image: Tensor) -> Tensor:
        return (image.flatten(1) @ matrix).reshape(image.shape)

    solution = conjugate_gradient(apply, right, torch.zeros_like(right), 50)
    expected = torch.linalg.solve(matrix, right.flatten(1).T).T.reshape(right.shape)
    torch.testing.assert_close(solution, expected, rtol=1e-4, atol=1e-12)


def test_an_image_is_solved_alike_whatever_is_beside_it_and_again() -> None:
    prior, settings = UnequalPrior(), SolverSettings(latent_steps=20, image_steps=2, samples=2)
    operator = MaskedFourier(cartesian_mask((SIDE, SIDE), 2, 0.25).double())
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(2, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    measured = operator.forward(images)
    together, again = (solve(prior, operator, measured, NOISE, images, settings) for _ in range(2))
    assert torch.equal(together.samples, again.samples)  # type: ignore[arg-type]
    assert together.image.min() >= 0 and together.image.max() <= 1
    for k in range(2):
        alone = solve(prior, operator, measured[[k]], NOISE, images[[k]], settings)
        torch.testing.assert_close(together.latent[[k]], alone.latent)
        torch.testing.assert_close(together.image[[k]], alone.image, atol=1e-5, rtol=0)
