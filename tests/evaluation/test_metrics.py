"""Laws of PSNR, SSIM, blur effect and power spectra beside the formulas in conventions."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.metrics import sharpness
from pipeline.metrics.fidelity import brain_psnr, check_pair, psnr, ssim


def _images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_identical_images_reach_the_cap_and_one() -> None:
    image = _images(3, 1, 16, 16)
    assert psnr(image, image).tolist() == [100.0] * 3
    torch.testing.assert_close(ssim(image, image), torch.ones(3, dtype=torch.float64))


def test_brain_psnr_is_psnr_without_the_surround() -> None:
    image = _images(1, 3, 12, 12).clamp(min=0.01)
    made = (image + 0.1).clamp(max=1)
    padded, drawn = torch.zeros(2, 1, 3, 20, 20, dtype=torch.float64)
    padded[..., :12, :12], drawn[..., :12, :12] = image, made
    drawn[..., 15:, 15:] = 0.3  # an error outside the brain
    for pair in ((padded, drawn), (image, made)):
        assert brain_psnr(*pair).item() == pytest.approx(psnr(image, made).item(), rel=1e-6)
    assert brain_psnr(torch.zeros_like(image), made).isnan().all()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_each_image_is_scored_alone(metric: Callable[..., torch.Tensor]) -> None:
    image, other = _images(4, 3, 20, 17), _images(4, 3, 20, 17, seed=1)
    alone = torch.cat([metric(image[i : i + 1], other[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(metric(image, other), alone, rtol=1e-4, atol=1e-5)


ZEROS = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("image", "reconstruction", "words"),
    [
        (torch.zeros(2, 8, 8), torch.zeros(2, 8, 8), "B,C,H,W"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, 1, 8, 8), "empty"),
        (ZEROS.int(), ZEROS.int(), "floating"),
        (ZEROS + 255, ZEROS, r"\[0,1\]"),
        (ZEROS, ZEROS - 0.1, "reconstruction must lie"),
        (ZEROS * np.nan, ZEROS, "nan"),
        (torch.zeros(2, 1, 8, 8), ZEROS, "shape"),
        (ZEROS, ZEROS.double(), "dtype"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(
    image: torch.Tensor, reconstruction: torch.Tensor, words: str
) -> None:
    for check in (check_pair, psnr, ssim):
        with pytest.raises(ValueError, match=words):
            check(image, reconstruction)


@pytest.mark.parametrize("shape", [(8, 8), (9, 7), (8, 11), (11, 8)])
def test_all_power_is_the_sum_of_squares(shape: tuple[int, int]) -> None:
    images = _images(2, 3, *shape)
    expected = images.square().sum(dim=(2, 3)).mean(dim=1)
    torch.testing.assert_close(sharpness.high_frequency_power(images, cutoff=0.0), expected)


def _gradient_ratio(images: torch.Tensor, other: torch.Tensor) -> float:
    measure = sharpness.RATIOS["gradient_magnitude_ratio"]
    return sharpness.ratio_of_means(measure(images), measure(other))


def test_more_blur_lowers_the_ratios_and_raises_blur_effect_and_error() -> None:
    images = _images(3, 1, 32, 32)
    blurs = [gaussian_filter(images.numpy(), (0, 0, s, s), mode="wrap") for s in (0.5, 1.0, 2.0)]
    versions = [images, *map(torch.from_numpy, blurs)]
    data = sharpness.radial_power(images)
    rows = [
        [-sharpness.high_frequency_ratio(images, version) for version in versions],
        [-_gradient_ratio(images, version) for version in versions],
        [sharpness.blur_effect(version).mean().item() for version in versions],
        [sharpness.spectrum_error(data, sharpness.radial_power(v)) for v in versions],
    ]
    assert [row[0] for row in rows[:2]] == [-1.0, -1.0] and rows[3][0] == 0.0
    assert all(row == sorted(row) and len(set(row)) == 4 for row in rows)


@pytest.mark.parametrize("ratio", [sharpness.high_frequency_ratio, _gradient_ratio])
def test_ratios_are_of_means_and_undefined_where_the_data_have_none(
    ratio: Callable[..., float],
) -> None:
    images = _images(2, 1, 16, 16)
    assert ratio(images, images.repeat(3, 1, 1, 1)) == pytest.approx(1.0)
    faint = torch.cat([images[:1], 1e-3 * images[1:]])  # a nearly empty slice does not rule
    halved = torch.stack([faint[0], torch.zeros_like(faint[0])])
    assert ratio(faint, halved) == pytest.approx(1.0, abs=2e-3)
    flat = torch.zeros_like(images)
    assert ratio(images, flat) == 0.0
    with pytest.raises(ValueError, match="undefined"):
        ratio(flat, images)
    assert math.isfinite(
        sharpness.spectrum_error(sharpness.radial_power(images), sharpness.radial_power(flat))
    )


@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (0, 0)])
def test_an_image_flat_along_an_axis_has_a_finite_blur_effect(direction: tuple[int, int]) -> None:
    ramp = torch.linspace(0, 1, 16)
    image = 0.5 * (direction[0] * ramp[:, None] + direction[1] * ramp[None, :]).expand(16, 16)
    assert 0.0 <= sharpness.blur_effect(image[None, None]).item() <= 1.0


def test_wrong_shapes_are_refused() -> None:
    for words, call in {
        "11x11": lambda: ssim(torch.zeros(1, 1, 16, 10), torch.zeros(1, 1, 16, 10)),
        "one size": lambda: sharpness.high_frequency_ratio(ZEROS, torch.zeros(1, 1, 9, 9)),
        "4x4": lambda: sharpness.blur_effect(torch.zeros(1, 1, 3, 8)),
        "3x3": lambda: sharpness.gradient_magnitude(torch.zeros(1, 1, 2, 8)),
        "equal bins": lambda: sharpness.spectrum_error(torch.ones(1, 4), torch.ones(1, 5)),
        "n_bins": lambda: sharpness.spectrum_error(torch.ones(4), torch.ones(4)),
    }.items():
        with pytest.raises(ValueError, match=words):
            call()
    for metric in (*sharpness.RATIOS.values(), sharpness.radial_power, sharpness.blur_effect):
        with pytest.raises(ValueError, match="0,1"):
            metric(ZEROS + 2)
