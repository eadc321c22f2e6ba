"""Kernels of the kernel network are kernels, and at first they blur hardly at all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.blur.kernel_loss import kernel_width
from pipeline.blur.spectrum import transfer_function
from pipeline.models.config import ModelConfig
from pipeline.models.kernel_network import KernelNetwork


def _network(side: int, latent: list[int]) -> KernelNetwork:
    return KernelNetwork(side, ModelConfig(latent=latent, kernel_hidden=16))


@pytest.mark.parametrize("latent", [[7], [3, 4, 4], [2, 16, 16]], ids=str)
@given(magnitude=st.floats(0, 100), seed=st.integers(0, 1000))
def test_a_kernel_is_non_negative_and_sums_to_one(
    latent: list[int], magnitude: float, seed: int
) -> None:
    torch.manual_seed(seed)
    kernel = _network(5, latent)(magnitude * torch.randn(3, *latent))
    assert kernel.shape == (3, 1, 5, 5)
    assert kernel.min() >= 0
    assert kernel.sum(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("side", [3, 11, 41])
@pytest.mark.parametrize("latent", [[64], [16, 8, 8]], ids=str)
def test_at_first_it_is_peaked_and_loses_no_frequency(side: int, latent: list[int]) -> None:
    kernel = _network(side, latent)(torch.randn(16, *latent))
    peaks = kernel.flatten(1).argmax(dim=1)
    assert (peaks == side**2 // 2).all()
    assert transfer_function(kernel, (64, 64)).abs().min() > 0.5
    assert kernel_width(kernel).max() < 1.0


def test_every_weight_of_it_gets_a_gradient() -> None:
    network = _network(5, [2, 16, 16])
    network(torch.randn(4, 2, 16, 16))[:, 0, 0, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_half_precision_around_it_does_not_reach_the_kernel() -> None:
    network = _network(11, [7])
    latent = torch.randn(2, 7)
    expected = network(latent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(latent), expected)
    assert expected.min() > 0


@pytest.mark.parametrize("side", [0, 4, -3])
def test_an_even_kernel_is_refused(side: int) -> None:
    with pytest.raises(ValueError, match="odd"):
        _network(side, [7])
