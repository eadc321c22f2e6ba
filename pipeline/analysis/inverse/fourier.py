"""The Fourier transform of MR reconstruction: centred and orthonormal, as fastMRI's fftc.py.

The origin of image and k-space alike is pixel (H//2, W//2). Zbontar et al., fastMRI: An Open
Dataset and Benchmarks for Accelerated MRI, 2018 (arXiv 1811.08839).
"""

import torch
from torch import Tensor

_DIMS = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """Image -> k-space over the last two dimensions: (...,H,W) real or complex -> complex.

    Orthonormal, so that noise has the same standard deviation on both sides. Raises ValueError
    where there are no two dimensions.
    """
    _check(image)
    shifted = torch.fft.ifftshift(image, dim=_DIMS)
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=_DIMS)


def ifft2c(kspace: Tensor) -> Tensor:
    """k-space -> image, the inverse and the adjoint of `fft2c`: (...,H,W) -> complex (...,H,W)."""
    _check(kspace)
    shifted = torch.fft.ifftshift(kspace, dim=_DIMS)
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=_DIMS)


def _check(values: Tensor) -> None:
    if values.ndim < 2 or values.numel() == 0:
        raise ValueError(f"needs (...,H,W) that is not empty, not {tuple(values.shape)}")
