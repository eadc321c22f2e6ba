"""Radial bins: which frequency is in which, and that each counts as often as it stands there."""

import pytest
import torch

from pipeline.blur.radial import RadialBins


def test_a_bin_is_the_rounded_distance_from_the_origin() -> None:
    index = RadialBins(16, 16).index
    assert index[0, 0] == 0
    assert index[0, 5] == index[5, 0] == index[-5, 0] == index[3, 4] == 5
    wide = RadialBins(8, 16).index  # in steps of the longer side's frequencies
    assert wide[0, 4] == 4 == wide[2, 0]


@pytest.mark.parametrize("shape", [(8, 8), (7, 6), (6, 7), (5, 9)])
def test_means_are_those_of_the_full_spectrum(shape: tuple[int, int]) -> None:
    bins = RadialBins(*shape)
    assert bins.counts.sum() == shape[0] * shape[1]
    image = torch.randn(3, 2, *shape, dtype=torch.float64)
    half = torch.fft.rfft2(image, norm="ortho").abs().square()
    full = torch.fft.fft2(image, norm="ortho").abs().square()
    frequency = torch.hypot(*torch.meshgrid(*map(torch.fft.fftfreq, shape), indexing="ij"))
    radius = (frequency * max(shape)).round()
    expected = [full[..., radius == value].mean() for value in radius.unique()]
    found = bins.mean(half)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)
    # Parseval: the mean over all frequencies is the mean square of the image.
    torch.testing.assert_close(bins.average(found), image.square().mean(), rtol=1e-12, atol=0)
    assert bins.spread(found).shape == (1, 1, shape[0], shape[1] // 2 + 1)
