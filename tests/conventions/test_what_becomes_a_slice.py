"""Which voxels are brain, which slices are taken, what becomes 0 and 1, who is refused."""

import gzip
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.stats import norm

from data_prep.common.errors import VolumeError
from data_prep.config import PrepareConfig, SplitConfig
from data_prep.plan import split_of, uniform
from data_prep.report.quality import measure, robust_scores
from data_prep.store import write_shard
from data_prep.volume.slices import choose_slices, cut_slices
from data_prep.volume.transforms import load_volume

WHOLE = PrepareConfig(lower_percentile=0, upper_percentile=100)


def saved(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(nib.Nifti1Image(data, np.eye(4)).to_bytes(), 1))
    return path


def test_the_slices_of_a_short_volume_by_hand() -> None:
    areas = np.array([0, 1, 4, 10, 10, 9, 5, 8, 4, 0])
    # From half of 10: slices 3 to 7, their middle 5; the slice with just 5 counts.
    assert choose_slices(areas, 1.0, 1.0, 0.5, 0) == (3, 4, 5, 6, 7)
    assert choose_slices(areas, 1.0, 2.0, 0.5, 0) == (3, 5, 7)
    assert choose_slices(areas, 1.0, 2.4, 0.5, 0) == (3, 5, 7)
    assert choose_slices(areas, 1.0, 2.6, 0.5, 0) == (5,)
    # 2 mm are 3 slices of 0.7 mm; nothing is nearer than the next slice.
    assert choose_slices(areas, 0.7, 2.0, 0.5, 0) == (5,)
    assert choose_slices(areas, 2.0, 0.1, 0.5, 0) == (3, 4, 5, 6, 7)
    # Of an even number the upper one of the two in the middle.
    assert choose_slices(np.ones(20), 1.0, 3.0, 0.5, 0) == (1, 4, 7, 10, 13, 16, 19)


def test_a_limit_thins_evenly_from_the_middle_of_equal_parts() -> None:
    every = choose_slices(np.ones(20), 1.0, 1.0, 0.5, 0)
    assert every == tuple(range(20))
    assert choose_slices(np.ones(20), 1.0, 1.0, 0.5, 4) == (2, 7, 12, 17)
    assert choose_slices(np.ones(20), 1.0, 1.0, 0.5, 1) == (10,)
    assert choose_slices(np.ones(20), 1.0, 3.0, 0.5, 2) == (4, 16)
    assert choose_slices(np.ones(5), 1.0, 1.0, 0.5, 5) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("plane", "numbers"),
    [("axial", (1, 4, 7)), ("coronal", (0, 2, 4, 6, 8)), ("sagittal", (0, 6))],
)
def test_slices_are_apart_by_the_size_of_a_voxel_across_the_plane(
    plane: str, numbers: tuple[int, ...]
) -> None:
    data = np.ones((12, 9, 9), np.float32)
    config = PrepareConfig(
        size=32, spacing_mm=3.0, slice_spacing_mm=3.0, plane=plane,  # type: ignore[arg-type]
    )  # fmt: skip
    affine = np.diag([0.5, 1.5, 1.0, 1.0])
    assert cut_slices(data, data > 0, affine, config).indices == numbers


def test_brain_is_what_lies_above_0(tmp_path: Path) -> None:
    data = np.zeros((12, 13, 14), np.float32)
    data[2:10, 2:10, 2:10] = np.arange(512).reshape(8, 8, 8) + 0.25
    data[4, 4, 4] = 0
    data[5, 5, 5] = -3
    data[0] = -1000
    volume = load_volume(saved(tmp_path / "a.nii.gz", data), None, WHOLE)
    np.testing.assert_array_equal(volume.mask, data > 0)
    assert volume.mask.sum() == 510
    # What became 0 is the least of the brain, 0.25, not of the image.
    assert (volume.scan.native.low, volume.scan.native.high) == (0.25, 511.25)
    assert (volume.data[~volume.mask] == 0).all()


