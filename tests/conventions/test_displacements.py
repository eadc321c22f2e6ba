"""Augmentation in pixels, degrees and per cent: which way, and how far at most."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from pipeline.data.augmentation import Deformation, apply, draw
from pipeline.data.config import AugmentationConfig

NOTHING = AugmentationConfig(
    rotation_degrees=0, scale=0, translation=0, shear=0, elastic=0, gamma=0, gain=0
)
MANY = 4000


def drawn(flip: bool = False, **changes: float) -> Deformation:
    config = dataclasses.replace(NOTHING, **changes)
    return draw(MANY, config, flip, torch.Generator().manual_seed(0))


def deformation(
    matrix: list[list[float]], log_gamma: float = 0.0, gain: float = 1.0
) -> Deformation:
    return Deformation(
        torch.tensor([matrix], dtype=torch.float32),
        torch.zeros(1, 2, 6, 6),
        torch.tensor([log_gamma]),
        torch.tensor([gain]),
    )


def image(height: int, width: int) -> Tensor:
    return torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_a_shift_takes_each_pixel_from_further_right_and_further_down(
    height: int, width: int
) -> None:
    """The side is 2 long: 3 columns are 6/W, 2 rows are 4/H."""
    x = image(height, width)
    found = apply(x, deformation([[1, 0, 6 / width], [0, 1, 4 / height]]))
    torch.testing.assert_close(found[..., :-2, :-3], x[..., 2:, 3:], atol=1e-4, rtol=0)
    assert (found[..., -1:, :] == 0).all() and (found[..., -2:] == 0).all()


def test_the_largest_shift_is_a_share_of_the_side_both_ways() -> None:
    shift = drawn(translation=0.03).matrix[:, :, 2] / 2  # the side is 2 long
    for axis in (0, 1):
        assert 0.0297 < shift[:, axis].max().item() <= 0.03
        assert -0.0297 > shift[:, axis].min().item() >= -0.03
        assert shift[:, axis].std().item() == pytest.approx(0.03 / math.sqrt(3), rel=0.05)
    assert abs(np.corrcoef(shift.numpy().T)[0, 1]) < 0.05


def test_a_rotation_is_in_degrees_and_as_scipy_s() -> None:
    matrices = drawn(rotation_degrees=10).matrix
    angle = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]) * 180 / math.pi
    assert 9.9 < angle.max().item() <= 10 + 1e-4 and -9.9 > angle.min().item() >= -10 - 1e-4
    product = matrices[:, :, :2] @ matrices[:, :, :2].mT
    torch.testing.assert_close(product, torch.eye(2).expand(MANY, 2, 2))
    # Smooth, so that cubic splines of two kinds agree.
    x = ndimage.gaussian_filter(image(32, 32)[0, 0].numpy(), 2)
    number = int(angle.argmax())
    part = Deformation(
        matrices[number : number + 1], torch.zeros(1, 2, 6, 6), torch.zeros(1), torch.ones(1)
    )
    found = apply(torch.from_numpy(x)[None, None], part)[0, 0].numpy()
    expected = ndimage.rotate(x, angle[number].item(), reshape=False, order=3)
    inner = (slice(6, -6), slice(6, -6))
    np.testing.assert_allclose(found[inner], expected[inner], atol=5e-3)
    other = ndimage.rotate(x, -angle[number].item(), reshape=False, order=3)
    assert np.abs(found[inner] - other[inner]).max() > 0.02


def test_scale_shear_gain_and_gamma_reach_what_they_say_and_no_further() -> None:
    matrices = drawn(scale=0.1).matrix
    for axis in (0, 1):
        assert 1.099 < matrices[:, axis, axis].max().item() <= 1.1 + 1e-6
        assert 0.901 > matrices[:, axis, axis].min().item() >= 0.9 - 1e-6
    assert (matrices[:, 0, 1] == 0).all() and (matrices[:, 1, 0] == 0).all()
    assert (matrices[:, 0, 0] != matrices[:, 1, 1]).float().mean() > 0.99
    sheared = drawn(shear=0.05).matrix
    assert 0.0495 < sheared[:, 0, 1].max().item() <= 0.05
    assert -0.0495 > sheared[:, 0, 1].min().item() >= -0.05
    assert (sheared[:, 1, 0] == 0).all()
    gains, gammas = drawn(gain=0.1).gain, drawn(gamma=0.2).log_gamma
    assert 1.099 < gains.max().item() <= 1.1 + 1e-6 and 0.901 > gains.min().item() >= 0.9 - 1e-6
    assert 0.198 < gammas.max().item() <= 0.2 and -0.198 > gammas.min().item() >= -0.2


def test_an_elastic_displacement_has_its_deviation_as_a_share_of_the_side() -> None:
    displacement = drawn(elastic=0.02).displacement / 2
    assert displacement.shape == (MANY, 2, 6, 6)
    assert displacement.std().item() == pytest.approx(0.02, rel=0.01)
    assert displacement.mean().item() == pytest.approx(0, abs=2e-4)


def test_a_displacement_to_the_right_reads_further_right() -> None:
    x = image(32, 32)
    moved = dataclasses.replace(
        deformation([[1, 0, 0], [0, 1, 0]]),
        displacement=torch.tensor([4 / 32, 0.0]).view(1, 2, 1, 1).expand(1, 2, 6, 6),
    )
    torch.testing.assert_close(apply(x, moved)[..., :-2], x[..., 2:], atol=1e-4, rtol=0)


def test_half_is_mirrored_left_to_right() -> None:
    matrices = drawn(flip=True).matrix
    assert (matrices[:, 1, 1] == 1).all()
    assert (matrices[:, 0, 0] == -1).float().mean().item() == pytest.approx(0.5, abs=0.03)
    mirrored = apply(image(32, 32), deformation([[-1, 0, 0], [0, 1, 0]]))
    torch.testing.assert_close(mirrored, image(32, 32).flip(-1), atol=1e-4, rtol=0)


def test_contrast_is_a_power_and_then_a_factor() -> None:
    same = [[1.0, 0, 0], [0, 1, 0]]
    for value, log_gamma, gain, expected in [
        (0.5, math.log(2), 1.0, 0.25),
        (0.25, -math.log(2), 1.0, 0.5),
        (0.5, 0.0, 1.1, 0.55),
        (0.5, math.log(2), 0.8, 0.2),
        (0.95, 0.0, 1.1, 1.0),
    ]:
        found = apply(torch.full((1, 1, 8, 8), value), deformation(same, log_gamma, gain))
        assert found[0, 0, 3:5, 3:5].mean().item() == pytest.approx(expected, abs=1e-5)
