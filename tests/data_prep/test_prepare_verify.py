"""Every way in which a file can be wrong has a reason of its own."""

import errno
import gzip
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_volumes import brain, write_nifti

from data_prep.common.errors import VolumeError
from data_prep.volume import verify
from data_prep.volume.plausibility import FORMS_DISAGREE
from data_prep.volume.verify import read_verified

GOOD = brain((16, 17, 18))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def one_byte_inverted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def html(path: Path) -> None:
    path.write_bytes(b"\n<!DOCTYPE html><html><title>Please log in</title></html>")


def with_value(path: Path, value: float) -> None:
    data = GOOD.astype(np.float32)
    data[3, 3, 3] = value
    write_nifti(path, data)


def nan(path: Path) -> None:
    with_value(path, np.nan)


def infinite(path: Path) -> None:
    with_value(path, -np.inf)


def beyond_float32(path: Path) -> None:
    data = GOOD.astype(np.float64)
    data[3, 3, 3] = 1e300
    write_nifti(path, data)


def png(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))


def dicom(path: Path) -> None:
    path.write_bytes(bytes(128) + b"DICM" + bytes(500))


def mgh_named_nifti(path: Path) -> None:
    path.write_bytes(gzip.compress(nib.MGHImage(GOOD, np.eye(4)).to_bytes()))


def within_header(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:300]))


def trailing_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"some more")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("../nowhere.nii.gz")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def four_dimensional(path: Path) -> None:
    write_nifti(path, np.stack([GOOD, GOOD], -1))


def constant(path: Path) -> None:
    write_nifti(path, np.full_like(GOOD, 7))


def uncompressed(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


def picture(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\x89PNG" + bytes(500)))


def nonsense(path: Path) -> None:
    path.write_bytes(gzip.compress(b"neither of the two" * 50))


def fewer_voxels(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1000]))


