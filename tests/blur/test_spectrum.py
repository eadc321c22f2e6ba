"""Transfer function and precision spectrum."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.blur.spectrum import (
    POWER_FLOOR,
    half_spectrum,
    half_spectrum_sum,
    power,
    precision,
    transfer_function,
)

sides = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)


def _softmax_kernel(side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(side * side, generator=generator, dtype=torch.float64)
    return logits.softmax(0).reshape(1, 1, side, side)


@given(st.sampled_from([1, 3, 5]), st.integers(5, 12), st.integers(5, 12), seeds)
def test_a_kernel_that_sums_to_one_keeps_the_mean(
    side: int, height: int, width: int, seed: int
) -> None:
    transfer = transfer_function(_softmax_kernel(side, seed), (height, width))
    assert transfer.shape == (1, 1, height, width // 2 + 1)
    assert transfer[0, 0, 0, 0].item() == pytest.approx(1.0, abs=1e-12)
    assert transfer.abs().max().item() <= 1 + 1e-12


@given(st.sampled_from([1, 3, 5]), st.integers(5, 12), st.integers(5, 12))
def test_a_centred_delta_changes_nothing(side: int, height: int, width: int) -> None:
    delta = torch.zeros(1, 1, side, side, dtype=torch.float64)
    delta[..., side // 2, side // 2] = 1.0
    transfer = transfer_function(delta, (height, width))
    torch.testing.assert_close(transfer, torch.ones_like(transfer), rtol=0, atol=1e-12)


def test_the_transfer_function_is_the_sum_over_offsets_from_the_centre() -> None:
    kernel = _softmax_kernel(3)
    found = transfer_function(kernel, (5, 6))[0, 0].numpy()
    for u in range(5):
        for v in range(4):
            expected = sum(
                kernel[0, 0, i, j].item()
                * np.exp(-2j * math.pi * (u * (i - 1) / 5 + v * (j - 1) / 6))
                for i in range(3)
                for j in range(3)
            )
            assert found[u, v] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("form", ["wiener", "positive_definite"])
def test_the_precision_does_not_see_where_the_kernel_sits(form: str) -> None:
    kernel = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    kernel[..., 1:4, 1:4] = _softmax_kernel(3)
    moved = kernel.roll((1, -1), dims=(-2, -1))
    here, there = transfer_function(kernel, (8, 7)), transfer_function(moved, (8, 7))
    assert (here - there).abs().max() > 0.1
    left, right = (precision(t, 0.025, form) for t in (here, there))  # type: ignore[arg-type]
    torch.testing.assert_close(left, right, rtol=1e-10, atol=0)


def test_the_literal_precision_peaks_where_the_power_is_the_constant() -> None:
    constant = 0.04
    modulus = torch.linspace(0, 1, 1001, dtype=torch.float64)[None, None, None]
    found = precision(modulus.to(torch.complex128), constant)[0, 0, 0]
    assert modulus.flatten()[found.argmax()].item() == pytest.approx(math.sqrt(constant))
    assert found.max().item() == pytest.approx(1 / (4 * constant))


def test_the_positive_definite_precision_falls_with_the_power() -> None:
    modulus = torch.linspace(0.01, 1, 100, dtype=torch.float64).to(torch.complex128)
    found = precision(modulus[None, None, None], 0.025, "positive_definite").flatten()
    assert (found.diff() < 0).all()


def test_a_lost_frequency_has_the_precision_of_the_floor() -> None:
    lost = torch.zeros(1, 1, 2, 2, dtype=torch.complex128)
    wiener, definite = precision(lost, 0.025), precision(lost, 0.025, "positive_definite")
    assert wiener.flatten().tolist() == pytest.approx(
        [POWER_FLOOR / (POWER_FLOOR + 0.025) ** 2] * 4
    )
    assert definite.flatten().tolist() == pytest.approx([1 / (POWER_FLOOR + 0.025)] * 4)


@given(sides, sides, st.integers(1, 3), seeds)
def test_the_half_spectrum_sums_to_the_full_one(
    height: int, width: int, channels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)
    found = half_spectrum_sum(power(half_spectrum(image)), width)
    full = torch.fft.fft2(image, norm="ortho").abs().square().sum(dim=(-2, -1))
    torch.testing.assert_close(found, full, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, image.square().sum(dim=(-2, -1)), rtol=1e-10, atol=1e-12)


def test_float32_is_close_to_float64() -> None:
    kernel = _softmax_kernel(5)
    wide, narrow = (transfer_function(k, (32, 31)) for k in (kernel, kernel.float()))
    assert narrow.dtype == torch.complex64
    torch.testing.assert_close(narrow.to(torch.complex128), wide, rtol=0, atol=1e-6)


def test_power_is_float32_for_half_precision_and_under_autocast() -> None:
    image = torch.rand(1, 1, 8, 8)
    expected = power(half_spectrum(image))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(power(half_spectrum(image)), expected)
    assert power(half_spectrum(image.bfloat16())).dtype == torch.float32


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ((1, 1, 4, 4), "odd"),
        ((1, 1, 9, 9), "at most 8"),
        ((1, 1, 3, 5), r"\(B,1,s,s\)"),
        ((1, 3, 3, 3), r"\(B,1,s,s\)"),
        ((3, 3), r"\(B,1,s,s\)"),
    ],
    ids=str,
)
def test_a_kernel_of_another_shape_is_refused(kernel: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        transfer_function(torch.ones(kernel), (8, 10))


def test_a_constant_of_zero_and_another_form_are_refused() -> None:
    transfer = torch.ones(1, 1, 2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match="constant"):
        precision(transfer, 0.0)
    with pytest.raises(ValueError, match="wiener or positive_definite"):
        precision(transfer, 0.1, "winer")  # type: ignore[arg-type]
