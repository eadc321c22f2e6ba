"""The blur likelihood on images that are not square, against dense matrices of numpy and scipy.

Training takes square images alone; rows and columns that were swapped would not show there.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import multivariate_normal
from torch import Tensor

from pipeline.blur.kernel_loss import kernel_loss, kernel_loss_of_residual
from pipeline.blur.likelihood import (
    gaussian_nll,
    log_determinant,
    marginal_variance,
    optimal_scale,
    quadratic_form,
    whiten,
)
from pipeline.blur.spectrum import (
    RadialBins,
    half_spectrum,
    half_spectrum_sum,
    precision,
    transfer_function,
)
from pipeline.losses.law import GaussianLaw

Array = NDArray[np.float64]
SHAPES = [(4, 7), (7, 4), (6, 8), (5, 3)]
C, SIGMA = 0.05, 0.3

pytestmark = pytest.mark.parametrize("shape", SHAPES)


def kernel() -> Array:
    """3 x 3, no symmetry of any kind, sum 1."""
    k = np.array([[1.0, 2.0, 0.5], [4.0, 9.0, 1.5], [0.2, 3.0, 0.8]])
    return k / k.sum()


def circulant(column: Array) -> Array:
    """The matrix (HW,HW) of the circular convolution with `column` (H,W)."""
    rolled = [np.roll(column, (i, j), (0, 1)).ravel() for i, j in np.ndindex(*column.shape)]
    return np.array(rolled).T


def blur_matrix(shape: tuple[int, int]) -> Array:
    column = np.zeros(shape)
    for i, j in np.ndindex(3, 3):
        column[(i - 1) % shape[0], (j - 1) % shape[1]] += kernel()[i, j]
    return circulant(column)


def covariance(shape: tuple[int, int]) -> Array:
    """Of the positive-definite form: σ²(K Kᵀ + C·I), (HW,HW)."""
    matrix = blur_matrix(shape)
    return SIGMA**2 * (matrix @ matrix.T + C * np.eye(len(matrix)))


def tensors(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Transfer function and precision spectrum of the kernel."""
    transfer = transfer_function(torch.from_numpy(kernel())[None, None], shape)
    return transfer, precision(transfer, C, "positive_definite")


def noise(*shape: int) -> Array:
    return np.random.default_rng(3).standard_normal(shape)


