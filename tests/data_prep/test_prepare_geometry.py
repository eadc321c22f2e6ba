"""Where voxels go: orientation, physical size, the affine, the choice of slices."""

from dataclasses import replace
from itertools import pairwise, permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import label, map_coordinates
from scipy.spatial.transform import Rotation
from small_volumes import brain, write_nifti

from data_prep.common.errors import VolumeError
from data_prep.config import PrepareConfig
from data_prep.preparation import prepare
from data_prep.volume.brain import mask_shape
from data_prep.volume.slices import choose_slices, cut_slices
from data_prep.volume.transforms import Volume, load_volume, n4_corrected

CONFIG = PrepareConfig(
    size=32, spacing_mm=1.7, slice_spacing_mm=2.6, min_brain_area=0.3, source="hcp", root="."
)
# Anisotropic, so that a swapped axis shows as a swapped size.
AFFINE = np.diag([1.1, 0.9, 1.3, 1.0])
AFFINE[:3, 3] = -11, -17, 5


def prepared(path: Path, plane: str) -> tuple[Volume, np.ndarray, tuple[int, ...], np.ndarray]:
    config = PrepareConfig(**{**vars(CONFIG), "plane": plane})
    volume = load_volume(path, None, config)
    slices = volume.slices(config)
    return volume, slices.images, slices.indices, slices.affine


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_all_48_storage_orientations_give_the_same_slices(tmp_path: Path, plane: str) -> None:
    canonical = nib.Nifti1Image(brain(), AFFINE)
    results = []
    expected = prepared(write_nifti(tmp_path / "a.nii", brain(), AFFINE), plane)[3]
    for axes, flips in product(permutations(range(3)), product([1, -1], repeat=3)):
        orientation = np.array([axes, flips]).T
        stored = canonical.as_reoriented(orientation)
        path = write_nifti(tmp_path / "stored.nii", np.asarray(stored.dataobj), stored.affine)
        _, images, indices, affine = prepared(path, plane)
        results.append((images.tobytes(), indices))
        np.testing.assert_allclose(affine, expected, atol=1e-4)
    assert len(results) == 48
    assert len(set(results)) == 1


@pytest.mark.parametrize(
    ("plane", "rows", "columns"),
    [("axial", "P", "R"), ("coronal", "I", "R"), ("sagittal", "I", "A")],
)
def test_rows_and_columns_run_as_the_manifest_says(
    tmp_path: Path, plane: str, rows: str, columns: str
) -> None:
    affine = prepared(write_nifti(tmp_path / "a.nii", brain(), AFFINE), plane)[3]
    assert nib.aff2axcodes(affine)[:2] == (rows, columns)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_affine_leads_from_a_pixel_to_the_voxel_it_shows(tmp_path: Path, plane: str) -> None:
    """Without resampling, every pixel is some voxel, and the affine says which."""
    path = write_nifti(tmp_path / "a.nii.gz", brain(), np.diag([1.0, 1, 1, 1]))
    config = PrepareConfig(**{**vars(CONFIG), "plane": plane, "spacing_mm": 1.0})
    volume = load_volume(path, None, config)
    slices = volume.slices(config)
    pixels = np.argwhere(slices.images[:, 0] > 0)
    places = np.column_stack(
        [pixels[:, 1:], np.array(slices.indices)[pixels[:, 0]], np.ones(len(pixels))]
    )
    voxels = (np.linalg.inv(volume.affine) @ slices.affine @ places.T)[:3]
    # The grid's centre may lie half-way between two voxels: linear interpolation there.
    shown = slices.images[pixels[:, 0], 0, pixels[:, 1], pixels[:, 2]]
    np.testing.assert_allclose(map_coordinates(volume.data, voxels, order=1), shown, atol=1e-5)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("spacing", [(0.5, 1.1, 2.3), (2.3, 0.5, 1.1), (1.1, 2.3, 0.5)])
def test_a_sphere_is_round_and_of_its_diameter_whatever_the_voxels(
    tmp_path: Path, plane: str, spacing: tuple[float, float, float]
) -> None:
    """A ball of 30 mm is 30 pixels of 1 mm across in every direction of the picture."""
    shape = tuple(round(44 / mm) for mm in spacing)
    centred = [
        (np.arange(n) - (n - 1) / 2).reshape([-1 if a == axis else 1 for a in range(3)]) * mm
        for axis, (n, mm) in enumerate(zip(shape, spacing, strict=True))
    ]
    radius = np.sqrt(sum(c**2 for c in centred))
    # Bright enough at its rim that its edge is where the intensity falls to one half.
    data = np.where(radius < 15, 1000 - 2 * radius, 0).astype(np.float32)
    path = write_nifti(tmp_path / "ball.nii", data, np.diag([*spacing, 1.0]))
    config = PrepareConfig(**{**vars(CONFIG), "plane": plane, "size": 64, "spacing_mm": 1.0})
    volume = load_volume(path, None, config)
    whole = replace(volume, data=np.clip(nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32) / 900, 0, 1))
    image = whole.slices(config).images
    middle = image[len(image) // 2, 0]
    across, down = (middle > 0.5).sum(axis=0).max(), (middle > 0.5).sum(axis=1).max()
    # To within a voxel, for the ball itself is drawn in voxels.
    axes = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}[plane]
    assert across == pytest.approx(30, abs=0.5 + spacing[axes[0]])
    assert down == pytest.approx(30, abs=0.5 + spacing[axes[1]])
    area = float(middle.sum())
    assert area == pytest.approx(np.pi * 15**2, rel=0.06)


