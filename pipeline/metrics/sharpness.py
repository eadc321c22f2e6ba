"""How sharp images are: blur effect, gradients and power spectra.

Power here is |fft2(x, norm="ortho")|^2 in intensity^2, so that the power of all frequencies sums
to the sum of squares of the pixels (Parseval) and white noise of variance v has power v at every
image size. Only half of the spectrum is computed; weights stand for the other half.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.blur.spectrum import half_spectrum_weights
from pipeline.metrics.fidelity import check_images

HIGH_FREQUENCY = 0.25  # cycles/pixel: half the Nyquist frequency, details below 4 pixels
# Variance of rounding to the 16-bit store, (1/65535)^2/12, is 2e-11: less power is not there.
POWER_FLOOR = 1e-11
# Radii on a bin edge (or on 0.25, as 0.15 and 0.20 give) must not fall either side by rounding.
_EDGE = 1e-9


def blur_effect(images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Perceptual blur of each image: 0 is sharp, 1 is blurred.

    Crete, Dolmiere, Ladret, Nicolas, The Blur Effect, SPIE 2007, through scikit-image (window 11,
    the worse of both axes). Channels are averaged first.

    Args:
        images: intensity in [0,1], H and W at least 4.

    Returns:
        In [0,1], float64, on the CPU. A constant image has no edges to judge and counts as 1.

    Raises:
        ValueError: from `check_images`, or images smaller than 4x4.

    Example:
        >>> noise = torch.rand(1, 1, 32, 32)
        >>> blurred = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
        >>> bool(blur_effect(noise) < blur_effect(blurred))
        True
    """
    from skimage.measure import blur_effect as skimage_blur_effect  # training goes without it

    check_images(images)
    if min(images.shape[-2:]) < 4:
        raise ValueError(f"blur effect needs at least 4x4 pixels, got {tuple(images.shape[-2:])}")
    grey = images.detach().double().mean(dim=1).cpu().numpy()
    # scikit-image divides by the sum of edges of each axis: 0/0 for an image flat along one.
    with np.errstate(divide="ignore", invalid="ignore"):
        values = [float(np.max(skimage_blur_effect(image, reduce_func=None))) for image in grey]
    return torch.tensor([value if np.isfinite(value) else 1.0 for value in values]).double()


