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

from data_prep.config import Plane, PrepareConfig
from data_prep.preparation import prepare
from data_prep.volume.brain import mask_shape
from data_prep.volume.slices import Slices, choose_slices, cut_slices
from data_prep.volume.transforms import Volume, load_volume, n4_corrected

CONFIG = PrepareConfig(
    size=32, spacing_mm=1.7, slice_spacing_mm=2.6, min_brain_area=0.3, source="hcp", root="."
)
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
# Anisotropic, so that a swapped axis shows as a swapped size.
AFFINE = np.diag([1.1, 0.9, 1.3, 1.0])
AFFINE[:3, 3] = -11, -17, 5


def cut(path: Path, **keys: object) -> tuple[Volume, Slices]:
    config = replace(CONFIG, **keys)  # type: ignore[arg-type]
    volume = load_volume(path, None, config)
    return volume, volume.slices(config)


@pytest.mark.parametrize(
    ("plane", "runs"), [("axial", ("P", "R")), ("coronal", ("I", "R")), ("sagittal", ("I", "A"))]
)
def test_all_48_storage_orientations_give_the_same_slices(
    tmp_path: Path, plane: str, runs: tuple[str, str]
) -> None:
    """And rows and columns run as the manifest says."""
    canonical = nib.Nifti1Image(brain(), AFFINE)
    _, expected = cut(write_nifti(tmp_path / "a.nii", brain(), AFFINE), plane=plane)
    assert nib.aff2axcodes(expected.affine)[:2] == runs
    for axes, flips in product(permutations(range(3)), product([1, -1], repeat=3)):
        stored = canonical.as_reoriented(np.array([axes, flips]).T)
        path = write_nifti(tmp_path / "stored.nii", np.asarray(stored.dataobj), stored.affine)
        _, slices = cut(path, plane=plane)
        np.testing.assert_array_equal(slices.images, expected.images)
        assert slices.indices == expected.indices
        np.testing.assert_allclose(slices.affine, expected.affine, atol=1e-4)


@pytest.mark.parametrize("plane", PLANES)
def test_the_affine_leads_from_a_pixel_to_the_voxel_it_shows(tmp_path: Path, plane: str) -> None:
    """Without resampling, every pixel is some voxel, and the affine says which."""
    path = write_nifti(tmp_path / "a.nii.gz", brain())
    volume, slices = cut(path, plane=plane, spacing_mm=1.0)
    pixels = np.argwhere(slices.images[:, 0] > 0)
    numbers = np.array(slices.indices)[pixels[:, 0]]
    places = np.column_stack([pixels[:, 1:], numbers, np.ones(len(pixels))])
    voxels = (np.linalg.inv(volume.affine) @ slices.affine @ places.T)[:3]
    # The grid's centre may lie half-way between two voxels: linear interpolation there.
    shown = slices.images[pixels[:, 0], 0, pixels[:, 1], pixels[:, 2]]
    np.testing.assert_allclose(map_coordinates(volume.data, voxels, order=1), shown, atol=1e-5)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("spacing", [(0.5, 1.1, 2.3), (2.3, 0.5, 1.1), (1.1, 2.3, 0.5)])
