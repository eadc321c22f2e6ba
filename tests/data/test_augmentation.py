"""Augmentation: plausible images in, plausible images out."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.data.augmentation import Deformation, apply, augment, draw
from pipeline.data.config import AugmentationConfig
from pipeline.metrics.sharpness import high_frequency_power

DEFAULT = AugmentationConfig()
RANGES = ("rotation_degrees", "scale", "translation", "shear", "elastic", "gamma", "gain")
NOTHING = AugmentationConfig(**dict.fromkeys(RANGES, 0.0))  # type: ignore[arg-type]


def _images(count: int = 4, channels: int = 1, side: int = 32) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(5))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("side", "channels"), [(32, 3), (64, 1)])
def test_without_any_magnitude_or_switched_off_it_is_the_identity(side: int, channels: int) -> None:
    images = _images(4, channels, side)
    made = augment(images, NOTHING, False, _generator())
    torch.testing.assert_close(made, images, rtol=0, atol=2e-5)
    off = dataclasses.replace(DEFAULT, enabled=False)
    assert augment(images, off, True, _generator()) is images


def test_mirroring_happens_to_some_is_left_and_right_and_never_without_leave() -> None:
    images = _images(32)
    made = augment(images, NOTHING, True, _generator())
    same = ((made - images).abs().amax(dim=(1, 2, 3)) < 1e-4).tolist()
    mirrored = ((made - images.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-4).tolist()
    assert [a != b for a, b in zip(same, mirrored, strict=True)] == [True] * 32
    assert 8 <= sum(mirrored) <= 24
    matrices = draw(256, DEFAULT, False, _generator()).matrix[:, :, :2]
    assert (torch.linalg.det(matrices) > 0).all()


@given(
    rotation=st.floats(0, 180),
    relative=st.floats(0, 0.9),
    length=st.floats(0, 1),
    gamma=st.floats(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_intensities_stay_between_zero_and_one(
    rotation: float, relative: float, length: float, gamma: float, seed: int
) -> None:
    lengths = dict.fromkeys(("translation", "shear", "elastic"), length)
    config = AugmentationConfig(
        rotation_degrees=rotation, scale=relative, gain=relative, gamma=gamma, **lengths
    )
    made = augment(_images(2).round(), config, True, _generator(seed))
    assert made.shape == (2, 1, 32, 32)
    assert made.min() >= 0 and made.max() <= 1  # false for NaN as well


def test_images_of_a_batch_are_changed_each_in_its_own_way_and_channels_alike() -> None:
    """All by the generator."""
    grey = _images(1, 1).expand(4, 3, -1, -1)
    one, two, other = (augment(grey, DEFAULT, True, _generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert all((one[i] - one[0]).abs().max() > 0.05 for i in range(1, 4))
    torch.testing.assert_close(one, one[:, :1].expand_as(one), rtol=0, atol=1e-6)


def test_fine_detail_outlives_it_better_than_bilinear() -> None:
    """A shift by half a pixel is the worst case of interpolation."""
    images = 0.25 + 0.5 * _images(8, side=64)
    matrix = torch.eye(2, 3).repeat(8, 1, 1)
    matrix[:, :, 2] = 1 / 64  # half a pixel in units of half the side
    zeros, ones = torch.zeros(8), torch.ones(8)
    made = apply(images, Deformation(matrix, torch.zeros(8, 2, 6, 6), zeros, ones))
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    bilinear = functional.grid_sample(images, grid, mode="bilinear", align_corners=False)
    kept, lost = (high_frequency_power(x.clamp(0, 1)).mean().item() for x in (made, bilinear))
    assert kept > 1.5 * lost
    assert kept > 0.3 * high_frequency_power(images).mean().item()


def test_displacements_are_smooth() -> None:
    """Folds would tear anatomy: the default elastic field never turns a pixel's area around."""
    config = dataclasses.replace(NOTHING, elastic=DEFAULT.elastic)
    coarse = draw(64, config, False, _generator()).displacement
    field = functional.interpolate(coarse, size=(64, 64), mode="bicubic", align_corners=True)
    step = 2 / 64
    down, right = field.diff(dim=2)[..., :-1] / step, field.diff(dim=3)[:, :, :-1] / step
    determinant = (1 + right[:, 0]) * (1 + down[:, 1]) - right[:, 1] * down[:, 0]
    assert (determinant > 0).float().mean() > 0.999


@pytest.mark.parametrize(
    ("key", "value"),
    [*((key, -1) for key in RANGES), ("scale", 1.0), ("gain", 1.0), ("elastic_points", 3)],
)
def test_a_magnitude_that_cannot_be_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"data\.augmentation\.{key}"):
        AugmentationConfig(**{key: value})  # type: ignore[arg-type]