def test_the_transfer_function_is_half_of_the_full_transform(shape: tuple[int, int]) -> None:
    column = blur_matrix(shape)[:, 0].reshape(shape)
    full = np.fft.fft2(column)[:, : shape[1] // 2 + 1]
    np.testing.assert_allclose(tensors(shape)[0][0, 0].numpy(), full, atol=1e-12)


def test_the_half_spectrum_is_orthonormal(shape: tuple[int, int]) -> None:
    image = noise(1, 2, *shape)
    found = half_spectrum(torch.from_numpy(image))
    full = np.fft.fft2(image) / np.sqrt(shape[0] * shape[1])
    np.testing.assert_allclose(found.numpy(), full[..., : shape[1] // 2 + 1], atol=1e-12)
    summed = half_spectrum_sum(found.abs().square(), shape[1])
    np.testing.assert_allclose(summed.numpy(), (image**2).sum(axis=(2, 3)))


def test_the_wiener_precision_is_the_square_of_the_wiener_weight(shape: tuple[int, int]) -> None:
    transfer = tensors(shape)[0]
    power = transfer.abs().numpy() ** 2
    weight = np.conj(transfer.numpy()) / (power + C)
    np.testing.assert_allclose(precision(transfer, C, "wiener"), np.abs(weight) ** 2)
    np.testing.assert_allclose(precision(transfer, C, "positive_definite"), 1 / (power + C))


def test_the_likelihood_is_that_of_the_dense_gaussian(shape: tuple[int, int]) -> None:
    residual = noise(2, 3, *shape)
    dense = covariance(shape)
    lam = tensors(shape)[1]
    logpdf = multivariate_normal(np.zeros(len(dense)), dense).logpdf
    expected = [-sum(logpdf(channel.ravel()) for channel in image) for image in residual]
    found = gaussian_nll(torch.from_numpy(residual), lam, SIGMA)
    np.testing.assert_allclose(found.numpy(), expected)
    unit = dense / SIGMA**2
    np.testing.assert_allclose(
        log_determinant(lam, (3, *shape)).item(), -3 * np.linalg.slogdet(unit)[1]
    )
    quadratic = quadratic_form(half_spectrum(torch.from_numpy(residual)), lam, shape[1])
    flat = residual.reshape(2, 3, -1)
    expected = np.einsum("bci,ij,bcj->b", flat, np.linalg.inv(unit), flat)
    np.testing.assert_allclose(quadratic.numpy(), expected)
    best = optimal_scale(quadratic, residual[0].size).item()
    assert best == pytest.approx(np.sqrt(expected.sum() / residual.size))


def test_whitening_is_the_symmetric_root_of_the_inverse(shape: tuple[int, int]) -> None:
    residual = noise(1, 2, *shape)
    values, vectors = np.linalg.eigh(covariance(shape))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    found = whiten(torch.from_numpy(residual), tensors(shape)[1], SIGMA)
    expected = residual.reshape(2, -1) @ root.T
    np.testing.assert_allclose(found.numpy().reshape(2, -1), expected, atol=1e-10)


def test_the_marginal_variance_is_the_diagonal_of_the_covariance(shape: tuple[int, int]) -> None:
    diagonal = np.diag(covariance(shape))
    np.testing.assert_allclose(diagonal, diagonal[0])
    lam = tensors(shape)[1]
    assert marginal_variance(lam, SIGMA, shape[1]).item() == pytest.approx(diagonal[0])
    assert marginal_variance(lam, torch.tensor([1.0, 2.0]), shape[1]).tolist() == pytest.approx(
        [diagonal[0] / SIGMA**2, 4 * diagonal[0] / SIGMA**2]
    )
    deviation = torch.from_numpy(SIGMA * np.ones((1, 1, *shape)))
    found = GaussianLaw(deviation, lam).standard_deviation(deviation.shape)
    np.testing.assert_allclose(found.numpy(), np.sqrt(diagonal[0]))


def test_a_deviation_at_every_pixel_scales_rows_and_columns(shape: tuple[int, int]) -> None:
    residual = noise(1, 1, *shape)
    deviation = np.exp(0.3 * np.random.default_rng(4).standard_normal(shape))
    scale = np.diag(deviation.ravel())
    dense = scale @ covariance(shape) @ scale / SIGMA**2
    lam = tensors(shape)[1]
    e, s = torch.from_numpy(residual), torch.from_numpy(deviation)[None, None]
    expected = -multivariate_normal(np.zeros(len(dense)), dense).logpdf(residual.ravel())
    assert GaussianLaw(s, lam).nll(e).item() == pytest.approx(expected)
    white = GaussianLaw(s, lam).whiten(e).numpy().ravel()
    inverse = np.linalg.inv(dense)
    assert white @ white == pytest.approx(residual.ravel() @ inverse @ residual.ravel())


def test_the_kernel_loss_is_that_of_scipy_s_convolution(shape: tuple[int, int]) -> None:
    image, other = noise(1, 2, *shape), np.random.default_rng(5).standard_normal((1, 2, *shape))
    blurred = np.array([ndimage.convolve(c, kernel(), mode="wrap") for c in image[0]])
    expected = ((blurred - other[0]) ** 2).sum()
    x, y, transfer = torch.from_numpy(image), torch.from_numpy(other), tensors(shape)[0]
    assert kernel_loss(x, y, transfer).item() == pytest.approx(expected)
    spectrum = half_spectrum(x - y)
    assert kernel_loss_of_residual(x, spectrum, transfer).item() == pytest.approx(expected)


def test_a_radial_bin_is_a_distance_in_steps_of_the_longer_side(shape: tuple[int, int]) -> None:
    height, width = shape
    bins, side = RadialBins(height, width), max(shape)
    rows, columns = np.fft.fftfreq(height) * side, np.fft.fftfreq(width) * side
    distance = np.round(np.sqrt(rows[:, None] ** 2 + columns**2))
    distinct = np.unique(distance)
    power = noise(2, 3, height, width) ** 2
    power = 0.5 * (power + np.roll(power[..., ::-1, ::-1], 1, (2, 3)))  # as of real images
    half = torch.from_numpy(power[..., : width // 2 + 1].copy())
    expected = [power[..., distance == d].mean() for d in distinct]
    np.testing.assert_allclose(bins.mean(half).numpy(), expected)
    assert bins.counts.tolist() == [(distance == d).sum() for d in distinct]
    numbers = torch.arange(len(bins), dtype=torch.float64)
    place = np.searchsorted(distinct, distance)
    np.testing.assert_array_equal(bins.spread(numbers)[0, 0], place[:, : width // 2 + 1])
    assert bins.average(numbers).item() == pytest.approx(place.mean())
