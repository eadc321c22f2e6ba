"""Laws of blur effect and power spectra."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pipeline.metrics import sharpness

SHAPES = st.tuples(
    st.integers(1, 2), st.sampled_from([1, 3]), st.integers(4, 17), st.integers(4, 17)
)


def _images(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="wrap"))


def _full(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """numpy's full spectrum, (B,H,W), and radii, (H,W)."""
    power = np.abs(np.fft.fft2(images.numpy(), norm="ortho")) ** 2
    height, width = images.shape[-2:]
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    return power.mean(axis=1), radius


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_all_power_is_the_sum_of_squares(shape: tuple[int, ...], seed: int) -> None:
    images = _images(*shape, seed=seed)
    expected = images.square().sum(dim=(2, 3)).mean(dim=1)
    torch.testing.assert_close(sharpness.high_frequency_power(images, cutoff=0.0), expected)


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES)
def test_half_spectrum_agrees_with_numpys_full_one(shape: tuple[int, ...]) -> None:
    images = _images(*shape)
    power, radius = _full(images)
    high = power[:, radius >= 0.25 - 1e-9].sum(axis=1)
    np.testing.assert_allclose(sharpness.high_frequency_power(images).numpy(), high, rtol=1e-10)

    rings = sharpness.radial_power(images).numpy()
    side = min(shape[-2:])
    nearest = np.floor(radius * side + 0.5 + 1e-9)
    assert rings.shape == (shape[0], side // 2 + 1)
    for k in range(side // 2 + 1):
        np.testing.assert_allclose(rings[:, k], power[:, nearest == k].mean(axis=1), rtol=1e-10)


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (8, 11), (11, 8)])
def test_rings_and_corners_together_hold_all_power(shape: tuple[int, int]) -> None:
    images = _images(2, 3, *shape)
    counts = sharpness.radial_counts(*shape)
    rings = (sharpness.radial_power(images) * counts).sum(dim=1)
    power, radius = _full(images)
    side = min(shape)
    corners = power[:, np.floor(radius * side + 0.5 + 1e-9) > side // 2].sum(axis=1)
    total = sharpness.high_frequency_power(images, cutoff=0.0)
    torch.testing.assert_close(rings + torch.from_numpy(corners), total)


@pytest.mark.parametrize("k", [1, 4, 7, 16])
def test_a_wave_has_its_power_at_its_frequency(k: int) -> None:
    wave = 0.5 + 0.5 * torch.cos(2 * math.pi * k / 32 * torch.arange(32, dtype=torch.float64))
    power = sharpness.radial_power(wave.expand(1, 1, 32, 32))[0]
    assert power[1:].argmax().item() + 1 == k
    assert sharpness.frequencies(32, 32)[k].item() == k / 32


def test_white_noise_has_its_variance_at_every_size() -> None:
    for side in (32, 65):
        images = _images(8, 1, side, side)
        assert sharpness.radial_power(images)[:, 4:].mean().item() == pytest.approx(1 / 12, rel=0.1)


def test_a_frequency_on_the_cutoff_counts() -> None:
    """0.15 and 0.20 give 0.25 but for rounding; 1/4 of an axis gives it exactly."""
    axis = torch.arange(20, dtype=torch.float64)
    wave = 0.5 + 0.4 * torch.cos(2 * math.pi * (0.15 * axis[:, None] + 0.2 * axis[None, :]))
    power = sharpness.high_frequency_power(wave[None, None]).item()
    assert power == pytest.approx(400 * 0.4**2 / 2)


def test_ratio_of_data_with_itself_is_one_and_error_zero() -> None:
    images = _images(3, 1, 16, 16)
    assert sharpness.high_frequency_ratio(images, images) == 1.0
    power = sharpness.radial_power(images)
    assert sharpness.spectrum_error(power, power) == 0.0


def test_more_blur_lowers_the_ratio_and_raises_blur_effect_and_error() -> None:
    images = _images(3, 1, 32, 32)
    versions = [images, *(_blurred(images, sigma) for sigma in (0.5, 1.0, 2.0))]
    ratios = [sharpness.high_frequency_ratio(images, version) for version in versions]
    effects = [sharpness.blur_effect(version).mean().item() for version in versions]
    data = sharpness.radial_power(images)
    errors = [sharpness.spectrum_error(data, sharpness.radial_power(v)) for v in versions]
    assert ratios == sorted(ratios, reverse=True) and len(set(ratios)) == 4
    assert effects == sorted(effects) and len(set(effects)) == 4
    assert errors == sorted(errors) and len(set(errors)) == 4


def test_ratio_is_of_sums_so_an_empty_slice_does_not_rule() -> None:
    images = torch.cat([_images(1, 1, 16, 16), 1e-3 * _images(1, 1, 16, 16, seed=1)])
    halved = torch.stack([images[0], torch.zeros(1, 16, 16, dtype=torch.float64)])
    assert sharpness.high_frequency_ratio(images, halved) == pytest.approx(1.0, abs=1e-5)


def test_ratio_of_unequal_batches_compares_means() -> None:
    images = _images(2, 1, 16, 16)
    assert sharpness.high_frequency_ratio(images, images.repeat(3, 1, 1, 1)) == pytest.approx(1.0)


def test_halving_intensity_is_an_error_of_log_four_and_symmetric() -> None:
    images = _images(2, 1, 16, 16)
    data, half = sharpness.radial_power(images), sharpness.radial_power(images / 2)
    assert sharpness.spectrum_error(data, half) == pytest.approx(math.log(4))
    assert sharpness.spectrum_error(half, data) == pytest.approx(math.log(4))


def test_no_power_at_all_gives_finite_numbers_or_an_error() -> None:
    black, images = torch.zeros(1, 1, 16, 16), _images(1, 1, 16, 16).float()
    assert math.isfinite(
        sharpness.spectrum_error(sharpness.radial_power(images), sharpness.radial_power(black))
    )
    assert sharpness.high_frequency_ratio(images, black) == 0.0
    with pytest.raises(ValueError, match="undefined"):
        sharpness.high_frequency_ratio(black, images)


@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (0, 0)])
def test_an_image_flat_along_an_axis_has_a_finite_blur_effect(direction: tuple[int, int]) -> None:
    ramp = torch.linspace(0, 1, 16)
    image = 0.5 * (direction[0] * ramp[:, None] + direction[1] * ramp[None, :]).expand(16, 16)
    value = sharpness.blur_effect(image[None, None]).item()
    assert 0.0 <= value <= 1.0


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        sharpness.high_frequency_ratio(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 9, 9))
    with pytest.raises(ValueError, match="4x4"):
        sharpness.blur_effect(torch.zeros(1, 1, 3, 8))
    with pytest.raises(ValueError, match="different bins"):
        sharpness.spectrum_error(torch.ones(1, 4), torch.ones(1, 5))
    with pytest.raises(ValueError, match="n_bins"):
        sharpness.spectrum_error(torch.ones(4), torch.ones(4))
    for metric in (sharpness.radial_power, sharpness.high_frequency_power, sharpness.blur_effect):
        with pytest.raises(ValueError, match="0,1"):
            metric(torch.full((1, 1, 8, 8), 2.0))
        with pytest.raises(ValueError, match="B,C,H,W"):
            metric(torch.zeros(8, 8))


