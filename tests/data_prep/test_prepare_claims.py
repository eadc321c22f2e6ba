"""What a file claims of itself: unit, orientation, two files in one, endings, oblique axes."""

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from adult_heads import MM, affine, head, save
from scipy.spatial.transform import Rotation
from test_prepare_stage import configured

from data_prep.__main__ import main
from data_prep.common.errors import VolumeError
from data_prep.config import PrepareConfig
from data_prep.sources.path_template import Subject
from data_prep.store import Store
from data_prep.volume.plausibility import ASSUMED_ORIENTATION, UNITS, code_of
from data_prep.volume.transforms import load_volume
from data_prep.volume.verify import read_verified

CONFIG = PrepareConfig(source="hcp", root=".")
DATA = head()


def codes(flags: tuple[str, ...]) -> list[str]:
    return [code_of(flag) for flag in flags]


def reason_of(path: Path, config: PrepareConfig = CONFIG, mask: Path | None = None) -> str:
    with pytest.raises(VolumeError) as error:
        load_volume(path, mask, config).slices(config)
    return error.value.reason


@pytest.mark.parametrize(
    ("unit", "factor"), [("mm", 1.0), (None, 1.0), ("m", 0.001), ("um", 1000.0)]
)
def test_lengths_are_in_the_unit_that_the_header_declares(
    tmp_path: Path, unit: str | None, factor: float
) -> None:
    place = affine()
    place[:3] *= factor
    volume = load_volume(save(tmp_path / "a.nii.gz", DATA, place, unit=unit), None, CONFIG)
    plain = load_volume(save(tmp_path / "b.nii.gz", DATA), None, CONFIG)
    np.testing.assert_allclose(volume.affine, plain.affine, atol=1e-4)
    np.testing.assert_array_equal(volume.data, plain.data)
    assert codes(volume.scan.flags) == ([] if factor == 1 else [UNITS])
    images = (volume.slices(CONFIG).images, plain.slices(CONFIG).images)
    np.testing.assert_allclose(*images, atol=1e-5)


@pytest.mark.parametrize(
    ("unit", "factor"), [("mm", 0.001), (None, 0.001), ("um", 1.0), ("m", 1.0), (None, 1000.0)]
)
def test_lengths_that_cannot_be_of_that_unit_are_refused(
    tmp_path: Path, unit: str | None, factor: float
) -> None:
    place = affine()
    place[:3] *= factor
    path = save(tmp_path / "a.nii.gz", DATA, place, unit=unit)
    with pytest.raises(VolumeError, match=r"xyzt_units") as error:
        read_verified(path)
    assert error.value.reason == "header"
    named = {"mm": "mm", "um": "micron", "m": "metre", None: "names no unit"}[unit]
    assert named in str(error.value)


def test_a_mask_in_another_unit_still_lies_on_its_image(tmp_path: Path) -> None:
    place = affine()
    place[:3] /= 1000
    mask = save(tmp_path / "mask.nii.gz", (DATA > 0).astype(np.uint8), place, unit="m")
    image = save(tmp_path / "a.nii.gz", DATA + 50)
    np.testing.assert_array_equal(load_volume(image, mask, CONFIG).mask, DATA > 0)


def test_a_brain_of_a_few_pixels_is_refused_as_anomaly_does(tmp_path: Path) -> None:
    place = affine(0.5)
    assert reason_of(save(tmp_path / "a.nii.gz", DATA, place)) == "too_small"


def test_slices_that_show_nothing_are_no_result(tmp_path: Path) -> None:
    """A mask beside the brain: all that it holds is one intensity, but for a few voxels."""
    image, mask = np.zeros_like(DATA), np.zeros(DATA.shape, np.uint8)
    mask[4:40, 4:48, 4:40] = 1
    image[20, 20, 5] = image[21, 20, 5] = 500  # a slice that is not taken
    keys = {"source": "hcp", "root": ".", "lower_percentile": 0.0, "upper_percentile": 100.0}
    config = PrepareConfig(**keys, plane="axial", slice_spacing_mm=8.0)  # type: ignore[arg-type]
    paths = save(tmp_path / "a.nii.gz", image), save(tmp_path / "m.nii.gz", mask)
    assert reason_of(paths[0], config, paths[1]) == "black"
    image[20:30, 20:30, 22:26] = 500
    volume = load_volume(save(tmp_path / "b.nii.gz", image), paths[1], config)
    cut = volume.slices(config)
    assert codes(cut.flags) == ["black_slices"]
    assert 0 < sum(not picture.any() for picture in cut.images) < len(cut.images)


def test_nobody_prepared_is_an_error(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"raw/{name}.nii.gz", DATA, affine(0.5))
    arguments = configured(tmp_path, tmp_path / "raw", template="{subject}.nii.gz", size=64)
    assert main([*arguments, "--prepare.spacing_mm=3.2"]) == 2
    told = capsys.readouterr().err
    assert "not one of 2 subjects could be prepared (2 too_small)" in told
    assert not (work / "stores/study/manifest.json").exists()


