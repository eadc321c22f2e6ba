"""The likelihood is the exact Gaussian: checked against dense matrices built in space."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from pipeline.blur.likelihood import (
    gaussian_nll,
    optimal_scale,
    quadratic_form,
    sample_residual,
)
from pipeline.blur.spectrum import (
    Form,
    half_spectrum,
    half_spectrum_weights,
    precision,
    transfer_function,
)

SHAPES = [(8, 8), (7, 6), (6, 7), (5, 9)]
FORMS: list[Form] = ["wiener", "positive_definite"]
C = 0.025


def _optimal_scale(residual: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
    quadratic = quadratic_form(half_spectrum(residual), spectrum, residual.shape[-1])
    return optimal_scale(quadratic, residual[0].numel())


def _kernel(side: int, seed: int = 0) -> torch.Tensor:
    """An asymmetric softmax kernel, peaked at its centre: (1,1,s,s) float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(side, side, generator=generator, dtype=torch.float64)
    logits[side // 2, side // 2] += 3.0
    return logits.flatten().softmax(0).reshape(1, 1, side, side)


def _blur_matrix(kernel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Circular convolution as a matrix, a sum of products of shift matrices: no Fourier."""
    centre = kernel.shape[0] // 2
    matrix = np.zeros((height * width, height * width))
    for i, row in enumerate(kernel):
        for j, value in enumerate(row):
            down = np.roll(np.eye(height), i - centre, axis=0)
            right = np.roll(np.eye(width), j - centre, axis=0)
            matrix += value * np.kron(down, right)
    return matrix


def _dense_precision(kernel: torch.Tensor, height: int, width: int, form: Form) -> np.ndarray:
    """Σ⁻¹ of one channel from matrices alone: W Wᵀ of the Wiener filter, or (KKᵀ + C)⁻¹."""
    blur = _blur_matrix(kernel[0, 0].numpy(), height, width)
    inverse = np.linalg.inv(blur @ blur.T + C * np.eye(height * width))
    if form == "positive_definite":
        return inverse
    wiener = blur.T @ inverse
    return wiener @ wiener.T


def _dense_nll(residual: torch.Tensor, dense: np.ndarray, sigma: float) -> torch.Tensor:
    """Of each image (B,), by torch's distribution; channels are independent."""
    matrix = torch.from_numpy((dense + dense.T) / 2) / sigma**2
    law = MultivariateNormal(torch.zeros(len(matrix), dtype=torch.float64), precision_matrix=matrix)
    return -law.log_prob(residual.flatten(2)).sum(dim=1)


def _cases() -> Iterator[Any]:
    for shape in SHAPES:
        for side in (3, 5):
            for channels in (1, 3):
                for form in FORMS:
                    name = f"{shape[0]}x{shape[1]}-k{side}-c{channels}-{form}"
                    yield pytest.param(shape, side, channels, form, id=name)


@pytest.mark.parametrize(("shape", "side", "channels", "form"), list(_cases()))
def test_it_is_the_dense_multivariate_normal(
    shape: tuple[int, int], side: int, channels: int, form: Form
) -> None:
    kernel = _kernel(side)
    generator = torch.Generator().manual_seed(1)
    residual = 0.1 * torch.randn(3, channels, *shape, generator=generator, dtype=torch.float64)
    spectrum = precision(transfer_function(kernel, shape), C, form)
    dense = _dense_precision(kernel, *shape, form)

    fixed = gaussian_nll(residual, spectrum, 0.07)
    torch.testing.assert_close(fixed, _dense_nll(residual, dense, 0.07), rtol=1e-10, atol=0)

    sigma = optimal_scale(
        quadratic_form(half_spectrum(residual), spectrum, residual.shape[-1]), residual[0].numel()
    )
    flat = residual.flatten(2).numpy()
    expected = math.sqrt(np.einsum("bci,ij,bcj->", flat, dense, flat) / residual.numel())
    assert sigma.item() == pytest.approx(expected, rel=1e-10)
    best = gaussian_nll(residual, spectrum, sigma)
    torch.testing.assert_close(best, _dense_nll(residual, dense, expected), rtol=1e-10, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_each_image_of_a_batch_has_its_own_kernel_and_scale(form: Form) -> None:
    kernels = torch.cat([_kernel(3, seed) for seed in range(3)])
    residual = 0.1 * torch.randn(3, 1, 6, 6, dtype=torch.float64)
    scales = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)
    together = gaussian_nll(
        residual, precision(transfer_function(kernels, (6, 6)), C, form), scales
    )
    for i in range(3):
        alone = precision(transfer_function(kernels[i : i + 1], (6, 6)), C, form)
        expected = gaussian_nll(residual[i : i + 1], alone, scales[i])
        torch.testing.assert_close(together[i : i + 1], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_half_and_full_spectrum_agree(shape: tuple[int, int], form: Form) -> None:
    kernel = _kernel(5)
    residual = torch.randn(2, 3, *shape, dtype=torch.float64)
    half = gaussian_nll(residual, precision(transfer_function(kernel, shape), C, form), 0.3)

    height, width = shape
    padded = np.zeros(shape)
    for i in range(5):
        for j in range(5):
            padded[(i - 2) % height, (j - 2) % width] += kernel[0, 0, i, j].item()
    full = precision(torch.from_numpy(np.fft.fft2(padded)), C, form)
    power = torch.fft.fft2(residual, norm="ortho").abs().square()
    values = residual[0].numel()
    expected = (
        (power * full).sum(dim=(1, 2, 3)) / (2 * 0.3**2)
        - 3 / 2 * full.log().sum()
        + values * math.log(0.3)
        + values / 2 * math.log(2 * math.pi)
    )
    torch.testing.assert_close(half, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_no_other_scale_is_likelier_than_the_optimal_one(form: Form) -> None:
    residual = 0.1 * torch.randn(4, 1, 8, 8, dtype=torch.float64)
    spectrum = precision(transfer_function(_kernel(3), (8, 8)), C, form)
    sigma = optimal_scale(
        quadratic_form(half_spectrum(residual), spectrum, residual.shape[-1]), residual[0].numel()
    )
    least = gaussian_nll(residual, spectrum, sigma).mean()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert gaussian_nll(residual, spectrum, factor * sigma).mean() > least


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "channels"), [((8, 8), 1), ((7, 6), 3), ((5, 9), 1)])
def test_drawn_residuals_have_the_mean_nll_of_the_law(
    shape: tuple[int, int], channels: int, form: Form
) -> None:
    """E[NLL] is the entropy: the NLL of zero, and D/2 for the quadratic term."""
    count = 4000
    spectrum = precision(transfer_function(_kernel(5), shape), C, form).expand(count, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = sample_residual(spectrum, 0.2, channels, shape[1], generator)
    assert drawn.shape == (count, channels, *shape)
    values = channels * shape[0] * shape[1]
    entropy = gaussian_nll(torch.zeros_like(drawn[:1]), spectrum[:1], 0.2).item() + values / 2
    deviation = math.sqrt(values / 2 / count)  # of a mean of χ²/2 with `values` degrees
    assert abs(gaussian_nll(drawn, spectrum, 0.2).mean().item() - entropy) < 4 * deviation


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (4, 3)])
def test_drawn_residuals_have_the_covariance_of_the_law(shape: tuple[int, int], form: Form) -> None:
    kernel, count = _kernel(3), 40000
    spectrum = precision(transfer_function(kernel, shape), C, form).expand(count, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = sample_residual(spectrum, 0.2, 1, shape[1], generator).flatten(1).numpy()
    found = drawn.T @ drawn / count
    expected = 0.04 * np.linalg.inv(_dense_precision(kernel, *shape, form))
    spread = np.sqrt((np.outer(expected.diagonal(), expected.diagonal()) + expected**2) / count)
    assert (np.abs(found - expected) < 5 * spread).all()


def test_each_drawn_residual_has_its_own_scale() -> None:
    ones = torch.ones(2, 1, 16, 9, dtype=torch.float64)
    drawn = sample_residual(
        ones, torch.tensor([0.1, 10.0]), 3, 16, torch.Generator().manual_seed(0)
    )
    assert drawn.std(dim=(1, 2, 3)).tolist() == pytest.approx([0.1, 10.0], rel=0.1)


@pytest.mark.parametrize("form", FORMS)
def test_float32_is_close_to_float64(form: Form) -> None:
    kernel = _kernel(5)
    residual = 0.1 * torch.randn(4, 1, 64, 64, dtype=torch.float64)
    wide = gaussian_nll(residual, precision(transfer_function(kernel, (64, 64)), C, form), 0.1)
    narrow = gaussian_nll(
        residual.float(), precision(transfer_function(kernel.float(), (64, 64)), C, form), 0.1
    )
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_lost_frequencies_leave_it_finite_with_finite_gradients(form: Form) -> None:
    """This kernel loses the Nyquist frequencies altogether."""
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row[None, :])[None, None].requires_grad_()
    residual = (0.1 * torch.randn(1, 1, 8, 8)).requires_grad_()
    gaussian_nll(residual, precision(transfer_function(kernel, (8, 8)), C, form), 0.1).backward()
    for tensor in (kernel, residual):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@pytest.mark.parametrize(
    "shape", [(1, 1, 8, 8), (1, 1, 8, 4), (1, 3, 8, 5), (8, 5), (1, 1, 9, 5)], ids=str
)
def test_a_precision_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    residual = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"\(B,1,8,5\)"):
        gaussian_nll(residual, torch.ones(shape), 1.0)
    with pytest.raises(ValueError, match=r"\(B,1,8,5\)"):
        quadratic_form(half_spectrum(residual), torch.ones(shape), 8)


def test_samples_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 10"):
        sample_residual(torch.ones(1, 1, 8, 5), 1.0, 1, 10)


def test_the_weights_count_every_frequency_once() -> None:
    assert half_spectrum_weights(6, torch.ones(1)).tolist() == [1, 2, 2, 1]
    assert half_spectrum_weights(7, torch.ones(1)).tolist() == [1, 2, 2, 2]
    assert half_spectrum_weights(1, torch.ones(1)).tolist() == [1]