def test_a_mask_of_several_values_is_brain_from_its_threshold_on(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(0, 100, (12, 13, 14)).astype(np.float32)
    mask = np.zeros(data.shape, np.float32)
    mask[3:9, 3:9, 3:9], mask[3], mask[4, 4, 4], mask[5, 5, 5] = 1, -1, 0.25, 0.5
    image, brain = saved(tmp_path / "a.nii.gz", data), saved(tmp_path / "mask.nii.gz", mask)
    volume = load_volume(image, brain, WHOLE)
    assert volume.mask.sum() == 5 * 6 * 6 - 1
    np.testing.assert_array_equal(volume.mask, mask >= 0.5)
    # A brain may hold negative voxels, once a mask says so.
    assert volume.scan.native.low == data[mask > 0].min() < 0


def test_percentiles_are_of_the_brain_and_in_per_cent(tmp_path: Path) -> None:
    """Of 1001 values 1 … 1001, half a per cent is five steps from the end."""
    data = np.zeros((11, 15, 17), np.float32)
    values = np.random.default_rng(1).permutation(np.arange(1, 1002))
    data[2:9, 2:13, 2:15] = values.reshape(7, 11, 13)
    path = saved(tmp_path / "a.nii.gz", data)
    config = PrepareConfig(lower_percentile=0.5, upper_percentile=99.5)
    volume = load_volume(path, None, config)
    assert (volume.scan.native.low, volume.scan.native.high) == (6, 996)
    for value, became in [(1, 0), (6, 0), (501, 0.5), (996, 1), (1001, 1), (105, 0.1)]:
        assert volume.data[data == value] == pytest.approx(became, abs=1e-6)
    # Between two values: a quarter of the way from 1 to 1001 is 251, 0.01% is 1.1.
    other = PrepareConfig(lower_percentile=0.01, upper_percentile=25)
    native = load_volume(path, None, other).scan.native
    assert (native.low, native.high) == pytest.approx((1.1, 251))


def flat(outliers: int) -> np.ndarray:
    """1000 voxels of brain, all 700 but a few."""
    data = np.zeros((12, 13, 14), np.float32)
    data[1:11, 1:11, 1:11] = 700
    data[1, 1, 1 : 1 + outliers] = 900
    return data


def test_no_voxel_above_0_is_no_brain_and_one_intensity_between_its_percentiles_no_contrast(
    tmp_path: Path,
) -> None:
    """Of 1000 values the 99.5th percentile is between the 995th and the 996th."""
    config = PrepareConfig(lower_percentile=0.5, upper_percentile=99.5)
    empty = np.full((12, 13, 14), -5, np.float32)
    empty[3:9] = 0
    for data, reason in ((empty, "no_brain"), (flat(4), "no_contrast")):
        with pytest.raises(VolumeError) as error:
            load_volume(saved(tmp_path / "a.nii.gz", data), None, config)
        assert error.value.reason == reason
    native = load_volume(saved(tmp_path / "b.nii.gz", flat(6)), None, config).scan.native
    assert native.low == 700 < native.high <= 900


def test_a_shard_holds_intensity_times_65535_to_the_nearest(tmp_path: Path) -> None:
    images = np.array([0, 1, 0.25, 0.4 / 65535, 0.6 / 65535]).reshape(1, 1, 1, 5)
    (tmp_path / "slices").mkdir()
    entry = write_shard(tmp_path, "a", images)
    found = np.load(tmp_path / entry["shard"])
    assert found.dtype == np.uint16
    assert found.ravel().tolist() == [0, 65535, 16384, 0, 1]
    entry = write_shard(tmp_path, "b", np.array([0, 1, 255], np.uint8).reshape(1, 1, 1, 3))
    assert np.load(tmp_path / entry["shard"]).ravel().tolist() == [0, 257, 65535]


def test_a_family_s_place_is_its_hash_and_train_is_at_the_bottom() -> None:
    config = SplitConfig(train=0.7, validation=0.2, test=0.1, salt="7")
    counts = {"train": 0, "validation": 0, "test": 0}
    for number in range(4000):
        family = f"F{number}"
        place = int(hashlib.sha256(f"7\0{family}".encode()).hexdigest()[:16], 16) / 2**64
        assert uniform(family, "7") == pytest.approx(place, abs=1e-15)
        expected = "train" if place < 0.7 else "validation" if place < 0.9 else "test"
        assert split_of(family, config) == expected
        counts[expected] += 1
    shares = [count / 4000 for count in counts.values()]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


def test_robust_scores_of_a_normal_sample_are_its_standard_scores() -> None:
    """The median absolute deviation becomes a standard deviation; a few outliers change little."""
    quantiles = (np.arange(2000) + 0.5) / 2000
    values = norm.ppf(quantiles, loc=40, scale=3)
    scores = np.array(robust_scores(values.tolist(), 0.0))
    np.testing.assert_allclose(scores, (values - 40) / 3, atol=2e-3 * np.abs(scores).max())
    spoilt = robust_scores([*values.tolist(), 1e6], 0.0)
    assert spoilt[0] == pytest.approx(scores[0], rel=0.01)
    # The floor takes over where all are nearly alike.
    assert robust_scores([1.0, 1.0, 1.0, 3.0, None], 0.5) == [0, 0, 0, 4, 0]


def test_quality_s_numbers_by_hand() -> None:
    """A square of 10 x 10 pixels of 2 mm, half at 1 and half at a quarter, in columns."""
    pixels = np.zeros((2, 1, 20, 20), np.uint16)
    pixels[:, :, 5:15, 5:10] = 65535
    pixels[:, :, 5:15, 10:15] = 16384
    found = measure(pixels, 2.0)
    assert found.slices == 2
    assert found.area_cm2 == pytest.approx(4.0)
    assert found.mean == pytest.approx(0.625, abs=1e-4)
    assert found.sd == pytest.approx(0.375, abs=1e-4)
    assert found.saturated == 0.5
    # Two pixels inside, 6 x 6 are left: 30 pairs each way, and in 6 the difference is 0.75.
    assert found.sharpness == pytest.approx(np.sqrt(6 * 0.75**2 / 60) / 0.375, rel=1e-4)
    assert (found.histogram[8], found.histogram[31]) == (0.5, 0.5)
