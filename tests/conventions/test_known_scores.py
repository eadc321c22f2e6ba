"""Metrics of images whose scores are known from a formula, from scipy or from scikit-image."""

import math

import numpy as np
import pytest
import torch
from skimage.measure import blur_effect as skimage_blur_effect
from torch import Tensor

from pipeline.data.slices import to_scanner
from pipeline.evaluation.calibration import regions
from pipeline.metrics.distribution import frechet_distance, kernel_distance
from pipeline.metrics.fidelity import psnr, ssim
from pipeline.metrics.sharpness import (
    blur_effect,
    frequencies,
    gradient_magnitude,
    high_frequency_power,
    high_frequency_ratio,
    radial_counts,
    radial_power,
    spectrum_error,
)
from pipeline.metrics.statistics import over_families


def constant(value: float, side: int = 16) -> Tensor:
    return torch.full((1, 1, side, side), value, dtype=torch.float64)


def wave(shape: tuple[int, int], rows: int, columns: int, size: float = 0.25) -> Tensor:
    """A wave of so many periods down the rows and along the columns, about 0.5: (1,1,H,W)."""
    i, j = np.indices(shape)
    phase = 2 * np.pi * (rows * i / shape[0] + columns * j / shape[1])
    return torch.from_numpy(0.5 + size * np.cos(phase))[None, None]


@pytest.mark.parametrize("level", [0.0, 0.1, 0.8])
def test_a_tenth_off_is_20_decibels_however_dark_the_image(level: float) -> None:
    assert psnr(constant(level), constant(level + 0.1)).item() == pytest.approx(20)
    assert psnr(constant(level), constant(level + 0.01)).item() == pytest.approx(40)


def test_the_peak_signal_is_of_an_image_s_mean_square_not_of_the_batch_s() -> None:
    first, second = constant(0.2), constant(0.5)
    found = psnr(torch.cat([first, second]), torch.cat([first + 0.1, second + 0.01]))
    assert found.tolist() == pytest.approx([20, 40])
    half = constant(0.5)
    half[..., :8] += 0.2  # in half of the pixels: a mean square of 0.02
    assert psnr(constant(0.5), half).item() == pytest.approx(10 * math.log10(1 / 0.02))


def test_the_similarity_of_constants_is_the_luminance_with_k1_of_a_hundredth() -> None:
    """(2·0.001 + 0.01²) / (0.0004 + 0.0025 + 0.01²)."""
    assert ssim(constant(0.02), constant(0.05)).item() == pytest.approx(0.7, abs=1e-4)


def test_the_similarity_of_a_fine_wave_and_none_is_the_contrast_with_k2_of_three() -> None:
    """Of a checkerboard of size a about 0.5 the window's mean is 0.5 and its variance a²."""
    i, j = np.indices((32, 32))
    board = torch.from_numpy(0.5 + 0.05 * (-1.0) ** (i + j))[None, None]
    expected = 9e-4 / (0.05**2 + 9e-4)
    assert ssim(board, constant(0.5, 32)).item() == pytest.approx(expected, abs=2e-3)


def random_images(channels: int) -> Tensor:
    """Smooth along columns and not along rows, so that the axes differ: (2,C,24,30)."""
    noise = np.random.default_rng(0).random((2, channels, 24, 30))
    smooth = (noise + np.roll(noise, 1, 3) + np.roll(noise, 2, 3)) / 3
    return torch.from_numpy(smooth)


def test_the_blur_effect_is_scikit_image_s_at_the_worse_axis() -> None:
    images = random_images(1)
    expected = [skimage_blur_effect(image[0].numpy(), h_size=11) for image in images]
    both = [skimage_blur_effect(i[0].numpy(), h_size=11, reduce_func=None) for i in images]
    assert all(abs(one - other) > 0.05 for one, other in both)
    assert blur_effect(images).tolist() == pytest.approx(expected)
    assert blur_effect(images).tolist() == pytest.approx([max(pair) for pair in both])
    # Whichever axis it is.
    assert blur_effect(images.mT).tolist() == pytest.approx(expected)


def test_the_blur_effect_of_colours_is_that_of_their_mean() -> None:
    images = random_images(3)
    expected = [skimage_blur_effect(image.mean(dim=0).numpy(), h_size=11) for image in images]
    assert blur_effect(images).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(64, 64), (64, 40), (40, 64)])