def oblique(axes: tuple[int, ...], flips: tuple[int, ...], degrees: float) -> np.ndarray:
    """AFFINE turned about an oblique axis, its voxel axes swapped and flipped."""
    turn = Rotation.from_rotvec(np.radians(degrees) * np.array([1, -0.6, 0.4])).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = (turn @ AFFINE[:3, :3])[:, axes] * flips
    affine[:3, 3] = -11, 7, 5
    return affine


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(
    ("axes", "flips"),
    [
        ((0, 1, 2), (1, 1, 1)),
        ((0, 1, 2), (-1, 1, 1)),
        ((2, 0, 1), (1, -1, -1)),
        ((1, 2, 0), (-1, -1, 1)),
    ],
)
def test_a_slice_saved_as_an_image_lies_where_its_volume_has_it(
    tmp_path: Path,
    work: Path,
    plane: str,
    axes: tuple[int, ...],
    flips: tuple[int, ...],
) -> None:
    """Through files and both affines: every pixel shows what the volume holds at its place."""
    shape = (36, 40, 32)
    places = np.indices(shape).reshape(3, -1).astype(float)
    affine = oblique(axes, flips, degrees=14)
    centre = (affine @ [*(np.array(shape) - 1) / 2, 1])[:3]
    # A field given in mm, linear in each axis: interpolation reads it exactly.
    mm = (affine[:3, :3] @ places + affine[:3, 3:]).T - centre
    inside = (np.abs(places.T - (np.array(shape) - 1) / 2) < np.array(shape) / 2 - 4).all(1)
    values = np.where(inside, 1000 + mm @ [3.0, -5.0, 7.0], 0).reshape(shape)
    source = write_nifti(tmp_path / "raw" / "a.nii.gz", values.astype(np.float32), affine)
    keys = {"plane": plane, "spacing_mm": 0.9, "root": str(tmp_path / "raw"), "name": "back"}
    extremes = {"lower_percentile": 0.0, "upper_percentile": 100.0}
    config = PrepareConfig(
        **{**vars(CONFIG), **keys, **extremes, "template": "{subject}.nii.gz", "workers": 1}
    )
    store = prepare(config, work, lambda line: None).store
    entry = store.entries[0]
    low, high = values[inside.reshape(shape)].min(), values.max()
    volume = nib.load(source)
    count = len(entry.slice_indices)
    for n in (count // 2 - 1, count // 2, count // 2 + 1):
        pixels = store.slices(entry)[n, 0] / 65535
        nib.save(
            nib.Nifti1Image(pixels[:, :, None].astype(np.float32), store.slice_affine(entry, n)),
            tmp_path / "slice.nii.gz",
        )
        image = nib.load(tmp_path / "slice.nii.gz")
        rows = np.indices(image.shape).reshape(3, -1)
        to_voxel = np.linalg.inv(volume.affine) @ image.affine
        voxels = to_voxel[:3, :3] @ rows + to_voxel[:3, 3:]
        deep = (np.abs(voxels.T - (np.array(shape) - 1) / 2) < np.array(shape) / 2 - 6).all(1)
        assert deep.sum() > 100
        there = map_coordinates(np.asarray(volume.dataobj), voxels[:, deep], order=1)
        shown = image.get_fdata().reshape(-1)[deep]
        np.testing.assert_allclose(shown, (there - low) / (high - low), atol=2e-4)


def test_voxel_size_and_not_array_shape_decides_the_size_in_pixels() -> None:
    """A box of 12 x 20 mm is 6 x 10 pixels of 2 mm, however it was sampled."""
    config = PrepareConfig(size=32, spacing_mm=2.0)
    for x_mm, y_mm in [(1.0, 1.0), (0.5, 2.0), (2.0, 0.5), (0.7, 1.3)]:
        data = np.zeros((round(40 / x_mm), round(40 / y_mm), 6), np.float32)
        data[: round(12 / x_mm), : round(20 / y_mm)] = 1
        spacing = np.array([x_mm, y_mm, 3])
        image = cut_slices(data, data > 0, np.diag([*spacing, 1.0]), config).images[0, 0]
        # Pixels count by how much of the box they hold; rows run along y.
        assert image.sum(axis=0).max() == pytest.approx(10, abs=0.6)
        assert image.sum(axis=1).max() == pytest.approx(6, abs=0.6)


def test_a_speck_beside_the_brain_does_not_shift_the_picture() -> None:
    mask = brain() > 0
    speck = mask.copy()
    speck[0, 0, 0] = True
    assert mask_shape(speck).bounds == mask_shape(mask).bounds


@given(st.integers(0, 10**6), st.floats(0.05, 0.9), st.permutations(range(3)), st.booleans())
def test_areas_and_bounds_are_those_of_a_labelling_of_voxels(
    seed: int, share: float, axes: list[int], flipped: bool
) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random(generator.integers(2, 9, 3)) < share
    mask[1, 1, 1] = True
    # Any storage order: the same mask seen through swapped and flipped axes.
    seen = mask.transpose(axes)[:: -1 if flipped else 1]
    labels, _ = label(seen)
    largest = labels == np.bincount(labels[seen]).argmax()  # of equal ones the first
    shape = mask_shape(seen)
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        np.testing.assert_array_equal(shape.areas[axis], seen.sum(axis=others))
        slices = np.flatnonzero(largest.any(axis=others))
        assert shape.bounds[axis] == (slices[0], slices[-1])


def test_a_brain_larger_than_the_picture_is_reported(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", brain())
    small, large = (PrepareConfig(size=32, spacing_mm=s) for s in (0.5, 1.0))
    assert load_volume(path, None, small).slices(small).cropped
    assert not load_volume(path, None, large).slices(large).cropped


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=60).filter(any),
    st.floats(0.3, 3),
    st.floats(0.3, 9),
    st.floats(0.01, 1),
    st.integers(0, 9),
)
def test_chosen_slices_are_ascending_large_enough_and_evenly_apart(
    areas: list[int], voxel: float, spacing: float, share: float, limit: int
) -> None:
    chosen = choose_slices(np.array(areas), voxel, spacing, share, limit)
    assert 1 <= len(chosen) <= (limit or len(areas))
    assert list(chosen) == sorted(set(chosen))
    assert all(areas[i] >= share * max(areas) for i in chosen)
    step = max(1, round(spacing / voxel))
    assert all((b - a) % step == 0 for a, b in pairwise(chosen))


