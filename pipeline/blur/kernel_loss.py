"""What the kernel network is trained on: how well k ∗ x explains the reconstruction."""

import torch
from torch import Tensor

from pipeline.blur.spectrum import half_spectrum_sum


def kernel_loss(image: Tensor, reconstruction: Tensor, transfer: Tensor) -> Tensor:
    """‖k ∗ x − x̂‖² with circular convolution, by Parseval: no inverse transform is needed.

    image, reconstruction (B,C,H,W); transfer K (B,1,H,W//2+1). Returns (B,), intensity².
    """
    with torch.autocast(image.device.type, enabled=False):
        dtype = transfer.real.dtype
        image_spectrum = torch.fft.rfft2(image.to(dtype), norm="ortho")
        spectrum = torch.fft.rfft2(reconstruction.to(dtype), norm="ortho")
        difference = transfer * image_spectrum - spectrum
        power = difference.real.square() + difference.imag.square()
        return half_spectrum_sum(power, image.shape[-1]).sum(dim=1)


def kernel_width(kernel: Tensor) -> Tensor:
    """Root second moment of a kernel about its centre: (B,1,s,s) -> (B,), pixels."""
    side = kernel.shape[-1]
    offset = torch.arange(side, dtype=kernel.dtype, device=kernel.device) - side // 2
    squared_radius = offset.square()[:, None] + offset.square()[None, :]
    return (kernel[:, 0] * squared_radius).sum(dim=(-2, -1)).sqrt()
