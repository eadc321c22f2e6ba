"""The transform of k-space: numpy's, centred and orthonormal."""

import numpy as np
import pytest
import torch

from pipeline.analysis.inverse.fourier import fft2c, ifft2c

SHAPES = [(8, 8), (7, 6), (6, 7), (5, 9)]


def _image(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(2, 3, *shape, dtype=torch.complex128)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_numpys(shape: tuple[int, int]) -> None:
    image, axes = _image(shape), (-2, -1)
    shifted = np.fft.ifftshift(image.numpy(), axes=axes)
    expected = np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=axes)
    np.testing.assert_allclose(fft2c(image).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back_is_identity_and_keeps_the_norm(shape: tuple[int, int]) -> None:
    image = _image(shape)
    torch.testing.assert_close(ifft2c(fft2c(image)), image)
    torch.testing.assert_close(fft2c(image).norm(), image.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_lands_in_the_centre(shape: tuple[int, int]) -> None:
    kspace = fft2c(torch.ones(shape, dtype=torch.float64)).abs()
    assert kspace[shape[0] // 2, shape[1] // 2] == pytest.approx((shape[0] * shape[1]) ** 0.5)
    assert kspace.sum() == pytest.approx(kspace.max())


def test_a_row_is_no_image() -> None:
    with pytest.raises(ValueError, match="H,W"):
        fft2c(torch.ones(4))
