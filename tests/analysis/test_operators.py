"""Every forward operator and its adjoint: ⟨Ax, y⟩ = ⟨x, A*y⟩ in float64; masks; k-space."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.analysis.operators import (
    Composed,
    Downsampling,
    GaussianBlur,
    MaskedFourier,
    Operator,
    Within,
    cartesian_mask,
    fft2c,
    ifft2c,
    smooth_phase,
    smooth_sensitivities,
    squared_norm,
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
    "single coil": lambda shape: MaskedFourier(_mask(shape)),
    "a phase for each slice": lambda shape: MaskedFourier(_mask(shape), _phases(shape)),
    "downsampling": lambda shape: Downsampling(3, shape),
    "within": lambda shape: Within((torch.rand(1, 1, *shape) > 0.4).double()),
    "blur, then scanned": lambda shape: Composed(
        GaussianBlur(0.8, shape), MaskedFourier(_mask(shape), _coils(shape))
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_linear_and_the_adjoint_law_holds(name: str, shape: tuple[int, int]) -> None:
    operator = OPERATORS[name](shape)
    images, others = torch.randn(2, 2, 1, *shape, dtype=torch.float64)
    measured = operator.forward(images)
    together = operator.forward(2 * images - others)
    torch.testing.assert_close(together, 2 * measured - operator.forward(others))
    given = torch.randn(measured.shape, dtype=measured.dtype)
    back = operator.adjoint(given)
    assert back.shape == images.shape and back.dtype == images.dtype
    inner = float((measured.conj() * given).sum().real)
    assert inner == pytest.approx(float((images * back).sum()), rel=1e-10)


def test_its_norm_is_the_largest_gain() -> None:
    like = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    assert squared_norm(Downsampling(3, (12, 12)), like) == pytest.approx(1.05 / 9, rel=1e-6)
    assert squared_norm(Within(torch.zeros(())), like) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_transform_is_numpy_s_and_its_own_inverse(shape: tuple[int, int]) -> None:
    image, axes = torch.randn(2, 3, *shape, dtype=torch.complex128), (-2, -1)
    shifted = np.fft.ifftshift(image.numpy(), axes=axes)
    expected = np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=axes)
    np.testing.assert_allclose(fft2c(image).numpy(), expected, atol=1e-12)
    torch.testing.assert_close(ifft2c(fft2c(image)), image)


def test_all_samples_and_normalised_coils_and_no_blur_give_the_image_back() -> None:
    shape, image = (12, 9), torch.randn(2, 1, 12, 9, dtype=torch.float64)
    operator = MaskedFourier(torch.ones(shape, dtype=torch.float64), _coils(shape))
    back = operator.adjoint(operator.forward(image))
    torch.testing.assert_close(back, image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(GaussianBlur(0.0, shape).forward(image), image)


def test_a_slice_is_measured_with_its_own_phase() -> None:
    """Of images in batches of n·b, image i has the sensitivities of slice i modulo b."""
    shape, images = (9, 12), torch.randn(4, 1, 9, 12, dtype=torch.float64)
    together = MaskedFourier(_mask(shape), _phases(shape)).forward(images)
    for place, image in enumerate(images):
        alone = MaskedFourier(_mask(shape), _phases(shape)[place % 2]).forward(image[None])
        torch.testing.assert_close(together[place], alone[0])


def test_the_phase_of_an_object_has_its_size() -> None:
    phase = smooth_phase((64, 64), 1.5)
    assert 1.4 < float(phase.max()) <= 1.5 and float(phase.min()) >= -0.75
    assert float((phase[1:] - phase[:-1]).abs().max()) < 0.1  # smooth: the centre can show it


@pytest.mark.parametrize("kind", ["variable_density", "equispaced"])
def test_the_seed_decides_a_mask(kind: str) -> None:
    first, again, other = (cartesian_mask((64, 64), 3, 0.08, kind, seed) for seed in (1, 1, 4))  # type: ignore[arg-type]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert cartesian_mask((5, 7), 1, kind=kind).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MaskedFourier(torch.ones(4, 4), torch.ones(2, 4, 5)), "sensitivities"),
        (lambda: MaskedFourier(torch.ones(4, 4)).forward(torch.ones(1, 1, 4, 5)), "mask"),
        (lambda: Downsampling(3, (8, 9)), "factor"),
        (lambda: cartesian_mask((64, 64), 0.5), "acceleration"),
        (lambda: cartesian_mask((64, 64), 8, 0.5), "centre_fraction"),
        (lambda: cartesian_mask((64, 64), 4, 0.0), "centre_fraction"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