def test_a_ball_is_round_and_of_its_diameter_whatever_the_voxels(
    plane: Plane, spacing: tuple[float, float, float]
) -> None:
    """A ball of 30 mm is 30 pixels of 1 mm across in every direction of the picture."""
    shape = [round(44 / mm) for mm in spacing]
    places = np.indices(shape) - (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    radius = np.linalg.norm(places * np.array(spacing).reshape(3, 1, 1, 1), axis=0)
    ball = (radius < 15).astype(np.float32)
    config = replace(CONFIG, plane=plane, size=64, spacing_mm=1.0)
    images = cut_slices(ball, radius < 15, np.diag([*spacing, 1.0]), config).images
    middle = images[len(images) // 2, 0]
    across, down = (middle > 0.5).sum(axis=0).max(), (middle > 0.5).sum(axis=1).max()
    # To within a voxel, for the ball itself is drawn in voxels.
    axes = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}[plane]
    assert across == pytest.approx(30, abs=0.5 + spacing[axes[0]])
    assert down == pytest.approx(30, abs=0.5 + spacing[axes[1]])
    assert float(middle.sum()) == pytest.approx(np.pi * 15**2, rel=0.06)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    ("axes", "flips"),
    [((0, 1, 2), (-1, 1, 1)), ((2, 0, 1), (1, -1, -1)), ((1, 2, 0), (-1, -1, 1))],
)
def test_a_slice_saved_as_an_image_lies_where_its_oblique_volume_has_it(
    tmp_path: Path, work: Path, plane: Plane, axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    """Through files and both affines: every pixel shows what the volume holds at its place."""
    shape = (36, 40, 32)
    turn = Rotation.from_rotvec(np.radians(14) * np.array([1, -0.6, 0.4])).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = (turn @ AFFINE[:3, :3])[:, axes] * flips
    affine[:3, 3] = -11, 7, 5
    places = np.indices(shape).reshape(3, -1).astype(float)
    middle = (np.array(shape) - 1) / 2
    # A field given in mm, linear in each axis: interpolation reads it exactly.
    mm = (affine[:3, :3] @ (places.T - middle).T).T
    inside = (np.abs(places.T - middle) < np.array(shape) / 2 - 4).all(1)
    values = np.where(inside, 1000 + mm @ [3.0, -5.0, 7.0], 0).reshape(shape)
    source = write_nifti(tmp_path / "raw" / "a.nii.gz", values.astype(np.float32), affine)
    config = replace(
        CONFIG,
        plane=plane,
        spacing_mm=0.9,
        root=str(tmp_path / "raw"),
        name="back",
        lower_percentile=0.0,
        upper_percentile=100.0,
        template="{subject}.nii.gz",
        workers=1,
    )
    store = prepare(config, work, lambda line: None).store
    (entry,) = store.entries
    low, high = values[inside.reshape(shape)].min(), values.max()
    volume = nib.load(source)
    for n in range(len(entry.slice_indices) // 2 - 1, len(entry.slice_indices) // 2 + 2):
        picture = store.images(entry)[n, 0, :, :, None]
        nib.save(nib.Nifti1Image(picture, store.slice_affine(entry, n)), tmp_path / "slice.nii.gz")
        image = nib.load(tmp_path / "slice.nii.gz")
        rows = np.indices(image.shape).reshape(3, -1)
        to_voxel = np.linalg.inv(volume.affine) @ image.affine
        voxels = to_voxel[:3, :3] @ rows + to_voxel[:3, 3:]
        deep = (np.abs(voxels.T - middle) < np.array(shape) / 2 - 6).all(1)
        assert deep.sum() > 100
        there = map_coordinates(np.asarray(volume.dataobj), voxels[:, deep], order=1)
        shown = image.get_fdata().reshape(-1)[deep]
        np.testing.assert_allclose(shown, (there - low) / (high - low), atol=2e-4)


def test_real_scans_come_out_upright_and_inside_the_picture(oasis: Path) -> None:
    """Three real people, stored LAS: in RAS mm the picture must lie where the brain does."""
    for name in ("1000", "1003", "1023"):
        path = oasis / name / "T1w/T1w_acpc_dc_restore_brain.nii.gz"
        volume, slices = cut(path, spacing_mm=6.4)
        assert volume.scan.flags == ()
        pixels = slices.images[:, 0]
        assert len(pixels) > 10
        assert max(pixels[:, [0, -1]].max(), pixels[:, :, [0, -1]].max()) < 0.01
        image = nib.load(path)
        brain_mm = image.affine @ [*np.argwhere(np.asarray(image.dataobj) > 0).mean(0), 1]
        places = np.argwhere(pixels > 0.1)
        numbers = np.array(slices.indices)[places[:, 0]]
        indices = np.column_stack([places[:, 1:], numbers, np.ones(len(places))])
        seen_mm = (slices.affine @ indices.T).mean(1)
        np.testing.assert_allclose(seen_mm[:2], brain_mm[:2], atol=4)


@given(st.integers(0, 10**6), st.floats(0.05, 0.9), st.permutations(range(3)), st.booleans())
def test_areas_and_bounds_are_those_of_a_labelling_of_voxels(
    seed: int, share: float, axes: list[int], flipped: bool
) -> None:
    """Bounds are the largest piece's: a speck beside the brain does not shift the picture."""
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


def test_scaled_intensities_are_the_formula_s_and_the_background_is_exactly_0(
    tmp_path: Path,
) -> None:
    data = brain().astype(np.float32)
    mask = data > 0
    low, high = np.percentile(data[mask].astype(np.float64), [0.5, 99.5])
    volume, slices = cut(write_nifti(tmp_path / "a.nii", data, AFFINE), spacing_mm=0.5)
    assert slices.cropped and not volume.slices(CONFIG).cropped
    assert volume.data.dtype == np.float32
    assert (volume.data[~mask] == 0).all()
    assert (volume.data.min(), volume.data.max()) == (0, 1)
    assert (volume.scan.native.low, volume.scan.native.high) == (low, high)
    expected = ((data - np.float32(low)) / np.float32(high - low)).clip(0, 1)
    np.testing.assert_array_equal(volume.data[mask], expected[mask])
    # Scanner units and offset carry no meaning and leave no trace.
    brains = write_nifti(tmp_path / "mask.nii", mask.astype(np.uint8), AFFINE)
    other = load_volume(write_nifti(tmp_path / "b.nii", 7 * data + 3, AFFINE), brains, CONFIG)
    np.testing.assert_allclose(other.data, volume.data, atol=1e-5)


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