@pytest.mark.parametrize("kind", ["nifti", "nifti2", "mgh", "analyze"])
def test_without_an_orientation_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = unoriented(tmp_path, kind)
    with pytest.raises(VolumeError, match=r"prepare\.assume_orientation") as error:
        read_verified(path)
    assert error.value.reason == "no_orientation"


def unoriented(folder: Path, kind: str, data: np.ndarray = DATA) -> Path:
    """A file whose header says nothing of where its axes run to."""
    if kind == "nifti":
        return save(folder / "a.nii.gz", data, forms=(0, 0))
    if kind == "nifti2":
        return save(folder / "a.nii", data, forms=(0, 0), kind=nib.Nifti2Image)
    if kind == "analyze":
        return save(folder / "a.hdr", data, kind=nib.AnalyzeImage)
    content = bytearray(nib.MGHImage(data, affine()).to_bytes())
    content[28:30] = b"\0\0"
    (folder / "a.mgz").write_bytes(gzip.compress(bytes(content)))
    return folder / "a.mgz"


@pytest.mark.parametrize("kind", ["nifti", "nifti2", "analyze"])
@pytest.mark.parametrize("assumed", ["RAS", "LAS", "PIR", "SLA"])
def test_an_assumed_orientation_is_used_and_flagged(
    tmp_path: Path, kind: str, assumed: str
) -> None:
    """What is stored along those axes comes back as what it is."""
    ras = nib.Nifti1Image(DATA, affine())
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(ras.affine), nib.orientations.axcodes2ornt(tuple(assumed))
    )
    stored = np.asarray(ras.as_reoriented(turn).dataobj)
    path = unoriented(tmp_path, kind, stored)
    config = PrepareConfig(source="hcp", root=".", assume_orientation=assumed)
    volume = load_volume(path, None, config)
    expected = load_volume(save(tmp_path / "ras.nii", DATA), None, CONFIG)
    np.testing.assert_array_equal(volume.data, expected.data)
    assert volume.scan.native.orientation == assumed
    assert codes(volume.scan.flags) == [ASSUMED_ORIENTATION]
    assert assumed in volume.scan.flags[0]


@pytest.mark.parametrize("forms", [(1, 0), (0, 1), (2, 4)])
def test_one_of_the_two_forms_is_enough_and_nothing_is_assumed(
    tmp_path: Path, forms: tuple[int, int]
) -> None:
    path = save(tmp_path / "a.nii.gz", DATA, forms=forms)
    config = PrepareConfig(source="hcp", root=".", assume_orientation="LAS")
    assert load_volume(path, None, config).scan.native.orientation == "RAS"
    assert load_volume(path, None, config).scan.flags == ()


@pytest.mark.parametrize("wrong", ["ras", "RA", "RAR", "LRS", "R A S", "XYZ", "RASS"])
def test_an_orientation_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"prepare\.assume_orientation"):
        PrepareConfig(source="hcp", root=".", assume_orientation=wrong)
    for axes, ends in product(permutations(("LR", "PA", "IS")), product((0, 1), repeat=3)):
        codes = "".join(axis[end] for axis, end in zip(axes, ends, strict=True))
        assert PrepareConfig(source="hcp", assume_orientation=codes).assume_orientation == codes


