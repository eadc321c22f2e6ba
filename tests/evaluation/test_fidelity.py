"""Laws of PSNR and SSIM."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from pipeline.metrics.fidelity import brain_psnr, check_pair, psnr, ssim


def _images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_identical_images_reach_the_cap_and_one() -> None:
    image = _images(3, 1, 16, 16)
    assert psnr(image, image).tolist() == [100.0] * 3
    torch.testing.assert_close(ssim(image, image), torch.ones(3, dtype=torch.float64))


@settings(deadline=None, max_examples=20)
@given(error=st.floats(1e-4, 0.5), batch=st.integers(1, 3), channels=st.sampled_from([1, 3]))
def test_psnr_of_a_constant_error_is_its_level_in_decibel(
    error: float, batch: int, channels: int
) -> None:
    image = torch.zeros(batch, channels, 5, 7, dtype=torch.float64)
    values = psnr(image, image + error)
    assert values.shape == (batch,)
    assert values[0].item() == pytest.approx(-20.0 * math.log10(error), rel=1e-6)


def test_brain_psnr_is_psnr_without_the_surround() -> None:
    image = _images(1, 3, 12, 12).clamp(min=0.01)
    made = (image + 0.1).clamp(max=1)
    padded, drawn = torch.zeros(2, 1, 3, 20, 20)
    padded[..., :12, :12], drawn[..., :12, :12] = image, made
    drawn[..., 15:, 15:] = 0.3  # an error outside the brain
    assert brain_psnr(padded, drawn).item() == pytest.approx(psnr(image, made).item(), rel=1e-6)
    assert brain_psnr(image, made).item() == pytest.approx(psnr(image, made).item(), rel=1e-6)
    assert brain_psnr(torch.zeros_like(image), made).isnan().all()


def test_each_image_is_scored_alone() -> None:
    image, other = _images(4, 3, 20, 17), _images(4, 3, 20, 17, seed=1)
    for metric in (psnr, ssim):
        alone = torch.cat([metric(image[i : i + 1], other[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(metric(image, other), alone, rtol=1e-4, atol=1e-5)


def test_ssim_agrees_with_scikit_image() -> None:
    """On images with a black margin, as brains have: the two treat the border differently."""
    image = _images(1, 1, 24, 20)
    other = (image + 0.2 * _images(1, 1, 24, 20, seed=1)).clamp(0, 1)
    image, other = (torch.nn.functional.pad(x, (12, 12, 12, 12)) for x in (image, other))
    _, similarity = structural_similarity(
        image[0, 0].numpy(),
        other[0, 0].numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert ssim(image, other).item() == pytest.approx(float(similarity.mean()), abs=1e-5)


@pytest.mark.parametrize(
    ("image", "reconstruction", "words"),
    [
        (torch.zeros(2, 8, 8), torch.zeros(2, 8, 8), "B,C,H,W"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, 1, 8, 8), "empty"),
        (torch.zeros(1, 1, 8, 8).int(), torch.zeros(1, 1, 8, 8).int(), "floating"),
        (torch.full((1, 1, 8, 8), 255.0), torch.zeros(1, 1, 8, 8), r"\[0,1\]"),
        (torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), -0.1), "reconstruction must lie"),
        (torch.full((1, 1, 8, 8), np.nan), torch.zeros(1, 1, 8, 8), "nan"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(1, 1, 8, 8), "shape"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8).double(), "dtype"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    image: torch.Tensor, reconstruction: torch.Tensor, words: str
) -> None:
    for check in (check_pair, psnr, ssim):
        with pytest.raises(ValueError, match=words):
            check(image, reconstruction)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11x11"):
        ssim(torch.zeros(1, 1, 16, 10), torch.zeros(1, 1, 16, 10))