def test_the_gradient_of_a_ramp_is_its_slope_in_any_direction() -> None:
    axis = torch.arange(9, dtype=torch.float64)
    for down, right in ((0.05, 0.0), (0.0, 0.1), (0.03, 0.04)):
        ramp = (down * axis[:, None] + right * axis[None, :])[None, None]
        assert sharpness.gradient_magnitude(ramp).item() == pytest.approx(math.hypot(down, right))


def test_gradients_agree_with_scikit_image_away_from_the_border() -> None:
    from skimage.filters import sobel_h, sobel_v

    images = _images(2, 3, 11, 14)
    planes = images.numpy()
    expected = [
        np.mean([np.hypot(sobel_h(p), sobel_v(p))[1:-1, 1:-1].mean() for p in image])
        for image in planes
    ]
    # scikit-image divides by 4 without the distance of 2 pixels between both sides.
    np.testing.assert_allclose(sharpness.gradient_magnitude(images), np.array(expected) / 2)


def _gradient_ratio(images: Tensor, other: Tensor) -> float:
    """As an evaluation takes it."""
    measure = sharpness.RATIOS["gradient_magnitude_ratio"]
    return sharpness.ratio_of_means(measure(images), measure(other))


def test_gradient_ratio_is_one_for_the_data_falls_with_blur_and_scales_with_contrast() -> None:
    images = _images(3, 1, 32, 32)
    versions = [images, *(_blurred(images, sigma) for sigma in (0.5, 1.0, 2.0))]
    ratios = [_gradient_ratio(images, version) for version in versions]
    assert ratios[0] == 1.0 and ratios == sorted(ratios, reverse=True) and len(set(ratios)) == 4
    assert _gradient_ratio(images, images / 2) == pytest.approx(0.5)
    assert _gradient_ratio(images, images.repeat(3, 1, 1, 1)) == pytest.approx(1)


def test_gradient_ratio_refuses_what_has_none() -> None:
    flat, images = torch.full((1, 1, 8, 8), 0.5), _images(1, 1, 8, 8).float()
    assert _gradient_ratio(images, flat) == 0.0
    with pytest.raises(ValueError, match="undefined"):
        _gradient_ratio(flat, images)
    with pytest.raises(ValueError, match="3x3"):
        sharpness.gradient_magnitude(torch.zeros(1, 1, 2, 8))
    with pytest.raises(ValueError, match="0,1"):
        sharpness.gradient_magnitude(torch.full((1, 1, 8, 8), 2.0))
