"""Kernels of the kernel network are kernels, and at first they blur hardly at all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.blur.kernel_loss import kernel_width
from pipeline.blur.spectrum import transfer_function
from pipeline.models.config import Level, ModelConfig, describe_levels
from pipeline.models.kernel_network import KernelNetwork

VECTOR = [Level(1, 7)]
FINE = [Level(16, 2)]
SOME = [Level(4, 3), Level(8, 2, groups=2), Level(32, 1)]


def _network(side: int, levels: list[Level]) -> KernelNetwork:
    return KernelNetwork(side, ModelConfig(levels=levels, kernel_hidden=16))


def _size(levels: list[Level]) -> int:
    return ModelConfig(levels=levels).latent_size


@pytest.mark.parametrize("levels", [VECTOR, [Level(4, 3)], FINE, SOME], ids=describe_levels)
@given(magnitude=st.floats(0, 100), seed=st.integers(0, 1000))
def test_a_kernel_is_non_negative_and_sums_to_one(
    levels: list[Level], magnitude: float, seed: int
) -> None:
    torch.manual_seed(seed)
    kernel = _network(5, levels)(magnitude * torch.randn(3, _size(levels)))
    assert kernel.shape == (3, 1, 5, 5)
    assert kernel.min() >= 0
    assert kernel.sum(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("side", [3, 11, 41])
@pytest.mark.parametrize(
    "levels", [[Level(1, 64)], [Level(8, 16)], ModelConfig().levels], ids=describe_levels
)
def test_at_first_it_is_peaked_and_loses_no_frequency(side: int, levels: list[Level]) -> None:
    kernel = _network(side, levels)(torch.randn(16, _size(levels)))
    peaks = kernel.flatten(1).argmax(dim=1)
    assert (peaks == side**2 // 2).all()
    assert transfer_function(kernel, (64, 64)).abs().min() > 0.5
    assert kernel_width(kernel).max() < 1.0


@pytest.mark.parametrize("levels", [VECTOR, FINE, SOME], ids=describe_levels)
def test_every_weight_of_it_gets_a_gradient(levels: list[Level]) -> None:
    network = _network(5, levels)
    network(torch.randn(4, _size(levels)))[:, 0, 0, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_sides_above_8_are_averaged_to_8_and_others_left() -> None:
    """What the hidden layer sees: its weights do not grow with the image's area."""
    network = _network(5, [Level(4, 3), Level(8, 1), Level(32, 2)])
    assert network.body[0].in_features == 3 * 4 * 4 + 8 * 8 + 2 * 8 * 8
    latent = torch.randn(2, 48 + 64 + 2048)
    seen: list[torch.Tensor] = []
    network.body[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(latent)
    means = latent[:, 112:].reshape(2, 2, 8, 4, 8, 4).mean(dim=(3, 5))  # of 4×4 numbers each
    torch.testing.assert_close(seen[0], torch.cat([latent[:, :112], means.flatten(1)], dim=1))


def test_detail_within_an_averaged_cell_leaves_the_kernel() -> None:
    network, latent = _network(5, FINE), torch.randn(1, 512)
    swapped = latent.reshape(1, 2, 16, 16).clone()
    swapped[..., 2, 4], swapped[..., 3, 5] = swapped[..., 3, 5].clone(), swapped[..., 2, 4].clone()
    torch.testing.assert_close(network(swapped.flatten(1)), network(latent), rtol=1e-5, atol=1e-7)
    swapped[..., 2, 4] += 1.0
    assert (network(swapped.flatten(1)) - network(latent)).abs().max() > 1e-5


def test_half_precision_around_it_does_not_reach_the_kernel() -> None:
    network = _network(11, VECTOR)
    latent = torch.randn(2, 7)
    expected = network(latent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(latent), expected)
    assert expected.min() > 0


@pytest.mark.parametrize("side", [0, 4, -3])
def test_an_even_kernel_is_refused(side: int) -> None:
    with pytest.raises(ValueError, match="odd"):
        _network(side, VECTOR)