def test_scaled_intensities_are_the_formulas_and_the_background_is_exactly_0(
    tmp_path: Path,
) -> None:
    data = brain().astype(np.float32)
    mask = data > 0
    low, high = np.percentile(data[mask].astype(np.float64), [0.5, 99.5])
    config = replace(CONFIG, lower_percentile=0.5, upper_percentile=99.5)
    volume = load_volume(write_nifti(tmp_path / "a.nii", data, AFFINE), None, config)
    assert volume.data.dtype == np.float32
    assert (volume.data[~mask] == 0).all()
    assert (volume.data.min(), volume.data.max()) == (0, 1)
    assert (volume.scan.native.low, volume.scan.native.high) == (low, high)
    expected = ((data - np.float32(low)) / np.float32(high - low)).clip(0, 1)
    np.testing.assert_array_equal(volume.data[mask], expected[mask])
    # Scanner units and offset carry no meaning and leave no trace.
    path, brains = (
        tmp_path / "b.nii",
        write_nifti(tmp_path / "mask.nii", mask.astype(np.uint8), AFFINE),
    )
    other = load_volume(write_nifti(path, 7 * data + 3, AFFINE), brains, config)
    np.testing.assert_allclose(other.data, volume.data, atol=1e-5)


def test_a_mask_replaces_the_guess_and_must_fit(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "image.nii.gz", brain() + 50)
    mask = write_nifti(tmp_path / "mask.nii.gz", (brain() > 0).astype(np.uint8))
    np.testing.assert_array_equal(load_volume(image, mask, CONFIG).mask, brain() > 0)
    wrong = write_nifti(tmp_path / "wrong.nii.gz", np.ones((5, 6, 7), np.uint8))
    with pytest.raises(VolumeError) as error:
        load_volume(image, wrong, CONFIG)
    assert error.value.reason == "mask_shape"
    moved = write_nifti(tmp_path / "moved.nii.gz", (brain() > 0).astype(np.uint8), AFFINE)
    with pytest.raises(VolumeError) as error:
        load_volume(image, moved, CONFIG)
    assert error.value.reason == "mask_position"


def test_n4_flattens_a_bias_field() -> None:
    pytest.importorskip("SimpleITK")
    shape = (40, 44, 36)
    mask = brain(shape) > 0
    flat = np.where(mask, 500 + 20 * (brain(shape, 1) > 600), 0).astype(np.float32)
    bias = np.exp(np.linspace(-0.4, 0.4, shape[0]))[:, None, None].astype(np.float32)
    corrected = n4_corrected(flat * bias, mask, np.ones(3))

    def spread(volume: np.ndarray) -> float:
        return float(volume[mask].std() / volume[mask].mean())

    assert spread(corrected) < 0.4 * spread(flat * bias)
