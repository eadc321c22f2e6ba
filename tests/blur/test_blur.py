"""The blur likelihood is the exact Gaussian, checked against dense matrices built in space.

Images that are not square, whitening, the kernel's loss, deviations a pixel and radial bins:
tests/conventions/test_non_square_images; widths: test_widths_and_frequencies there.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from pipeline.blur import Form
from pipeline.blur.likelihood import (
    gaussian_nll,
    optimal_scale,
    quadratic_form,
    sample_residual,
    whiten,
)
from pipeline.blur.spectrum import (
    POWER_FLOOR,
    half_spectrum,
    precision,
    transfer_function,
)

SHAPES = [(8, 8), (7, 6), (6, 7), (5, 9)]
FORMS: list[Form] = ["wiener", "positive_definite"]
C = 0.025

every_form = pytest.mark.parametrize("form", FORMS)
sides = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)


def _kernel(side: int, seed: int = 0) -> Tensor:
    """An asymmetric softmax kernel, peaked at its centre: (1,1,s,s) float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(side, side, generator=generator, dtype=torch.float64)
    logits[side // 2, side // 2] += 3.0
    return logits.flatten().softmax(0).reshape(1, 1, side, side)


def _precision(kernel: Tensor, shape: tuple[int, int], form: Form) -> Tensor:
    return precision(transfer_function(kernel, shape), C, form)


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


def _dense_precision(kernel: Tensor, height: int, width: int, form: Form) -> np.ndarray:
    """Σ⁻¹ of one channel from matrices alone: W Wᵀ of the Wiener filter, or (KKᵀ + C)⁻¹."""
    blur = _blur_matrix(kernel[0, 0].numpy(), height, width)
    inverse = np.linalg.inv(blur @ blur.T + C * np.eye(height * width))
    if form == "positive_definite":
        return inverse
    wiener = blur.T @ inverse
    return wiener @ wiener.T


def _dense_nll(residual: Tensor, dense: np.ndarray, sigma: float) -> Tensor:
    """Of each image (B,), by torch's distribution; channels are independent."""
    matrix = torch.from_numpy((dense + dense.T) / 2) / sigma**2
    law = MultivariateNormal(torch.zeros(len(matrix), dtype=torch.float64), precision_matrix=matrix)
    return -law.log_prob(residual.flatten(2)).sum(dim=1)


@pytest.mark.parametrize(
    ("shape", "side", "channels", "form"), list(product(SHAPES, (3, 5), (1, 3), FORMS))
)
def test_it_is_the_dense_multivariate_normal(
    shape: tuple[int, int], side: int, channels: int, form: Form
) -> None:
    """Each image with a kernel and a scale of its own; and with the likeliest common scale."""
    kernels = torch.cat([_kernel(side, seed) for seed in range(3)])
    residual = 0.1 * torch.randn(3, channels, *shape, dtype=torch.float64)
    spectrum = _precision(kernels, shape, form)
    dense = [_dense_precision(kernel[None], *shape, form) for kernel in kernels]

    def expected(scales: list[float]) -> Tensor:
        of_each = zip(residual.split(1), dense, scales, strict=True)
        return torch.cat([_dense_nll(*one) for one in of_each])

    scales = [0.05, 0.1, 0.2]
    fixed = gaussian_nll(residual, spectrum, torch.tensor(scales, dtype=torch.float64))
    torch.testing.assert_close(fixed, expected(scales), rtol=1e-10, atol=0)
    quadratic = quadratic_form(half_spectrum(residual), spectrum, shape[1])
    sigma = optimal_scale(quadratic, residual[0].numel())
    flat = residual.flatten(2).numpy()
    total = np.einsum("bci,bij,bcj->", flat, np.stack(dense), flat)
    assert sigma.item() == pytest.approx(math.sqrt(total / residual.numel()), rel=1e-10)
    best = gaussian_nll(residual, spectrum, sigma)
    torch.testing.assert_close(best, expected([sigma.item()] * 3), rtol=1e-10, atol=0)


@every_form
@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (4, 3)])
def test_drawn_residuals_have_the_covariance_of_the_law(shape: tuple[int, int], form: Form) -> None:
    kernel, count = _kernel(3), 40000
    spectrum = _precision(kernel, shape, form).expand(count, -1, -1, -1)
    drawn = sample_residual(spectrum, 0.2, 1, shape[1]).flatten(1).numpy()
    empirical = drawn.T @ drawn / count
    expected = 0.04 * np.linalg.inv(_dense_precision(kernel, *shape, form))
    spread = np.sqrt((np.outer(expected.diagonal(), expected.diagonal()) + expected**2) / count)
    assert (np.abs(empirical - expected) < 5 * spread).all()


