"""Every way in which a file can be wrong has a reason of its own."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_volumes import brain, write_nifti

from data_prep.errors import VolumeError
from data_prep.verify import read_verified

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


def not_finite(path: Path) -> None:
    data = GOOD.astype(np.float32)
    data[3, 3, 3] = np.nan
    write_nifti(path, data)


def four_dimensional(path: Path) -> None:
    write_nifti(path, np.stack([GOOD, GOOD], -1))


def constant(path: Path) -> None:
    write_nifti(path, np.full_like(GOOD, 7))


def uncompressed(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


def picture(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\x89PNG" + bytes(500)))


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
    not_finite: "not_finite",
    four_dimensional: "dimensions",
    constant: "constant",
    uncompressed: "not_gzip",
    picture: "not_nifti",
    fewer_voxels: "truncated",
    no_orientation: "header",
    micrometres: "header",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_each_damage_has_its_own_reason(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = write_nifti(tmp_path / "image.nii.gz", GOOD)
    damage(path)
    with pytest.raises(VolumeError) as error:
        read_verified(path)
    assert error.value.reason == DAMAGES[damage]
    assert "image.nii.gz" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(VolumeError) as error:
        read_verified(tmp_path / "absent.nii.gz")
    assert error.value.reason == "unreadable"


@given(st.data())
def test_no_inverted_byte_of_the_content_goes_unnoticed(data: st.DataObject) -> None:
    """From the deflate stream on; the ten bytes before it hold a time stamp that nobody misses."""
    content = bytearray(COMPRESSED)
    content[data.draw(st.integers(10, len(content) - 1))] ^= 0xFF
    PATH.content = bytes(content)
    with pytest.raises(VolumeError) as error:
        read_verified(PATH)  # type: ignore[arg-type]
    assert error.value.reason in ("corrupt", "truncated")


class InMemory:
    """Stands for a path, so that many examples cost no disk."""

    name = "image.nii.gz"
    content = b""

    def read_bytes(self) -> bytes:
        return self.content


PATH = InMemory()


@pytest.fixture(scope="module", autouse=True)
def compressed(tmp_path_factory: pytest.TempPathFactory) -> None:
    global COMPRESSED
    path = write_nifti(tmp_path_factory.mktemp("good") / "image.nii.gz", GOOD)
    COMPRESSED = path.read_bytes()


COMPRESSED = b""


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_a_sound_file_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    volume = read_verified(write_nifti(tmp_path / name, GOOD[..., None], affine))
    np.testing.assert_array_equal(volume.data, GOOD)
    np.testing.assert_array_equal(volume.affine, affine)
    assert volume.data.dtype == np.float32
    assert volume.size_bytes == (tmp_path / name).stat().st_size