def test_to_assume_an_orientation_later_prepares_those_alone(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    save(root / "1.nii.gz", DATA)
    save(root / "2.nii.gz", head(1), forms=(0, 0))
    arguments = configured(tmp_path, root, template="{subject}.nii.gz", spacing_mm=6.0)
    assert main(arguments) == 3
    assert "2: no_orientation" in capsys.readouterr().out
    assert main([*arguments, "--prepare.assume_orientation=LAS"]) == 0
    told = capsys.readouterr().out
    assert "prepare.assume_orientation changed: 1 subject: 2" in told
    assert "flagged, and used: 1 subject" in told and "LAS is assumed" in told
    store = Store.open(work / "stores/study")
    flags = {entry.subject: codes(entry.flags) for entry in store.entries}
    assert flags == {"1": [], "2": [ASSUMED_ORIENTATION]}
    assert "LAS is assumed" in (store.path / "report/index.html").read_text()
    assert main([*arguments, "--prepare.assume_orientation=RAS"]) == 0
    assert "prepare.assume_orientation changed: 1 subject: 2" in capsys.readouterr().out


PAIRS = {
    "nifti": {"kind": nib.Nifti1Pair},
    "nifti2": {"kind": nib.Nifti2Pair},
    "big-endian": {"kind": nib.Nifti1Pair, "big_endian": True, "dtype": ">i2"},
    "analyze": {"kind": nib.AnalyzeImage, "dtype": np.int16},
    "big-endian analyze": {"kind": nib.AnalyzeImage, "big_endian": True, "dtype": ">i2"},
    "spm": {"kind": nib.Spm2AnalyzeImage},
}


@pytest.mark.parametrize("named", ["a.hdr", "a.img", "a.img.gz", "a.HDR"])
@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_is_read_by_either_of_its_files(tmp_path: Path, kind: str, named: str) -> None:
    packed = named.endswith(".gz")
    save(tmp_path / ("a.img.gz" if packed else "a.img"), DATA, **PAIRS[kind])  # type: ignore[arg-type]
    expected = np.asarray(nib.load(next(tmp_path.glob("a.img*"))).dataobj, np.float32)
    if named == "a.HDR":
        for half in ("hdr", "img"):
            (tmp_path / f"a.{half}").rename(tmp_path / f"a.{half.upper()}")
    volume = read_verified(tmp_path / named, assume_orientation="RAS")
    np.testing.assert_array_equal(volume.data, expected)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(volume.affine), MM)


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_what_is_wrong_with_a_pair_is_told_of_the_file_it_is_wrong_with(
    tmp_path: Path, packed: str
) -> None:
    header, voxels = (tmp_path / f"a.{half}{packed}" for half in ("hdr", "img"))

    def fresh() -> None:
        save(voxels, DATA, kind=nib.Nifti1Pair)

    def refused() -> tuple[str, str]:
        with pytest.raises(VolumeError) as error:
            read_verified(header)
        return error.value.reason, str(error.value)

    fresh()
    voxels.unlink()
    reason, told = refused()
    assert reason == "missing" and f"{voxels.name}, which {header.name} needs beside it" in told
    fresh()
    voxels.write_bytes(voxels.read_bytes()[:-400])
    assert refused()[0] == "truncated"
    fresh()
    header.write_bytes(header.read_bytes()[:50])
    assert refused()[0] == "truncated"
    fresh()
    whole = save(tmp_path / f"b.nii{packed}", DATA)
    header.write_bytes(whole.read_bytes())
    assert refused()[0] == "wrong_extension"
    if packed:
        fresh()
        content = bytearray(voxels.read_bytes())
        content[len(content) // 2] ^= 0xFF
        voxels.write_bytes(content)
        assert refused()[0] == "corrupt"


def test_a_pairs_header_under_the_name_of_a_whole_file_is_told_so(tmp_path: Path) -> None:
    save(tmp_path / "a.img", DATA, kind=nib.Nifti1Pair)
    (tmp_path / "b.nii").write_bytes((tmp_path / "a.hdr").read_bytes() + bytes(400))
    with pytest.raises(VolumeError, match="header of a pair") as error:
        read_verified(tmp_path / "b.nii")
    assert error.value.reason == "wrong_extension"


@pytest.mark.parametrize("half", ["hdr", "img"])
def test_a_change_of_either_half_is_a_change(tmp_path: Path, half: str) -> None:
    save(tmp_path / "a.img", DATA, kind=nib.Nifti1Pair)
    subject = Subject("a", "a", tmp_path, "a.hdr")
    before, sha256 = subject.fingerprint(), read_verified(tmp_path / "a.hdr").sha256
    path = tmp_path / f"a.{half}"
    content = bytearray(path.read_bytes())
    content[-1 if half == "img" else 260] ^= 1  # a voxel, or the intent name's neighbourhood
    path.write_bytes(content + b"\0")
    assert subject.fingerprint() != before
    assert read_verified(tmp_path / "a.hdr").sha256 != sha256


@pytest.mark.parametrize(
    "name", ["A.NII.GZ", "a.nii.GZ", "a.Nii", "A.NII", "a.MGZ", "a.Mgh", "a.nii.gz"]
)
def test_endings_are_compared_without_case(tmp_path: Path, name: str) -> None:
    content = nib.Nifti1Image(DATA, affine()).to_bytes()
    if "mg" in name.lower():
        content = nib.MGHImage(DATA, affine()).to_bytes()
    packed = name.lower().endswith(("gz", "mgz"))
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if packed else content)
    np.testing.assert_array_equal(read_verified(tmp_path / name).data, DATA)


@pytest.mark.parametrize("degrees", [0, 3, 8, 40])
def test_oblique_axes_are_flagged_beyond_a_few_degrees(tmp_path: Path, degrees: float) -> None:
    place = affine()
    turn = Rotation.from_rotvec(np.radians(degrees) * np.array([0, 0, 1])).as_matrix()
    place[:3, :3] = turn @ place[:3, :3]
    volume = load_volume(save(tmp_path / "a.nii.gz", DATA, place), None, CONFIG)
    assert codes(volume.scan.flags) == (["oblique_degrees"] if degrees > 5 else [])


@pytest.mark.parametrize("degrees", [0.5, 3.0, 20.0])
def test_sheared_axes_are_flagged(tmp_path: Path, degrees: float) -> None:
    place = affine()
    place[0, 1] = place[1, 1] * np.tan(np.radians(degrees))
    path = save(tmp_path / "a.nii.gz", DATA, place, forms=(1, 0))
    found = codes(load_volume(path, None, CONFIG).scan.flags)
    assert ("shear_degrees" in found) == (degrees > 1)
