"""What the kernel network is trained on: how well k ∗ x explains the reconstruction."""

import torch
from torch import Tensor

from pipeline.blur.spectrum import half_spectrum, half_spectrum_sum, power


def kernel_loss(image: Tensor, reconstruction: Tensor, transfer: Tensor) -> Tensor:
    """‖k ∗ x − x̂‖² with circular convolution, by Parseval: no inverse transform is needed.

    image, reconstruction (B,C,H,W); transfer K (B,1,H,W//2+1). Returns (B,), intensity².
    """
    difference = transfer * half_spectrum(image) - half_spectrum(reconstruction)
    return half_spectrum_sum(power(difference), image.shape[-1]).sum(dim=1)


def kernel_loss_of_residual(image: Tensor, spectrum: Tensor, transfer: Tensor) -> Tensor:
    """`kernel_loss` where the residual's half spectrum is known: k ∗ x − x̂ = (k − δ) ∗ x + e.

    image (B,C,H,W); spectrum E of e = x − x̂ (B,C,H,W//2+1), orthonormal; transfer K
    (B,1,H,W//2+1). Returns (B,), intensity².
    """
    difference = (transfer - 1) * half_spectrum(image) + spectrum
    return half_spectrum_sum(power(difference), image.shape[-1]).sum(dim=1)


def kernel_width(kernel: Tensor) -> Tensor:
    """Root second moment of a kernel about its centre: (B,1,s,s) -> (B,), pixels."""
    side = kernel.shape[-1]
    offset = torch.arange(side, dtype=kernel.dtype, device=kernel.device) - side // 2
    squared_radius = offset.square()[:, None] + offset.square()[None, :]
    return (kernel[:, 0] * squared_radius).sum(dim=(-2, -1)).sqrt()
