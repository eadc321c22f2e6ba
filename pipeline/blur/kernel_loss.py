"""The kernel network's loss: how well k ∗ x explains the reconstruction."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from pipeline.blur.spectrum import half_spectrum, half_spectrum_sum, power


def kernel_loss(
    image: Float[Tensor, "B C H W"],
    reconstruction: Float[Tensor, "B C H W"],
    transfer: Complex[Tensor, "#B 1 H W//2+1"],
) -> Float[Tensor, " B"]:
    """‖k ∗ x − x̂‖² with circular convolution, by Parseval: no inverse transform is needed.

    Args:
        image: x.
        reconstruction: x̂.
        transfer: K, from `transfer_function`.

    Returns:
        The sum over channels and pixels, intensity².

    Example:
        >>> image = torch.rand(2, 1, 16, 16)
        >>> kernel = torch.zeros(1, 1, 3, 3)
        >>> kernel[..., 1, 1] = 1  # blurs nothing
        >>> kernel_loss(image, image, transfer_function(kernel, (16, 16))).shape
        torch.Size([2])
    """
    difference = transfer * half_spectrum(image) - half_spectrum(reconstruction)
    return half_spectrum_sum(power(difference), image.shape[-1]).sum(dim=1)


def kernel_loss_of_residual(
    image: Float[Tensor, "B C H W"],
    spectrum: Complex[Tensor, "B C H W//2+1"],
    transfer: Complex[Tensor, "#B 1 H W//2+1"],
) -> Float[Tensor, " B"]:
    """`kernel_loss` from the orthonormal half spectrum E of e = x − x̂: k ∗ x − x̂ = (k − δ) ∗ x + e.

    The sum over channels and pixels, intensity².
    """
    difference = (transfer - 1) * half_spectrum(image) + spectrum
    return half_spectrum_sum(power(difference), image.shape[-1]).sum(dim=1)


def kernel_width(kernel: Float[Tensor, "B 1 s s"]) -> Float[Tensor, " B"]:
    """Root second moment of a kernel about its centre, pixels."""
    side = kernel.shape[-1]
    offset = torch.arange(side, dtype=kernel.dtype, device=kernel.device) - side // 2
    squared_radius = offset.square()[:, None] + offset.square()[None, :]
    return (kernel[:, 0] * squared_radius).sum(dim=(-2, -1)).sqrt()