@every_form
def test_float32_is_close_to_float64(form: Form) -> None:
    kernel, residual = _kernel(5), 0.1 * torch.randn(4, 1, 64, 64, dtype=torch.float64)
    wide = gaussian_nll(residual, _precision(kernel, (64, 64), form), 0.1)
    narrow = gaussian_nll(residual.float(), _precision(kernel.float(), (64, 64), form), 0.1)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=0)


@every_form
def test_lost_frequencies_leave_it_finite_with_finite_gradients(form: Form) -> None:
    """This kernel loses the Nyquist frequencies altogether: λ is that of the floor."""
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row[None, :])[None, None].requires_grad_()
    residual = (0.1 * torch.randn(1, 1, 8, 8)).requires_grad_()
    spectrum = _precision(kernel, (8, 8), form)
    gaussian_nll(residual, spectrum, 0.1).backward()
    for tensor in (kernel, residual):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    floor = POWER_FLOOR / (POWER_FLOOR + C) ** 2 if form == "wiener" else 1 / (POWER_FLOOR + C)
    assert spectrum[0, 0, 4, 4].item() == pytest.approx(floor, rel=1e-6)


# ------------------------------------------------------------------ spectra


@given(st.sampled_from([1, 3, 5]), st.integers(5, 12), st.integers(5, 12), seeds)
def test_a_kernel_keeps_the_mean_and_a_centred_delta_everything(
    side: int, height: int, width: int, seed: int
) -> None:
    transfer = transfer_function(_kernel(side, seed), (height, width))
    assert transfer.shape == (1, 1, height, width // 2 + 1)
    assert transfer[0, 0, 0, 0].item() == pytest.approx(1.0, abs=1e-12)
    assert transfer.abs().max().item() <= 1 + 1e-12
    delta = torch.zeros(1, 1, side, side, dtype=torch.float64)
    delta[..., side // 2, side // 2] = 1.0
    kept = transfer_function(delta, (height, width))
    torch.testing.assert_close(kept, torch.ones_like(kept), rtol=0, atol=1e-12)


def test_the_literal_precision_peaks_where_the_power_is_the_constant_and_the_other_falls() -> None:
    modulus = torch.linspace(0.01, 1, 991, dtype=torch.float64)
    transfer = modulus.to(torch.complex128)[None, None, None]
    literal = precision(transfer, 0.04).flatten()
    assert modulus[literal.argmax()].item() == pytest.approx(0.2)
    assert literal.max().item() == pytest.approx(1 / (4 * 0.04))
    assert (precision(transfer, C, "positive_definite").flatten().diff() < 0).all()


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ((1, 1, 4, 4), "odd"),
        ((1, 1, 9, 9), "at most 8"),
        ((1, 1, 3, 5), r"\(B,1,s,s\)"),
        ((1, 3, 3, 3), r"\(B,1,s,s\)"),
        ((3, 3), r"\(B,1,s,s\)"),
    ],
    ids=str,
)
def test_a_kernel_of_another_shape_is_refused(kernel: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        transfer_function(torch.ones(kernel), (8, 10))


@pytest.mark.parametrize(
    "shape", [(1, 1, 8, 8), (1, 1, 8, 4), (1, 3, 8, 5), (8, 5), (1, 1, 9, 5)], ids=str
)
def test_a_precision_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    residual = torch.zeros(1, 3, 8, 8)
    for judge in (gaussian_nll, whiten):
        with pytest.raises(ValueError, match=r"\(B,1,8,5\)"):
            judge(residual, torch.ones(shape), 1.0)


def test_other_widths_constants_and_forms_are_refused() -> None:
    transfer = torch.ones(1, 1, 2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match="width 10"):
        sample_residual(torch.ones(1, 1, 8, 5), 1.0, 1, 10)
    with pytest.raises(ValueError, match="constant"):
        precision(transfer, 0.0)
    with pytest.raises(ValueError, match="wiener or positive_definite"):
        precision(transfer, 0.1, "winer")  # type: ignore[arg-type]
