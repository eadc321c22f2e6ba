"""Laws of whitening: the inverse of drawing residuals."""

import pytest
import torch

from pipeline.blur.likelihood import quadratic_form, sample_residual
from pipeline.blur.spectrum import half_spectrum, precision, transfer_function
from pipeline.blur.whitening import marginal_variance, whiten


def _precision(shape: tuple[int, int], form: str = "wiener") -> torch.Tensor:
    kernel = torch.rand(2, 1, 5, 5, dtype=torch.float64).flatten(1).softmax(1)
    transfer = transfer_function(kernel.reshape(2, 1, 5, 5), shape)
    return precision(transfer, 0.025, form)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (8, 9)])
def test_squares_of_the_whitened_residual_sum_to_the_quadratic_form(
    shape: tuple[int, int],
) -> None:
    residual, weights = torch.randn(2, 3, *shape, dtype=torch.float64), _precision(shape)
    white = whiten(residual, weights, 0.3)
    expected = quadratic_form(half_spectrum(residual), weights, shape[1]) / 0.3**2
    torch.testing.assert_close(white.square().sum(dim=(1, 2, 3)), expected)


def test_whitening_undoes_the_colouring_of_a_draw() -> None:
    weights, generator = _precision((8, 8)), torch.Generator().manual_seed(3)
    noise = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=generator)
    drawn = sample_residual(weights, 0.2, 1, 8, torch.Generator().manual_seed(3))
    torch.testing.assert_close(whiten(drawn, weights, 0.2), noise)


def test_a_flat_precision_only_divides_by_the_scale() -> None:
    residual, flat = torch.randn(2, 1, 8, 8), torch.ones(1, 1, 8, 5)
    torch.testing.assert_close(whiten(residual, flat, 0.5), residual / 0.5)
    torch.testing.assert_close(marginal_variance(flat, 0.5, 8), torch.tensor([0.25]))


@pytest.mark.parametrize("form", ["wiener", "positive_definite"])
def test_the_marginal_variance_is_that_of_draws(form: str) -> None:
    weights = _precision((8, 8), form)[:1].expand(4000, -1, -1, -1)
    drawn = sample_residual(weights, 0.2, 1, 8)
    expected = marginal_variance(weights[:1], 0.2, 8).item()
    assert drawn.square().mean().item() == pytest.approx(expected, rel=0.1)


def test_a_precision_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be"):
        whiten(torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8), 1.0)
