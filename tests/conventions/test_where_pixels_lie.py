"""Where a picture's pixels lie in millimetres, and what they show, in numbers computed by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.config import PrepareConfig
from data_prep.volume.slices import Slices, cut_slices
from data_prep.volume.transforms import load_volume

SIZE = 32


def box(rows: tuple[int, int], columns: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """A mask (X, Y, 1) of voxels `columns` along x and `rows` along y, both ends included."""
    mask = np.zeros((*shape, 1), bool)
    mask[columns[0] : columns[1] + 1, rows[0] : rows[1] + 1] = True
    return mask


def cut(data: np.ndarray, mask: np.ndarray, affine: np.ndarray, spacing_mm: float) -> Slices:
    config = PrepareConfig(size=SIZE, spacing_mm=spacing_mm, slice_spacing_mm=1.0)
    return cut_slices(data.astype(np.float32), mask, affine, config)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


@pytest.mark.parametrize("shift", [0, 3])
def test_the_box_of_an_even_brain_is_in_the_middle_to_the_pixel(shift: int) -> None:
    """y 20–29 has its middle at 24.5, x 12–17 at 14.5, and 32 pixels theirs at 15.5."""
    data = noise((60, 70, 1))
    mask = box((20 + shift, 29 + shift), (12 + shift, 17 + shift), (60, 70))
    # Row 0 is the most anterior: voxel y = 24.5 + 15.5 = 40. Column 0: x = 14.5 − 15.5 = −1.
    found = cut(data, mask, np.eye(4), 1.0)
    expected = np.zeros((SIZE, SIZE))
    for row in range(SIZE):
        for column in range(SIZE):
            x, y = column - 1 + shift, 40 + shift - row
            expected[row, column] = data[x, y, 0] if x >= 0 else 0.0
    np.testing.assert_allclose(found.images[0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(
        found.affine @ [0, 0, 0, 1], [-1 + shift, 40 + shift, 0, 1], atol=1e-9
    )


def test_the_box_of_an_odd_brain_lies_half_a_voxel_off_and_is_interpolated() -> None:
    """y 20–30 has its middle at 25, so a row lies half-way between two voxels; x as before."""
    data = noise((60, 70, 1))
    found = cut(data, box((20, 30), (22, 27), (60, 70)), np.eye(4), 1.0)
    np.testing.assert_allclose(found.affine @ [0, 0, 0, 1], [9, 40.5, 0, 1], atol=1e-9)
    for row in range(SIZE):
        between = 0.5 * (data[9:41, 40 - row, 0] + data[9:41, 41 - row, 0])
        np.testing.assert_allclose(found.images[0, 0, row], between, atol=1e-6)


@pytest.mark.parametrize("spacing", [0.75, 2.0, 3.1])
def test_a_pixel_shows_the_place_in_mm_that_the_affine_says(spacing: float) -> None:
    """In an image of its own coordinates, which no filter and no interpolation changes."""
    affine = np.diag([0.9, 1.2, 2.0, 1.0])
    affine[:3, 3] = -60.0, -70.0, 12.0
    index = np.indices((133, 117, 1))
    x, y = 0.9 * index[0] - 60.0, 1.2 * index[1] - 70.0
    found = cut((0.5 * x + y + 120) / 240, box((40, 71), (50, 80), x.shape[:2]), affine, spacing)
    rows, columns = np.indices((SIZE, SIZE))
    there = np.einsum(
        "ij,jrc->irc", found.affine, [rows, columns, 0 * rows, np.ones_like(rows)]
    )  # mm
    np.testing.assert_allclose(
        found.images[0, 0], (0.5 * there[0] + there[1] + 120) / 240, atol=1e-5
    )
    # The middle of the picture is the middle of the box, and rows run backwards.
    middle = there[:2].mean(axis=(1, 2))
    np.testing.assert_allclose(middle, [0.9 * 65 - 60, 1.2 * 55.5 - 70], atol=1e-9)
    np.testing.assert_allclose(np.diff(there[1], axis=0), -spacing)
    np.testing.assert_allclose(np.diff(there[0], axis=1), spacing)


def test_beyond_the_volume_all_is_0() -> None:
    found = cut(np.ones((10, 8, 1)), np.ones((10, 8, 1), bool), np.eye(4), 1.0).images[0, 0]
    expected = np.zeros((SIZE, SIZE))
    expected[12:20, 11:21] = 1
    np.testing.assert_array_equal(found, expected)


def test_a_brain_as_wide_as_the_picture_is_not_cropped_and_a_wider_one_is() -> None:
    data = np.ones((80, 80, 1))
    for last, cropped in [(31 + 5, False), (32 + 5, True)]:
        for rows, columns in [((5, last), (9, 12)), ((9, 12), (5, last))]:
            assert cut(data, box(rows, columns, (80, 80)), np.eye(4), 1.0).cropped is cropped


def test_detail_that_larger_pixels_cannot_carry_fades_by_the_gaussian_s_factor() -> None:
    """Pixels of `factor` voxels: σ = (factor − 1)/2 voxels, so a wave of f cycles a voxel keeps

    exp(−2π²σ²f²). 3 mm over 1 mm: σ = 1 along y; over 0.75 mm: σ = 1.5 along x. Both waves lie
    above the new Nyquist frequency, 1/6 and 1/8 cycles a voxel.
    """
    x, y, _ = np.indices((180, 150, 1))
    mask = box((40, 109), (50, 130), x.shape[:2])  # middle y 74.5, x 90
    affine = np.diag([0.75, 1.0, 1.0, 1.0])
    rows = 74.5 - 3 * (np.arange(SIZE) - 15.5)
    columns = 90 + 4 * (np.arange(SIZE) - 15.5)
    for along, pixels, sigma, f in [(y, rows[:, None], 1.0, 0.25), (x, columns[None], 1.5, 0.15)]:
        assert (pixels % 1 == 0).all()  # each is a voxel: interpolation takes nothing away
        wave = 0.4 * np.cos(2 * np.pi * f * along)
        found = cut(0.5 + wave, mask, affine, 3.0).images[0, 0]
        kept = np.exp(-2 * np.pi**2 * sigma**2 * f**2)
        assert 0.2 < kept < 0.5
        expected = 0.5 + 0.4 * kept * np.cos(2 * np.pi * f * pixels)
        inner = (slice(2, -2), slice(2, -2))
        np.testing.assert_allclose(
            found[inner], np.broadcast_to(expected, found.shape)[inner], atol=3e-4
        )


def test_pixels_no_larger_than_voxels_are_not_smoothed() -> None:
    data = noise((60, 70, 1))
    found = cut(data, box((20, 29), (22, 27), (60, 70)), np.eye(4), 0.5).images[0, 0]
    # Column j at x = 24.5 + (j − 15.5)/2 = 16.75 + j/2, row i at y = 24.5 − (i − 15.5)/2.
    row, column = 4, 7  # y = 30.25, x = 20.25
    near = data[20:22, 30:32, 0]
    expected = np.array([0.75, 0.25]) @ near @ np.array([0.75, 0.25])
    assert found[row, column] == pytest.approx(expected, abs=1e-6)


# Where the patient's left, front and top are in the picture: first or last, row or column.
@pytest.mark.parametrize(
    ("plane", "left_front_top"),
    [("axial", (0, 0)), ("coronal", (0, 0)), ("sagittal", (0, -1))],
)
@pytest.mark.parametrize("stored", ["RAS", "LPS", "PIR", "SAL"])
def test_the_left_front_top_corner_is_where_the_plane_puts_it(
    tmp_path: Path, plane: str, left_front_top: tuple[int, int], stored: str
) -> None:
    # Not of one value, which would be taken for the background's.
    data = np.random.default_rng(0).integers(80, 120, (32, 32, 32), np.int16)
    data[0, 0, 0] = 50  # what becomes 0
    data[:4, -4:, -4:] = 200  # x low is left, y high in front, z high on top
    affine = np.eye(4)
    affine[:3, 3] = -16
    image = nib.Nifti1Image(data, affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(stored)
    )
    path = tmp_path / "volume.nii"
    nib.save(image.as_reoriented(turn), path)
    config = PrepareConfig(
        size=32, spacing_mm=1.0, slice_spacing_mm=1.0, plane=plane,  # type: ignore[arg-type]
        lower_percentile=0, upper_percentile=100,
    )  # fmt: skip
    slices = load_volume(path, None, config).slices(config)
    # The slice that is most to the left, to the front, or on top, as the plane has it.
    place = {"axial": 31, "coronal": 31, "sagittal": 0}[plane]
    picture = slices.images[slices.indices.index(place), 0]
    bright = np.argwhere(picture > 0.9)
    assert len(bright) == 16
    row, column = left_front_top
    assert {int(b[0]) for b in bright} == (set(range(4)) if row == 0 else set(range(28, 32)))
    assert {int(b[1]) for b in bright} == (set(range(4)) if column == 0 else set(range(28, 32)))