def _half_plane(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Radius |f| in cycles/pixel, and how often each stands in the full one: (H,W//2+1) both."""
    height, width = shape[-2:]
    vertical = torch.fft.fftfreq(height, dtype=torch.float64, device=device)
    horizontal = torch.fft.rfftfreq(width, dtype=torch.float64, device=device)
    radius = torch.hypot(vertical[:, None], horizontal[None, :])
    return radius, half_spectrum_weights(width, like=radius).expand_as(radius)


def _power(fields: Tensor) -> Tensor:
    """Half-plane power spectrum, mean over channels: (B,H,W//2+1) float64."""
    return torch.fft.rfft2(fields.double(), norm="ortho").abs().square().mean(dim=1)


def frequencies(height: int, width: int) -> Float[Tensor, " bins"]:
    """Centres of the radial bins, k/side for k = 0 .. side//2, side the smaller of both.

    In cycles/pixel, float64, from 0 to at most 0.5.
    """
    side = min(height, width)
    return torch.arange(side // 2 + 1, dtype=torch.float64) / side


def radial_counts(height: int, width: int) -> Float[Tensor, " bins"]:
    """How many frequencies of the full spectrum fall in each radial bin, float64."""
    ones = torch.ones(1, height, width // 2 + 1, dtype=torch.float64)
    return _bin(ones, (height, width))[0]


def _bin(power: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum a half-plane spectrum (B,H,W//2+1) over rings: (B,n_bins)."""
    radius, weight = _half_plane(shape, power.device)
    side = min(shape[-2:])
    n_bins = side // 2 + 1
    index = torch.floor(radius * side + 0.5 + _EDGE).long().clamp(max=n_bins).flatten()
    sums = torch.zeros(power.shape[0], n_bins + 1, dtype=power.dtype, device=power.device)
    sums.index_add_(1, index, (power * weight).flatten(1))
    return sums[:, :n_bins]


def radial_power(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B bins"]:
    """Mean power on rings one frequency step wide, centred on `frequencies`.

    In intensity^2 per frequency, float64, mean over channels. The corners of the spectrum, beyond
    the last ring (|f| about 0.5), are left out: there a ring is cut into four ends of a few
    frequencies each, and no spectrum is shown that far. Raises ValueError from `check_images`.
    """
    check_images(images)
    return radial_variance(images)


@torch.no_grad()
def radial_variance(fields: Float[Tensor, "B C H W"]) -> Float[Tensor, "B bins"]:
    """`radial_power` of fields of any range, such as whitened residuals.

    White noise of variance 1 has 1 in every bin.
    """
    shape = tuple(fields.shape[-2:])
    return _bin(_power(fields), shape) / radial_counts(*shape).to(fields.device)


@torch.no_grad()
def high_frequency_power(
    images: Float[Tensor, "B C H W"], cutoff: float = HIGH_FREQUENCY
) -> Float[Tensor, " B"]:
    """Total power at |f| >= cutoff (cycles/pixel), corners included; of a cutoff of 0 all.

    In intensity^2, float64, mean over channels. Raises ValueError from `check_images`.
    """
    check_images(images)
    radius, weight = _half_plane(tuple(images.shape), images.device)
    return (_power(images) * weight * (radius >= cutoff - _EDGE)).sum(dim=(1, 2))


def high_frequency_ratio(
    images: Float[Tensor, "B C H W"], reconstructions: Float[Tensor, "N C H W"]
) -> float:
    """High-frequency power of the reconstructions over that of the data: 1 is as sharp.

    Give the slices of one subject: it is the ratio of sums, not the mean of ratios, so that a
    nearly empty slice does not dominate. Batches of unequal size (prior samples against data) are
    compared by their means, which for equal ones is the same.

    Args:
        images: intensity in [0,1].
        reconstructions: intensity in [0,1].

    Returns:
        A ratio without unit, at least 0.

    Raises:
        ValueError: from `check_images`, images of another size, or data without such power.

    Example:
        >>> noise = torch.rand(4, 1, 32, 32)
        >>> round(high_frequency_ratio(noise, noise / 2), 3)
        0.25
    """
    if images.shape[1:] != reconstructions.shape[1:]:
        sizes = f"{tuple(images.shape[1:])} and {tuple(reconstructions.shape[1:])}"
        raise ValueError(f"images of one size are needed, got {sizes}")
    return ratio_of_means(high_frequency_power(images), high_frequency_power(reconstructions))


@torch.no_grad()
def gradient_magnitude(images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Mean length of the intensity gradient, by Sobel's 3x3 operator: a ramp of slope s has s.

    In intensity per pixel, float64. The outermost pixels, whose neighbourhood the image does not
    hold, are left out. Channels are averaged last, so that edges of opposite sign in two of them do
    not cancel. Raises ValueError from `check_images`, or for images smaller than 3x3.
    """
    check_images(images)
    if min(images.shape[-2:]) < 3:
        raise ValueError(f"gradients need at least 3x3 pixels, got {tuple(images.shape[-2:])}")
    smooth, slope = torch.tensor(
        [[0.25, 0.5, 0.25], [-0.5, 0.0, 0.5]], dtype=torch.float64, device=images.device
    )
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    planes = images.double().flatten(0, 1)[:, None]
    length = F.conv2d(planes, kernels).square().sum(dim=1).sqrt().mean(dim=(1, 2))
    return length.unflatten(0, images.shape[:2]).mean(dim=1)


# Ratios of a subject's sum over images to the data's, by the measure of one image.
RATIOS = {
    "high_frequency_ratio": high_frequency_power,
    "gradient_magnitude_ratio": gradient_magnitude,
}


def ratio_of_means(data: Float[Tensor, " B"], other: Float[Tensor, " N"]) -> float:
    """Mean of `other` over mean of `data`. Raises ValueError where that of `data` is 0."""
    mean = data.mean().item()
    if mean <= 0.0:
        raise ValueError("the data have no such detail: the ratio is undefined")
    return other.mean().item() / mean


def spectrum_error(
    power_data: Float[Tensor, "B bins"], power_reconstruction: Float[Tensor, "N bins"]
) -> float:
    """Mean over radial bins of |log(power of reconstructions / power of data)|, nats: 0 is best.

    Both from `radial_power`, averaged over their batch before the logarithm. 0.69 means wrong by a
    factor of two in the typical bin. Power below 1e-11, the rounding of the 16-bit store, counts as
    1e-11. Raises ValueError for spectra that are not two-dimensional, empty, or of different bins.
    """
    shapes = power_data.shape, power_reconstruction.shape
    if any(len(x) != 2 or not x.numel() for x in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"spectra must be (B,n_bins) of equal bins, not empty: {shapes}")
    logs = [
        power.double().mean(dim=0).clamp(min=POWER_FLOOR).log()
        for power in (power_data, power_reconstruction)
    ]
    return (logs[1] - logs[0]).abs().mean().item()
