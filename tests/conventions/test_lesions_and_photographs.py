"""Sizes, signs and places of what is inserted, found, averaged and cropped, by hand."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.sources.image_sets import decode
from pipeline.analysis.anomaly import detect, one_sided
from pipeline.analysis.lesions import Lesion, insert, sensitivity, share, threshold_at
from pipeline.analysis.problems import intensity_unit, regular_choice
from pipeline.evaluation.samples import coarse
from pipeline.losses.base import Scale


def test_a_disc_has_its_area_about_the_middle_of_a_pixel() -> None:
    found = share((30, 40), (12, 21), 7.0)
    assert found.sum() == pytest.approx(math.pi * 3.5**2, rel=2e-3)
    rows, columns = np.indices(found.shape)
    assert (found * rows).sum() / found.sum() == pytest.approx(12)
    assert (found * columns).sum() / found.sum() == pytest.approx(21)
    assert found[12, 18:25].min() > 0.9  # 3.5 pixels either way: wholly but for the arc
    assert found[12, 17] == found[12, 25] == 0
    assert found[9, 21] == found[15, 21] > 0.9


def test_a_lesion_s_diameter_is_in_mm_and_its_contrast_is_added() -> None:
    image = torch.full((1, 1, 64, 64), 0.6)
    image[..., :2], image[..., -2:] = 0, 0
    changed, where = insert(image, Lesion(20.0, -0.25), 2.0, np.random.default_rng(0))
    # A radius of 5 pixels of 2 mm: so many points of a lattice are nearer than 5 to one.
    assert where.sum().item() == 69
    assert changed[where].min().item() == pytest.approx(0.35)
    assert (changed - image).sum().item() == pytest.approx(-0.25 * math.pi * 25, rel=5e-3)
    assert Lesion(20.0, -0.25).side == "dark" and Lesion(20.0, 0.25).side == "bright"


def test_dark_is_below_what_was_expected_and_bright_above() -> None:
    signed = torch.tensor([-2.0, 0.0, 3.0])  # image − reconstruction
    assert one_sided(signed, "both").tolist() == [2, 0, 3]
    assert one_sided(signed, "dark").tolist() == [2, 0, 0]
    assert one_sided(signed, "bright").tolist() == [0, 0, 3]


def test_a_threshold_leaves_one_piece_in_two_slices_and_corners_touch() -> None:
    maps = torch.zeros(2, 1, 8, 8)
    brain = torch.ones_like(maps, dtype=torch.bool)
    maps[0, 0, 1, 1] = maps[0, 0, 2, 2] = 5.0  # one piece
    maps[1, 0, 4, 4] = 3.0
    maps[1, 0, 6, 1] = 2.0
    assert 3.0 <= threshold_at(maps, brain, 0.5) < 5.0
    assert 2.0 <= threshold_at(maps, brain, 1.0) < 3.0
    assert threshold_at(maps, brain, 0.0) == 5.0
    where = maps >= 3
    assert sensitivity(maps, where, 3.0) == 0.5
    assert sensitivity(maps, where, 2.9) == 1.0
    assert sensitivity(maps, where, 5.0) == 0.0


def test_the_best_dice_by_hand() -> None:
    """Thresholds take 1, 2, 4 or 5 voxels with 1, 1, 2 or 2 of both lesions' voxels."""
    score = np.array([5.0, 4.0, 3.0, 3.0, 1.0])
    lesion = np.array([True, False, True, False, False])
    found = detect(score, lesion)
    assert (found["best_dice"], found["threshold"]) == (pytest.approx(2 / 3), 5.0)
    assert found["auroc"] == pytest.approx((3 + 1.5) / 6)
    found = detect(score, np.array([True, False, True, True, False]))
    assert (found["best_dice"], found["threshold"]) == (pytest.approx(6 / 7), 3.0)


def test_coarse_images_are_means_of_4_by_4_pixels() -> None:
    images = torch.arange(64.0).reshape(1, 1, 8, 8) / 64
    found = coarse(images)
    assert found.shape == (1, 1, 2, 2)
    assert found[0, 0, 1, 0].item() == pytest.approx(images[0, 0, 4:, :4].mean().item())


def test_a_photograph_is_cropped_about_its_middle_and_red_comes_first() -> None:
    """Of 178 x 218 pixels the middle 148 are columns 15–162 and rows 35–182."""
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[..., 0] = np.arange(178)
    pixels[..., 1] = np.arange(218)[:, None]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=100, subsampling=0)
    for crop, left, top, side in [(148, 15, 35, 148), (0, 0, 20, 178), (100, 39, 59, 100)]:
        found = decode(stream.getvalue(), "a.jpg", crop, 32).astype(float)
        assert found.shape == (3, 32, 32)
        places = (np.arange(32) + 0.5) * side / 32 - 0.5
        inner = slice(2, -2)
        for ramp, first in ((found[0, 5], left), (found[1, :, 5], top)):
            off = (ramp - (first + places))[inner]
            assert np.abs(off).max() < 2 and abs(off.mean()) < 0.3  # of whole levels, after JPEG
        assert found[2].max() < 4


def test_the_unit_of_a_picture_is_the_99_5th_percentile_of_what_is_not_dark() -> None:
    image = np.concatenate([np.zeros(5000), np.full(1000, 40.0), np.arange(1000.0) - 2000])
    # |image| is at most 2000, so 100 and less is dark: left are 1001 … 2000.
    assert intensity_unit(image, 0.0) == pytest.approx(1001 + 0.995 * 999)
    assert intensity_unit(image, 7.0) == 7.0
    assert intensity_unit(np.zeros(4), 0.0) == 1.0


def test_places_of_a_regular_choice_by_hand() -> None:
    assert regular_choice(10, 3) == [1, 4, 7]
    assert regular_choice(11, 3) == [2, 5, 8]
    assert regular_choice(4, 9) == [0, 1, 2, 3]
    assert regular_choice(9, 1) == [4]


def test_a_trained_scale_is_the_running_mean_of_log_variances() -> None:
    scale = Scale("optimal", momentum=0.9)
    assert scale(torch.tensor(0.1)).item() == pytest.approx(0.1)
    assert scale.trained().item() == pytest.approx(0.1)
    scale(torch.tensor(0.4))
    assert scale.trained().item() == pytest.approx(0.1**0.9 * 0.4**0.1)
    scale.eval()
    assert scale(torch.tensor(9.0)).item() == pytest.approx(0.1**0.9 * 0.4**0.1)
    assert Scale(0.25)(torch.tensor(9.0)).item() == 0.25
