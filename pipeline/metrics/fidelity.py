"""How close a reconstruction is to its image, pixel by pixel: PSNR and SSIM."""

import torch
from jaxtyping import Float
from torch import Tensor

# PSNR of identical images is infinite, which neither JSON nor a mean over slices can hold. A mean
# squared error below 1e-10 (100 dB) is under the rounding of the 16-bit store, so it is the end.
MAX_PSNR = 100.0


def check_images(images: Float[Tensor, "B C H W"], name: str = "images") -> None:
    """Raise ValueError unless a batch is of finite intensities in [0,1], B at least 1."""
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"{name} must be (B,C,H,W) and not empty, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {images.dtype}")
    low, high = (value.item() for value in images.aminmax())
    # Written so that NaN, which compares false with everything, is refused as well.
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"{name} must lie in [0,1], got [{low:.6g}, {high:.6g}]")


def check_pair(image: Float[Tensor, "B C H W"], reconstruction: Float[Tensor, "B C H W"]) -> None:
    """`check_images` of both; raise ValueError if they differ in shape, dtype or device."""
    check_images(image, "image")
    check_images(reconstruction, "reconstruction")
    for attribute in ("shape", "dtype", "device"):
        left, right = getattr(image, attribute), getattr(reconstruction, attribute)
        if left != right:
            raise ValueError(f"image and reconstruction differ in {attribute}: {left} and {right}")


@torch.no_grad()
def psnr(
    image: Float[Tensor, "B C H W"], reconstruction: Float[Tensor, "B C H W"]
) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio, 10 log10(1 / mean squared error), data range 1.

    Args:
        image: intensity in [0,1].
        reconstruction: intensity in [0,1].

    Returns:
        dB, float64, at most 100: the mean squared error counts as 1e-10 where it is smaller.

    Raises:
        ValueError: from `check_pair`.

    Example:
        >>> psnr(torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.1)).round(decimals=3).tolist()
        [20.0]
    """
    check_pair(image, reconstruction)
    error = (reconstruction.double() - image.double()).square().mean(dim=(1, 2, 3))
    return (-10 * error.log10()).clamp(max=MAX_PSNR)


@torch.no_grad()
def brain_psnr(
    image: Float[Tensor, "B C H W"], reconstruction: Float[Tensor, "B C H W"]
) -> Float[Tensor, " B"]:
    """PSNR where any channel of the image is above 0, dB, float64, at most 100; NaN without brain.

    So slices with much and with little brain can be compared: the surround is black and easy.
    Raises ValueError from `check_pair`.
    """
    check_pair(image, reconstruction)
    brain = (image > 0).any(dim=1, keepdim=True)
    error = (reconstruction.double() - image.double()).square().mean(dim=1, keepdim=True)
    mean = (error * brain).sum(dim=(1, 2, 3)) / brain.sum(dim=(1, 2, 3))
    return (-10 * mean.log10()).clamp(max=MAX_PSNR)


@torch.no_grad()
def ssim(
    image: Float[Tensor, "B C H W"], reconstruction: Float[Tensor, "B C H W"]
) -> Float[Tensor, " B"]:
    """Structural similarity, Gaussian window of sigma 1.5 (11 pixels), K1 .01, K2 .03, range 1.

    Wang, Bovik, Sheikh, Simoncelli, Image Quality Assessment: From Error Visibility to Structural
    Similarity, IEEE TIP 2004. Averaged over channels and all pixels, the border reflected
    (scikit-image leaves 5 pixels of border out).

    Args:
        image: intensity in [0,1], H and W at least 11, the window.
        reconstruction: intensity in [0,1].

    Returns:
        Without unit, float64, 1 for identical images.

    Raises:
        ValueError: from `check_pair`, or an image smaller than the window.

    Example:
        >>> image = torch.rand(2, 1, 16, 16)
        >>> ssim(image, image).tolist()
        [1.0, 1.0]
    """
    # Here and not above: training's validation needs PSNR alone, and not torchmetrics.
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pair(image, reconstruction)
    if min(image.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs at least 11x11 pixels, got {tuple(image.shape[-2:])}")
    # float32: float64 moves the fourth decimal at most, and takes 20 times as long at 256x256.
    similarity = structural_similarity_index_measure(
        reconstruction.float(), image.float(), sigma=1.5, data_range=1.0, reduction="none"
    )
    assert isinstance(similarity, Tensor)  # the full map comes only on request
    return similarity.reshape(image.shape[0]).double()
