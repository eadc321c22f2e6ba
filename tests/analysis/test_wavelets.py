"""Wavelet sparsity: the transform is orthonormal, the minimum is one."""

import pytest
import torch

from pipeline.analysis.inverse.operators import Identity
from pipeline.analysis.inverse.wavelets import shrink, solve_wavelets


@pytest.mark.parametrize("shape", [(32, 32), (64, 48)])
@pytest.mark.parametrize("shift", [(0, 0), (3, 5)])
def test_no_threshold_is_identity(shape: tuple[int, int], shift: tuple[int, int]) -> None:
    image = torch.rand(2, 1, *shape, dtype=torch.float64)
    torch.testing.assert_close(shrink(image, 0.0, shift), image, rtol=0, atol=1e-10)


def test_the_transform_is_orthonormal() -> None:
    """Then the details that are lost have the length of what the image loses."""
    noise = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    kept = shrink(noise, 1e9)  # the coarse part alone, a projection
    torch.testing.assert_close(shrink(kept, 1e9), kept, rtol=0, atol=1e-10)
    lost = noise - kept
    assert (lost * kept).sum().abs() < 1e-8 * noise.square().sum()


def test_a_constant_image_is_as_it_was() -> None:
    flat = torch.full((1, 1, 32, 32), 0.4)
    torch.testing.assert_close(solve_wavelets(Identity(), flat, 0.1, torch.zeros_like(flat)), flat)


def test_noise_is_less_and_an_edge_stays() -> None:
    clean = torch.full((1, 1, 64, 64), 0.2)
    clean[..., 20:44, 16:48] = 0.8
    generator = torch.Generator().manual_seed(0)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    found = solve_wavelets(Identity(), noisy, 0.2, noisy)
    assert (found - clean).square().mean() < 0.3 * (noisy - clean).square().mean()
    assert found.min() >= 0 and found.max() <= 1
    with pytest.raises(ValueError, match="negative"):
        solve_wavelets(Identity(), noisy, -1.0, noisy)