def test_the_band_of_high_frequencies_begins_at_a_quarter_of_a_cycle_a_pixel(
    shape: tuple[int, int],
) -> None:
    height, width = shape
    power = 0.25**2 / 2 * height * width  # of a cosine of size 1/4, over all pixels
    for rows, columns, counted in [
        (height // 4, 0, True), (height // 4 - 1, 0, False),
        (0, width // 4, True), (0, width // 4 - 1, False),
        (height // 4 - 1, width // 4 - 1, True),  # by its length, not by the larger part
        (-height // 4, 1, True),
    ]:  # fmt: skip
        found = high_frequency_power(wave(shape, rows, columns)).item()
        assert found == pytest.approx(power if counted else 0, abs=1e-9)


def test_a_diagonal_of_just_a_quarter_counts_and_no_wave_just_below() -> None:
    assert high_frequency_power(wave((101, 20), 25, 0)).item() == pytest.approx(0, abs=1e-9)
    assert high_frequency_power(wave((101, 20), 26, 0)).item() == pytest.approx(0.03125 * 2020)
    assert high_frequency_power(wave((20, 20), 3, 4)).item() == pytest.approx(0.03125 * 400)


def test_half_the_size_of_a_wave_is_a_quarter_of_the_high_frequency_power() -> None:
    fine, coarse = wave((32, 48), 10, 0), wave((32, 48), 2, 3)
    half = 0.5 + (fine - 0.5) / 2
    assert high_frequency_ratio(fine, half) == pytest.approx(0.25)
    assert high_frequency_ratio(half, fine) == pytest.approx(4)
    mixed = 0.5 + (fine - 0.5) / 2 + (coarse - 0.5)
    assert high_frequency_ratio(mixed, half + 0.1) == pytest.approx(1)
    # The ratio of sums over the slices, and channels are averaged.
    assert high_frequency_ratio(torch.cat([fine, half]), half) == pytest.approx(0.25 / 0.625)
    both = torch.cat([fine, half], dim=1)
    assert high_frequency_power(both).item() == pytest.approx(0.625 * 0.03125 * 32 * 48)


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (25, 31)])
def test_a_wave_s_power_is_in_the_ring_of_its_frequency(shape: tuple[int, int]) -> None:
    side = min(shape)
    np.testing.assert_allclose(frequencies(*shape), np.arange(side // 2 + 1) / side)
    index = np.indices(shape)
    rows, columns = (np.fft.fftfreq(n)[i] for n, i in zip(shape, index, strict=True))
    ring = np.floor(np.hypot(rows, columns) * side + 0.5 + 1e-9)
    counts = [(ring == k).sum() for k in range(side // 2 + 1)]
    assert radial_counts(*shape).tolist() == counts
    k = 5
    along = wave(shape, k, 0) if shape[0] == side else wave(shape, 0, k)
    found = radial_power(along)[0].numpy()
    expected = np.zeros(side // 2 + 1)
    expected[0] = 0.25 * shape[0] * shape[1]
    expected[k] = 0.25**2 / 2 * shape[0] * shape[1] / counts[k]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_twice_the_power_is_a_spectrum_error_of_log_2() -> None:
    power = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert spectrum_error(power, 2 * power) == pytest.approx(math.log(2))
    assert spectrum_error(2 * power, power) == pytest.approx(math.log(2))
    changed = power * torch.tensor([[1.0, 1.0, 1.0, 0.5]])
    assert spectrum_error(power, changed) == pytest.approx(math.log(2) / 4)


def test_the_gradient_of_a_ramp_is_its_slope() -> None:
    i, j = np.indices((12, 20))
    for rows, columns in [(0.03, 0.0), (0.0, 0.04), (0.03, 0.04), (-0.03, 0.04)]:
        ramp = torch.from_numpy(0.35 + rows * i + columns * j)[None, None].clamp(-9, 9)
        ramp = ramp - ramp.min()
        found = gradient_magnitude(ramp / 2).item()
        assert found == pytest.approx(math.hypot(rows, columns) / 2)


def test_the_frechet_distance_of_two_gaussians_by_hand() -> None:
    """Moved by (3, 4): 25. Twice as wide about one mean: tr(S + 4S − 4S) = tr S, S over n − 1."""
    data = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]], dtype=torch.float64)
    assert frechet_distance(data, data + torch.tensor([3.0, 4.0])) == pytest.approx(25)
    assert frechet_distance(data, 2 * data) == pytest.approx((2 + 8) / 3, abs=1e-6)


def test_the_kernel_distance_of_two_pairs_by_hand() -> None:
    """(xᵀy/2 + 1)³: 1 within both pairs, 8, 8, 8 and 0 across: 1 + 1 − 2·6."""
    data = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    other = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert kernel_distance(data, other) == pytest.approx(-10)


def test_the_interval_of_three_families_by_hand() -> None:
    """Mean 2, deviation 1: 2 ± 4.3027/√3, the quantile of t with two degrees of freedom."""
    found = over_families(np.array([1.0, 2.0, 2.5, 3.5]), ["a", "b", "c", "c"])
    assert found["mean"] == pytest.approx(2)
    assert found["high"] == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert found["low"] == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)


def test_the_rim_is_two_pixels_wide_and_thirds_are_by_intensity() -> None:
    images = np.zeros((1, 1, 14, 15))
    images[0, 0, 2:12, 2:13] = 0.9
    inner = np.arange(42).reshape(6, 7) / 100 + 0.1
    images[0, 0, 4:10, 4:11] = inner
    found = regions(images)
    assert found["brain"].sum() == 110
    assert found["interior"].sum() == 42 and found["interior"][0, 4:10, 4:11].all()
    assert found["rim"].sum() == 110 - 42
    dark = found["dark third"][0, 4:10, 4:11]
    np.testing.assert_array_equal(dark, inner < 0.235)  # 14 of 42: 0.10 … 0.23
    assert found["bright third"].sum() == found["middle third"].sum() == 14
    whole = regions(np.ones((2, 3, 8, 8)))  # a photograph has no surround
    assert not whole["rim"].any() and whole["interior"].all()


def test_intensities_go_back_to_the_scanner_s_unit_and_dark_is_0() -> None:
    image = np.array([0.0, 0.001, 0.003, 0.5, 1.0])  # half a level of 256 is 0.00196
    np.testing.assert_allclose(to_scanner(image, 100, 900), [0, 0, 102.4, 500, 900])
    found = to_scanner(torch.from_numpy(image), 100, 900)
    np.testing.assert_allclose(found, [0, 0, 102.4, 500, 900])
