"""The kernel loss is the squared error of a circular convolution."""

import pytest
import torch

from pipeline.blur.kernel_loss import kernel_loss, kernel_loss_of_residual, kernel_width
from pipeline.blur.spectrum import half_spectrum, transfer_function


def _kernel(side: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, side * side, generator=generator, dtype=torch.float64)
    return logits.softmax(dim=1).reshape(batch, 1, side, side)


def _convolve(kernel: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """k ∗ x, circular: (k ∗ x)(p) = Σ_d k(d) x(p − d), summed shift by shift."""
    centre = kernel.shape[-1] // 2
    result = torch.zeros_like(image)
    for i in range(kernel.shape[-1]):
        for j in range(kernel.shape[-1]):
            shifted = image.roll((i - centre, j - centre), dims=(-2, -1))
            result += kernel[:, :, i, j, None, None] * shifted
    return result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("shape", [(8, 8), (7, 6), (6, 7), (5, 9)], ids=str)
def test_it_is_the_error_of_a_circular_convolution(
    shape: tuple[int, int], side: int, channels: int
) -> None:
    kernel = _kernel(side, batch=2)
    image = torch.rand(2, channels, *shape, dtype=torch.float64)
    reconstruction = torch.rand_like(image)
    found = kernel_loss(image, reconstruction, transfer_function(kernel, shape))
    expected = (_convolve(kernel, image) - reconstruction).square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    residual = half_spectrum(image - reconstruction)
    found = kernel_loss_of_residual(image, residual, transfer_function(kernel, shape))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_it_is_zero_for_the_kernel_that_blurred() -> None:
    kernel = _kernel(5)
    image = torch.rand(3, 1, 9, 8, dtype=torch.float64)
    found = kernel_loss(image, _convolve(kernel, image), transfer_function(kernel, (9, 8)))
    assert found.abs().max() < 1e-20


def test_it_sees_where_the_kernel_sits() -> None:
    """The likelihood does not: a wrong centre would break only this loss."""
    kernel = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    kernel[..., 1:4, 1:4] = _kernel(3)
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    blurred = _convolve(kernel, image)
    for shift in ((0, 1), (1, 0), (-1, -1)):
        moved = transfer_function(kernel.roll(shift, dims=(-2, -1)), (8, 8))
        assert kernel_loss(image, blurred, moved).item() > 0.1
    mirrored = transfer_function(kernel.flip((-2, -1)), (8, 8))
    assert kernel_loss(image, blurred, mirrored).item() > 0.01


def test_the_width_is_the_root_second_moment() -> None:
    delta = torch.zeros(1, 1, 5, 5)
    delta[..., 2, 2] = 1
    cross = torch.zeros(1, 1, 5, 5)
    cross[..., [0, 4, 2, 2], [2, 2, 0, 4]] = 0.25
    uniform = torch.full((1, 1, 3, 3), 1 / 9)
    found = [kernel_width(kernel).item() for kernel in (delta, cross, uniform)]
    assert found == pytest.approx([0.0, 2.0, (12 / 9) ** 0.5])
