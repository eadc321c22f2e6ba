"""The law with a deviation a pixel is the exact Gaussian N(0, S C S), built densely in space."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import circulant
from torch.distributions import MultivariateNormal

from pipeline.blur.likelihood import gaussian_nll
from pipeline.blur.scaled import (
    marginal_deviation,
    scaled_nll,
    scaled_sample,
    scaled_whitening,
)

SHAPES = [(8, 8), (7, 6), (6, 7), (5, 9)]
WIDE = torch.float64


def _variance(shape: tuple[int, int]) -> np.ndarray:
    """A spectrum of C that is even in frequency, (H,W), a product of two of one dimension."""
    rows, columns = (np.fft.fft(_bump(side)).real for side in shape)
    return np.outer(rows, columns)


def _bump(side: int) -> np.ndarray:
    """A symmetric covariance along one axis, its centre at 0: no negative eigenvalue."""
    distance = np.minimum(np.arange(side), side - np.arange(side))
    return np.where(distance == 0, 1.2, np.where(distance == 1, 0.4, 0.0))


def _dense(shape: tuple[int, int]) -> np.ndarray:
    """C of one channel from circulant matrices alone: no Fourier."""
    return np.kron(*(circulant(_bump(side)) for side in shape))


def _precision(shape: tuple[int, int]) -> torch.Tensor:
    half = _variance(shape)[:, : shape[1] // 2 + 1]
    return torch.from_numpy(1 / half)[None, None]


def _inputs(shape: tuple[int, int], channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    residual = 0.1 * torch.randn(3, channels, *shape, generator=generator, dtype=WIDE)
    deviation = 0.02 + 0.2 * torch.rand(3, channels, *shape, generator=generator, dtype=WIDE)
    return residual, deviation


def _covariance(deviation: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """S C S of each image and channel, (B,C,HW,HW)."""
    scale = deviation.flatten(2)
    return scale[..., :, None] * torch.from_numpy(_dense(shape)) * scale[..., None, :]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_dense_multivariate_normal(shape: tuple[int, int], channels: int) -> None:
    residual, deviation = _inputs(shape, channels)
    law = MultivariateNormal(torch.zeros(math.prod(shape), dtype=WIDE),
                             _covariance(deviation, shape))  # fmt: skip
    expected = -law.log_prob(residual.flatten(2)).sum(dim=1)
    found = scaled_nll(residual, deviation, _precision(shape))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_whitening_is_the_dense_one(shape: tuple[int, int]) -> None:
    residual, deviation = _inputs(shape, 3)
    values, vectors = np.linalg.eigh(_dense(shape))
    root = torch.from_numpy(vectors @ np.diag(values**-0.5) @ vectors.T)
    expected = (residual / deviation).flatten(2) @ root
    found = scaled_whitening(residual, deviation, _precision(shape))
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_marginal_deviation_is_the_root_of_the_diagonal(shape: tuple[int, int]) -> None:
    _, deviation = _inputs(shape, 1)
    expected = _covariance(deviation, shape).diagonal(dim1=-2, dim2=-1).sqrt()
    found = marginal_deviation(deviation, _precision(shape), shape[1])
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5)])
def test_drawn_residuals_have_the_covariance_of_the_law(shape: tuple[int, int]) -> None:
    count, (_, deviation) = 40000, _inputs(shape, 1)
    every = deviation[:1].expand(count, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = scaled_sample(every, _precision(shape), generator).flatten(1).numpy()
    found, expected = drawn.T @ drawn / count, _covariance(deviation, shape)[0, 0].numpy()
    spread = np.sqrt((np.outer(expected.diagonal(), expected.diagonal()) + expected**2) / count)
    assert (np.abs(found - expected) < 5 * spread).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_deviation_is_the_scale_of_the_stationary_law(shape: tuple[int, int]) -> None:
    residual, _ = _inputs(shape, 3)
    expected = gaussian_nll(residual, _precision(shape), 0.07)
    for deviation in (torch.tensor(0.07, dtype=WIDE), torch.full_like(residual, 0.07)):
        found = scaled_nll(residual, deviation, _precision(shape))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
