"""Every forward operator and its adjoint: ⟨Ax, y⟩ = ⟨x, A*y⟩ in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.analysis.inverse.masks import cartesian_mask
from pipeline.analysis.inverse.operators import (
    Composed,
    Downsampling,
    GaussianBlur,
    Identity,
    MaskedFourier,
    Operator,
    Within,
    complex_noise,
    smooth_phase,
    smooth_sensitivities,
)

SHAPES = [(12, 12), (9, 12), (12, 9), (15, 9)]
Make = Callable[[tuple[int, int]], Operator]


def _mask(shape: tuple[int, int]) -> Tensor:
    return cartesian_mask(shape, 2, 0.2).double()


def _coils(shape: tuple[int, int]) -> Tensor:
    return smooth_sensitivities(3, shape).to(torch.complex128)


def _phases(shape: tuple[int, int]) -> Tensor:
    phase = smooth_phase(shape, 1.5).double()
    return torch.stack([_coils(shape), torch.polar(torch.ones_like(phase), phase) * _coils(shape)])


OPERATORS: dict[str, Make] = {
    "identity": lambda _: Identity(),
    "single coil": lambda shape: MaskedFourier(_mask(shape)),
    "multi-coil": lambda shape: MaskedFourier(_mask(shape), _coils(shape)),
    "a phase for each slice": lambda shape: MaskedFourier(_mask(shape), _phases(shape)),
    "blur": lambda shape: GaussianBlur(1.3, shape),
    "downsampling": lambda shape: Downsampling(3, shape),
    "within": lambda shape: Within((torch.rand(1, 1, *shape) > 0.4).double()),
    "blur and downsampling": lambda shape: Composed(
        GaussianBlur(0.8, shape), Downsampling(3, shape)
    ),
    "blur, then scanned": lambda shape: Composed(
        GaussianBlur(0.8, shape), MaskedFourier(_mask(shape), _coils(shape))
    ),
}


def _inner(left: Tensor, right: Tensor) -> float:
    return float((left.conj() * right).sum().real)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS.keys())
def test_the_adjoint_law(make: Make, shape: tuple[int, int]) -> None:
    operator = make(shape)
    image = torch.randn(2, 1, *shape, dtype=torch.float64)
    measured = operator.forward(image)
    other = torch.randn(measured.shape, dtype=measured.dtype)
    back = operator.adjoint(other)
    assert back.shape == image.shape and back.dtype == image.dtype
    assert _inner(measured, other) == pytest.approx(_inner(image, back), rel=1e-10)


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS.keys())
def test_it_is_linear(make: Make) -> None:
    operator = make((12, 9))
    left, right = torch.randn(2, 2, 1, 12, 9, dtype=torch.float64)
    together = operator.forward(2 * left - right)
    torch.testing.assert_close(together, 2 * operator.forward(left) - operator.forward(right))


def test_all_samples_and_normalised_coils_give_the_image_back() -> None:
    shape = (12, 9)
    image = torch.randn(2, 1, *shape, dtype=torch.float64)
    operator = MaskedFourier(torch.ones(shape, dtype=torch.float64), _coils(shape))
    maps = operator.sensitivities.abs().square().sum(dim=1)
    torch.testing.assert_close(maps, torch.ones_like(maps), rtol=1e-6, atol=1e-6)
    back = operator.adjoint(operator.forward(image))
    torch.testing.assert_close(back, image, rtol=1e-5, atol=1e-5)


def test_blur_and_downsampling_keep_the_mean() -> None:
    image = torch.rand(1, 1, 12, 9, dtype=torch.float64)
    for operator in (GaussianBlur(2.0, (12, 9)), Downsampling(3, (12, 9))):
        assert operator.forward(image).mean() == pytest.approx(float(image.mean()))


def test_no_blur_is_identity() -> None:
    image = torch.rand(1, 1, 7, 9)
    torch.testing.assert_close(GaussianBlur(0.0, (7, 9)).forward(image), image)


def test_noise_has_its_deviation_in_both_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = complex_noise(torch.zeros(40000, dtype=torch.complex128), 0.3, generator)
    assert noise.real.std() == pytest.approx(0.3, rel=0.02)
    assert noise.imag.std() == pytest.approx(0.3, rel=0.02)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="sensitivities"):
        MaskedFourier(torch.ones(4, 4), torch.ones(2, 4, 5))
    with pytest.raises(ValueError, match="mask"):
        MaskedFourier(torch.ones(4, 4)).forward(torch.ones(1, 1, 4, 5))
    with pytest.raises(ValueError, match="factor"):
        Downsampling(3, (8, 9))


def test_a_slice_is_measured_with_its_own_phase() -> None:
    """Of images in batches of n·b, image i has the sensitivities of slice i modulo b."""
    shape, images = (9, 12), torch.randn(4, 1, 9, 12, dtype=torch.float64)
    together = MaskedFourier(_mask(shape), _phases(shape)).forward(images)
    for place, image in enumerate(images):
        alone = MaskedFourier(_mask(shape), _phases(shape)[place % 2]).forward(image[None])
        torch.testing.assert_close(together[place], alone[0])


def test_the_phase_of_an_object_has_its_size() -> None:
    phase = smooth_phase((64, 64), 1.5)
    assert 1.4 < float(phase.max()) <= 1.5
    assert float(phase.min()) >= -0.75
    assert float((phase[1:] - phase[:-1]).abs().max()) < 0.1  # smooth: the centre can show it