def no_orientation(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[280:328] = struct.pack("<12f", *[float("nan")] * 12)
    path.write_bytes(gzip.compress(content))


def micrometres(path: Path) -> None:
    write_nifti(path, GOOD, np.diag([1000.0, 1000, 1000, 1]))


DAMAGES: dict[Callable[[Path], None], str] = {
    truncated: "truncated",
    one_byte_inverted: "corrupt",
    empty: "empty",
    html: "html",
    nan: "nan",
    infinite: "infinite",
    beyond_float32: "infinite",
    png: "wrong_format",
    dicom: "dicom",
    mgh_named_nifti: "wrong_extension",
    within_header: "truncated",
    trailing_bytes: "corrupt",
    directory: "directory",
    broken_link: "broken_link",
    link_to_itself: "broken_link",
    pipe: "not_a_file",
    four_dimensional: "dimensions",
    constant: "constant",
    uncompressed: "not_gzip",
    picture: "wrong_format",
    nonsense: "not_nifti",
    fewer_voxels: "truncated",
    no_orientation: "header",
    micrometres: "header",
}


@pytest.fixture(params=["isal", "zlib"])
def inflater(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to unpack: with the extra `fast` and without it."""
    if request.param == "zlib":
        monkeypatch.setattr(verify, "isal_zlib", None)
    elif verify.isal_zlib is None:
        pytest.skip("isal is not installed")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_each_damage_has_its_own_reason(
    tmp_path: Path, inflater: None, damage: Callable[[Path], None]
) -> None:
    path = write_nifti(tmp_path / "image.nii.gz", GOOD)
    damage(path)
    with pytest.raises(VolumeError) as error:
        read_verified(path)
    assert error.value.reason == DAMAGES[damage]
    assert "image.nii.gz" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_compressed_file_must_be_named_so(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "image.nii.gz", GOOD).rename(tmp_path / "image.nii")
    assert reason_of(path) == "wrong_extension"


def reason_of(path: Path) -> str:
    with pytest.raises(VolumeError) as error:
        read_verified(path)
    return error.value.reason


def test_a_file_that_has_gone_says_so(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "absent.nii.gz") == "missing"


def test_a_file_without_permission_says_so() -> None:
    # Not pytest's folder, which nobody else may enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = write_nifti(Path(folder) / "image.nii.gz", GOOD)
        path.chmod(0)
        root = os.geteuid() == 0
        if root:  # whom permissions do not stop
            os.seteuid(65534)
        try:
            assert reason_of(path) == "no_permission"
        finally:
            if root:
                os.seteuid(0)


def test_another_refusal_of_the_file_system_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(verify, "_opened", failing)
    assert reason_of(tmp_path / "image.nii.gz") == "unreadable"


@pytest.mark.parametrize("mask", [0xFF, 1, 8, 128])
def test_no_changed_byte_changes_a_voxel_unnoticed(
    tmp_path: Path, inflater: None, mask: int
) -> None:
    """At every 23rd place and at all of the gzip header and trailer. Where nothing is told, the
    byte means nothing: it is the header's time stamp, system or a hint, or a bit of the deflate
    code that no symbol uses, and every reader unpacks the same content."""
    path = write_nifti(tmp_path / "image.nii.gz", GOOD)
    sound, expected = path.read_bytes(), read_verified(path)
    places = {*range(12), *range(12, len(sound), 23), *range(len(sound) - 10, len(sound))}
    unnoticed = set()
    for place in places:
        content = bytearray(sound)
        content[place] ^= mask
        path.write_bytes(content)
        try:
            found = read_verified(path)
        except VolumeError as error:
            assert error.reason in ("corrupt", "not_gzip", "truncated"), place
            # A complete file is never called cut short.
            assert error.reason != "truncated" or place < 12 or place >= len(sound) - 4
        else:
            np.testing.assert_array_equal(found.data, expected.data)
            assert found.sha256 != expected.sha256
            assert gzip.decompress(content) == gzip.decompress(sound)
            unnoticed.add(place)
    assert {4, 5, 6, 7, 8, 9} <= unnoticed
    assert len(unnoticed) < 0.03 * len(places) + 8


@pytest.mark.parametrize("share", np.arange(1, 11) / 11)
def test_a_file_cut_short_anywhere_is_truncated(
    tmp_path: Path, inflater: None, share: float
) -> None:
    path = write_nifti(tmp_path / "image.nii.gz", GOOD)
    sound = path.read_bytes()
    for length in (int(share * len(sound)), int(share * 20), len(sound) - int(share * 11)):
        path.write_bytes(sound[: max(1, length)] if length < len(sound) else sound[:-1])
        assert reason_of(path) == "truncated"


@pytest.mark.parametrize("pieces", [1, 7, 353])
def test_gzip_members_in_a_row_and_zeros_behind_them_are_one_file(
    tmp_path: Path, inflater: None, pieces: int
) -> None:
    path = write_nifti(tmp_path / "image.nii.gz", GOOD)
    plain = gzip.decompress(path.read_bytes())
    length = -(-len(plain) // pieces)
    cuts = [plain[n : n + length] for n in range(0, len(plain), length)]
    path.write_bytes(b"".join(gzip.compress(cut) for cut in cuts) + bytes(700))
    np.testing.assert_array_equal(read_verified(path).data, GOOD)


def variant(kind: str, folder: Path) -> Path:
    """GOOD in another file format."""
    affine = np.diag([2.0, 3, 4, 1])
    path = folder / "image.nii.gz"
    if kind in ("image.mgz", "image.mgh"):
        image = nib.MGHImage(GOOD, affine)
        nib.save(image, folder / kind)
        return folder / kind
    if kind == "scaled int16":
        content = bytearray(nib.Nifti1Image(GOOD, affine).to_bytes())
        content[112:120] = struct.pack("<2f", 0.5, 100)  # scl_slope, scl_inter
        path.write_bytes(gzip.compress(content))
        return path
    elif kind == "big-endian":
        image = nib.Nifti1Image(GOOD.astype(">f4"), affine, nib.Nifti1Header(endianness=">"))
    elif kind == "nifti2":
        image = nib.Nifti2Image(GOOD, affine)
    elif kind == "4-D":
        image = nib.Nifti1Image(GOOD[..., None], affine)
    else:
        image = nib.Nifti1Image(GOOD.astype(kind), affine, dtype=kind)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "image.mgz",
        "image.mgh",
        "scaled int16",
        "big-endian",
        "nifti2",
        "4-D",
        *("float32", "float64", "int16", "int32", "uint16", "uint8", "int64", ">i2"),
    ],
)
def test_every_format_gives_what_nibabel_reads(tmp_path: Path, inflater: None, kind: str) -> None:
    path = variant(kind, tmp_path)
    image = nib.load(path)
    volume = read_verified(path)
    expected = np.asarray(image.dataobj, dtype=np.float32).reshape(GOOD.shape)
    np.testing.assert_array_equal(volume.data, expected)
    np.testing.assert_array_equal(volume.affine, image.affine)
    if kind not in ("scaled int16", "uint8"):
        np.testing.assert_array_equal(volume.data, GOOD)
    if kind == "scaled int16":
        np.testing.assert_array_equal(volume.data, GOOD * 0.5 + 100)


def test_a_flipped_byte_in_an_mgz_is_found(tmp_path: Path, inflater: None) -> None:
    path = variant("image.mgz", tmp_path)
    one_byte_inverted(path)
    assert reason_of(path) == "corrupt"


@pytest.mark.parametrize("millimetres", [0.0, 1.9, 2.1])
def test_two_affines_more_than_a_voxel_apart_are_flagged(
    tmp_path: Path, millimetres: float
) -> None:
    image = nib.Nifti1Image(GOOD, np.diag([2.0, 3, 4, 1]))
    moved = image.affine.copy()
    moved[1, 3] += millimetres
    image.set_sform(image.affine, 1)
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "image.nii")
    volume = read_verified(tmp_path / "image.nii")
    assert volume.flags == ((FORMS_DISAGREE,) if millimetres > 2 else ())
    np.testing.assert_array_equal(volume.affine, image.affine)


def test_two_affines_that_part_at_a_far_corner_are_flagged(tmp_path: Path) -> None:
    image = nib.Nifti1Image(GOOD, np.eye(4))
    angle = np.radians(10)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image.set_sform(np.eye(4), 1)
    image.set_qform(turned, 1)
    nib.save(image, tmp_path / "image.nii")
    assert read_verified(tmp_path / "image.nii").flags == (FORMS_DISAGREE,)


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_a_sound_file_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    volume = read_verified(write_nifti(tmp_path / name, GOOD[..., None], affine))
    np.testing.assert_array_equal(volume.data, GOOD)
    np.testing.assert_array_equal(volume.affine, affine)
    assert volume.data.dtype == np.float32
    assert volume.size_bytes == (tmp_path / name).stat().st_size
