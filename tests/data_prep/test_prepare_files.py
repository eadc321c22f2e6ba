"""What a file may be, and what becomes of it: a reason to refuse it, or flags and the right voxels.

One table of damage and one of odd files; the rest are laws over all places, cuts and formats.
"""

import errno
import gzip
import json
import os
import struct
import tempfile
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.spatial.transform import Rotation
from small_volumes import LAYOUT, MM, affine, brain, head, save, write_nifti
from studies import Study

from data_prep.common.errors import VolumeError
from data_prep.config import PrepareConfig
from data_prep.sources.path_template import Subject
from data_prep.store import OWN_DIGEST
from data_prep.volume import verify
from data_prep.volume.plausibility import PlausibilityConfig, code_of, expectations, words_of
from data_prep.volume.transforms import Volume, load_volume, read_mask
from data_prep.volume.verify import read_verified

GOOD = brain((16, 17, 18))
DATA = head()
BRAIN = DATA > 0
SOUND = gzip.compress(nib.Nifti1Image(GOOD, np.eye(4)).to_bytes(), 1)


def changed(place: int, value: bytes) -> bytes:
    """A sound file with other bytes in its header."""
    content = bytearray(gzip.decompress(SOUND))
    content[place : place + len(value)] = value
    return gzip.compress(bytes(content))


def with_value(value: float, dtype: type = np.float32) -> bytes:
    data = GOOD.astype(dtype)
    data[3, 3, 3] = value
    return gzip.compress(nib.Nifti1Image(data, np.eye(4)).to_bytes())


def image_of(data: np.ndarray, side: float = 1) -> bytes:
    return gzip.compress(nib.Nifti1Image(data, np.diag([side, side, side, 1])).to_bytes())


def flipped(content: bytes, place: int, mask: int = 0xFF) -> bytes:
    damaged = bytearray(content)
    damaged[place] ^= mask
    return bytes(damaged)


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


# What image.nii.gz holds, or what is done to it; and the reason.
DAMAGE: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "cut": (SOUND[:-200], "truncated"),
    "one byte inverted": (flipped(SOUND, len(SOUND) // 2), "corrupt"),
    "empty": (b"", "empty"),
    "html": (b"\n<!DOCTYPE html><html><title>Please log in</title></html>", "html"),
    "nan": (with_value(np.nan), "nan"),
    "infinite": (with_value(-np.inf), "infinite"),
    "beyond float32": (with_value(1e300, np.float64), "infinite"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(500), "wrong_format"),
    "packed png": (gzip.compress(b"\x89PNG" + bytes(500)), "wrong_format"),
    "dicom": (bytes(128) + b"DICM" + bytes(500), "dicom"),
    "mgh": (gzip.compress(nib.MGHImage(GOOD, np.eye(4)).to_bytes()), "wrong_extension"),
    "within header": (gzip.compress(gzip.decompress(SOUND)[:300]), "truncated"),
    "trailing bytes": (SOUND + b"some more", "corrupt"),
    "4-D": (image_of(np.stack([GOOD, GOOD], -1)), "dimensions"),
    "constant": (image_of(np.full_like(GOOD, 7)), "constant"),
    "uncompressed": (gzip.decompress(SOUND), "not_gzip"),
    "nonsense": (gzip.compress(b"neither of the two" * 50), "not_nifti"),
    "fewer voxels": (gzip.compress(gzip.decompress(SOUND)[:-1000]), "truncated"),
    "no affine": (changed(280, struct.pack("<12f", *[float("nan")] * 12)), "header"),
    "micrometres": (image_of(GOOD, 1000), "header"),
    "no orientation": (changed(252, bytes(4)), "no_orientation"),
    "folder": (in_its_place(Path.mkdir), "directory"),
    "broken link": (in_its_place(lambda p: p.symlink_to("../nowhere")), "broken_link"),
    "link to itself": (in_its_place(lambda p: p.symlink_to(p.name)), "broken_link"),
    "pipe": (in_its_place(os.mkfifo), "not_a_file"),
    "gone": (Path.unlink, "missing"),
}


def spoil(path: Path, case: str) -> str:
    """Damage a file; the reason that it should be refused for."""
    damage, reason = DAMAGE[case]
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        damage(path)
    return reason


def reason_of(path: Path, mask: Path | None = None, **keys: Any) -> str:
    """Why a file is refused, by whichever step."""
    config = PrepareConfig(source="hcp", root=".", **keys)
    with pytest.raises(VolumeError) as error:
        load_volume(path, mask, config).slices(config)
    assert (mask or path).name in str(error.value) or path.name in str(error.value)
    assert "\n" not in str(error.value)
    return error.value.reason


@pytest.fixture(params=["isal", "zlib"])
def inflater(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to unpack: with the extra `fast` and without it."""
    if request.param == "zlib":
        monkeypatch.setattr(verify, "isal_zlib", None)
    elif verify.isal_zlib is None:
        pytest.skip("isal is not installed")


@pytest.mark.parametrize("case", DAMAGE)
def test_each_damage_has_its_own_reason(tmp_path: Path, inflater: None, case: str) -> None:
    path = tmp_path / "image.nii.gz"
    path.write_bytes(SOUND)
    expected = spoil(path, case)
    assert reason_of(path) == expected


def test_all_damage_in_one_run_is_found_and_costs_nobody_else(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the table cuts, and flipped bytes at random places of stream and checksum."""
    expected: dict[str, set[str]] = {}

    def sick(name: str, *reasons: str) -> Path:
        expected[name] = set(reasons)
        return write_nifti(study.root / LAYOUT.replace("{subject}", name), brain())

    for number, case in enumerate(set(DAMAGE) - {"gone"}):
        path = sick(f"d{number:02}")
        expected[f"d{number:02}"] = {spoil(path, case)}
    for number in range(10):
        path = sick(f"cut{number}", "truncated")
        path.write_bytes(path.read_bytes()[: 1 + number * 600])
    draw = np.random.default_rng(0)
    for number in range(20):
        path = sick(f"flip{number:02}", "corrupt", "truncated")
        content = path.read_bytes()
        path.write_bytes(flipped(content, draw.integers(10, len(content))))
    refused, opened = sick("locked", "no_permission").name, verify._opened

    def locked(path: Path) -> object:
        if path.parents[1].name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path)

    monkeypatch.setattr(verify, "_opened", locked)
    before = study.store.entries
    study.run(code=3)
    reasons = {q.subject: q.reason for q in study.store.quarantined}
    assert study.store.entries == before and refused
    assert reasons.keys() == expected.keys()
    assert {n: r for n, r in reasons.items() if r not in expected[n]} == {}
    # Cut-off is claimed of a whole file only where its own last four bytes say so.
    assert [reasons[name] for name in reasons if name[:4] == "flip"].count("corrupt") >= 19
    stamps = study.times()
    study.run(code=3)  # in vain: nothing is written
    assert study.times() == stamps
    # Once mended, a file that changed is read again, and so is one whose refusal leaves no trace.
    write_nifti(study.root / LAYOUT.replace("{subject}", "cut3"), brain(seed=1))
    monkeypatch.setattr(verify, "_opened", opened)
    study.run(code=3)
    assert len(study.store.entries) == len(before) + 2


def test_refusals_of_the_file_system_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    def failing(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(verify, "_opened", failing)
    assert reason_of(tmp_path / "image.nii.gz") == "unreadable"


@pytest.mark.parametrize("mask", [0xFF, 1, 128])
def test_no_changed_byte_changes_a_voxel_unnoticed(
    tmp_path: Path, inflater: None, mask: int
) -> None:
    """At every 37th place and at all of the gzip header and trailer. Where nothing is told, the
    byte means nothing: it is the header's time stamp, system or a hint, or a bit of the deflate
    code that no symbol uses, and every reader unpacks the same content."""
    path, size = tmp_path / "image.nii.gz", len(SOUND)
    path.write_bytes(SOUND)
    expected = read_verified(path)
    places = {*range(12), *range(12, size, 37), *range(size - 10, size)}
    unnoticed = set()
    for place in places:
        path.write_bytes(flipped(SOUND, place, mask))
        try:
            read = read_verified(path)
        except VolumeError as error:
            assert error.reason in ("corrupt", "not_gzip", "truncated"), place
            # A complete file is never called cut short.
            assert error.reason != "truncated" or place < 12 or place >= size - 4
        else:
            np.testing.assert_array_equal(read.data, expected.data)
            assert read.sha256 != expected.sha256
            unnoticed.add(place)
    assert {4, 5, 6, 7, 8, 9} <= unnoticed
    assert len(unnoticed) < 0.03 * len(places) + 8


def test_a_file_cut_short_anywhere_is_truncated(tmp_path: Path, inflater: None) -> None:
    path, size = tmp_path / "image.nii.gz", len(SOUND)
    for length in {*range(1, 21), *range(20, size, size // 17), *range(size - 11, size)}:
        path.write_bytes(SOUND[:length])
        assert reason_of(path) == "truncated", length


@pytest.mark.parametrize("pieces", [1, 7, 353])
def test_gzip_members_in_a_row_and_zeros_behind_them_are_one_file(
    tmp_path: Path, inflater: None, pieces: int
) -> None:
    plain = gzip.decompress(SOUND)
    length = -(-len(plain) // pieces)
    cuts = [plain[n : n + length] for n in range(0, len(plain), length)]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(map(gzip.compress, cuts)) + bytes(700))
    np.testing.assert_array_equal(read_verified(tmp_path / "a.nii.gz").data, GOOD)


FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f".nii.gz of {t}": ("a.nii.gz", {"dtype": t}) for t in ("f4", "f8", "i2", "i4", "u2", "u1")},
    "capitals": ("A.NII.GZ", {}),
    "mixed": ("a.Nii", {}),
    "mgz": ("a.MGZ", {"kind": nib.MGHImage}),
    "mgh": ("a.mgh", {"kind": nib.MGHImage}),
    "nifti 2": ("a.nii.gz", {"kind": nib.Nifti2Image}),
    "big-endian": ("a.nii", {"big_endian": True, "dtype": ">f4"}),
    "pair": ("a.img", {"kind": nib.Nifti1Pair}),
    "packed pair": ("a.img.gz", {"kind": nib.Nifti1Pair}),
    "pair of nifti 2": ("a.img", {"kind": nib.Nifti2Pair}),
    "big-endian pair": ("a.img", {"kind": nib.Nifti1Pair, "big_endian": True, "dtype": ">i2"}),
    "analyze": ("a.img", {"kind": nib.AnalyzeImage, "dtype": np.int16}),
    "big-endian analyze": (
        "a.img",
        {"kind": nib.AnalyzeImage, "big_endian": True, "dtype": ">i2"},
    ),
    "spm": ("a.img", {"kind": nib.Spm2AnalyzeImage}),
}


@pytest.mark.parametrize("case", FORMATS)
def test_every_format_gives_what_was_written(tmp_path: Path, case: str) -> None:
    """A pair by either of its files, also in capitals."""
    name, keys = FORMATS[case]
    data = GOOD.astype(np.uint8)
    save(tmp_path / name, data, np.diag([2.0, 3, 4, 1]), **keys)
    names = [name]
    if ".img" in name:
        names.append(name.replace("img", "hdr"))
        for path in sorted(tmp_path.iterdir()):
            (tmp_path / path.name.upper()).write_bytes(path.read_bytes())
        names.append(name.replace("img", "hdr").upper())
    for asked in names:
        volume = read_verified(tmp_path / asked, assume_orientation="RAS")
        np.testing.assert_array_equal(volume.data, data)
        np.testing.assert_array_equal(nib.affines.voxel_sizes(volume.affine), [2, 3, 4])
        assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
        assert volume.data.dtype == np.float32


def test_slope_intercept_and_axes_of_one_voxel_are_as_nibabel_has_them(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(changed(112, struct.pack("<2f", 0.5, 100)))
    np.testing.assert_array_equal(read_verified(tmp_path / "a.nii.gz").data, GOOD * 0.5 + 100)
    path = write_nifti(tmp_path / "b.nii", GOOD[..., None])
    np.testing.assert_array_equal(read_verified(path).data, GOOD)
    assert read_verified(path).size_bytes == path.stat().st_size


def test_pairs_are_told_of_the_file_that_is_wrong(tmp_path: Path) -> None:
    header, voxels = tmp_path / "a.hdr.gz", tmp_path / "a.img.gz"
    whole = save(tmp_path / "b.nii.gz", DATA).read_bytes()

    def refused(change: Callable[[], object]) -> str:
        save(voxels, DATA, kind=nib.Nifti1Pair)
        change()
        with pytest.raises(VolumeError) as error:
            read_verified(header)
        assert error.value.reason != "missing" or "needs beside it" in str(error.value)
        return error.value.reason

    assert refused(voxels.unlink) == "missing"
    assert refused(lambda: voxels.write_bytes(voxels.read_bytes()[:-400])) == "truncated"
    assert refused(lambda: header.write_bytes(header.read_bytes()[:50])) == "truncated"
    assert refused(lambda: header.write_bytes(whole)) == "wrong_extension"
    assert refused(lambda: voxels.write_bytes(flipped(voxels.read_bytes(), 5000))) == "corrupt"
    save(tmp_path / "a.img", DATA, kind=nib.Nifti1Pair)
    (tmp_path / "c.nii").write_bytes((tmp_path / "a.hdr").read_bytes() + bytes(400))
    assert reason_of(tmp_path / "c.nii") == "wrong_extension"
    (tmp_path / "d.nii").write_bytes(SOUND)
    assert reason_of(tmp_path / "d.nii") == "wrong_extension"


@pytest.mark.parametrize("half", ["hdr", "img"])
def test_a_change_of_either_half_is_a_change(tmp_path: Path, half: str) -> None:
    save(tmp_path / "a.img", DATA, kind=nib.Nifti1Pair)
    subject = Subject("a", "a", tmp_path, "a.hdr")
    before, sha256 = subject.fingerprint(), read_verified(tmp_path / "a.hdr").sha256
    path = tmp_path / f"a.{half}"
    path.write_bytes(flipped(path.read_bytes(), -1 if half == "img" else 260, 1) + b"\0")
    assert subject.fingerprint() != before
    assert read_verified(tmp_path / "a.hdr").sha256 != sha256


def scaled(factor: float) -> np.ndarray:
    place = affine()
    place[:3] *= factor
    return place


def turned(degrees: float) -> np.ndarray:
    place = affine()
    turn = Rotation.from_rotvec(np.radians(degrees) * np.array([0, 0, 1])).as_matrix()
    place[:3, :3] = turn @ place[:3, :3]
    return place


def sheared(degrees: float) -> np.ndarray:
    place = affine()
    place[0, 1] = MM * np.tan(np.radians(degrees))
    return place


def standardised(values: np.ndarray, centre: float, spread: float) -> np.ndarray:
    return np.where(BRAIN, (DATA - centre) / spread, values).astype(np.float32)


def without(kept: tuple[slice, ...]) -> np.ndarray:
    data = np.zeros_like(DATA)
    data[kept] = DATA[kept]
    return data


def speckled() -> np.ndarray:
    apart = (np.indices(DATA.shape) % 2 == 0).all(axis=0) & ~BRAIN
    return np.where(apart, 500, DATA).astype(np.float32)


def dark() -> np.ndarray:
    data = DATA / 5
    data[20:26, 20:26, 20:26] = 3000
    return data


INSIDE = DATA[BRAIN]
NOISE = np.random.default_rng(0).uniform(1, 20, DATA.shape).astype(np.float32)
RINGING = np.where((np.random.default_rng(0).random(DATA.shape) < 0.05) & ~BRAIN, -3, DATA)
PROBABILITY = np.clip(1 - distance_transform_edt(~BRAIN) / 6, 0, 1).astype(np.float32)
LABELS = np.where(BRAIN, 1 + (np.arange(44) % 40)[:, None, None] * 50, 0)

# Data, keys of `save`, and codes of flags (of which, in a set, there may be more).
ODD: dict[str, tuple[np.ndarray, dict[str, Any], Any]] = {
    "a sound head": (DATA, {}, []),
    "no unit": (DATA, {"unit": None}, []),
    "metres": (DATA, {"place": scaled(0.001), "unit": "m"}, ["units"]),
    "micrometres": (DATA, {"place": scaled(1000), "unit": "um"}, ["units"]),
    **{
        f"background of {offset}": (DATA + np.float32(offset), {}, ["background"])
        for offset in (-1, 1, 1000, -1024)
    },
    "standardised": (standardised(0 * DATA, INSIDE.mean(), INSIDE.std()), {}, ["background"]),
    "standardised whole": ((DATA - DATA.mean()) / DATA.std(), {}, ["background"]),
    "robust": (standardised(0 * DATA, np.median(INSIDE), np.ptp(INSIDE)), {}, ["background"]),
    "ringing": (RINGING.astype(np.float32), {}, []),
    "a rim": (np.pad(DATA, 2, constant_values=-1), {}, []),
    "noise around": (
        np.where(BRAIN, DATA, NOISE),
        {},
        {"filled_percent", "box_percent", "cut_off_percent", "brain_ml"},
    ),
    "half": (without(np.s_[:, :, 26:]), {}, {"brain_ml"}),
    "cut off": (DATA[:, :, 14:], {}, {"cut_off_percent"}),
    "specks": (speckled(), {}, {"largest_piece_percent"}),
    "clipped": (np.minimum(DATA, np.percentile(INSIDE, 90)), {}, {"saturated_percent"}),
    "a bright spot": (dark(), {}, {"mean_percent"}),
    "half the size": (DATA, {"place": affine(2)}, {"brain_ml", "length_mm"}),
    "double the size": (DATA, {"place": affine(7)}, {"brain_ml", "length_mm"}),
    "3 degrees": (DATA, {"place": turned(3)}, []),
    "40 degrees": (DATA, {"place": turned(40)}, ["oblique_degrees"]),
    "sheared a little": (DATA, {"place": sheared(0.5), "forms": (1, 0)}, []),
    "sheared": (DATA, {"place": sheared(3), "forms": (1, 0)}, {"shear_degrees"}),
    "sform alone": (DATA, {"forms": (1, 0)}, []),
    "qform alone": (DATA, {"forms": (0, 1)}, []),
}


def loaded(
    folder: Path, data: np.ndarray, mask: np.ndarray | None = None, **keys: Any
) -> tuple[Volume, list[str]]:
    """A volume, and the codes of its flags. keys: of the configuration, or of `save`."""
    own = {k: keys.pop(k) for k in ("place", "unit", "forms", "kind") if k in keys}
    given = None if mask is None else save(folder / "mask.nii.gz", mask)
    config = PrepareConfig(source="hcp", root=".", **keys)
    volume = load_volume(save(folder / "a.nii.gz", data, **own), given, config)
    return volume, [code_of(flag) for flag in volume.scan.flags]


@pytest.mark.parametrize("case", ODD)
def test_odd_volumes_are_used_and_flagged(tmp_path: Path, case: str) -> None:
    data, keys, expected = ODD[case]
    volume, codes = loaded(tmp_path, data.astype(np.float32), **keys)
    assert codes == expected if isinstance(expected, list) else expected <= set(codes)
    if expected in ([], ["background"], ["units"]):  # the very brain, all the same
        plain, _ = loaded(tmp_path, DATA)
        at = np.s_[2:-2, 2:-2, 2:-2] if case == "a rim" else np.s_[:]
        assert (volume.mask[at] != plain.mask).mean() < 1e-4  # a voxel may be the median itself
        if "degrees" not in case and "sheared" not in case and case != "a rim":
            np.testing.assert_allclose(volume.affine, plain.affine, atol=1e-4)
        if case.startswith("background"):
            np.testing.assert_allclose(volume.data, plain.data, atol=1e-4)


@pytest.mark.parametrize("millimetres", [0.0, 1.9, 2.1])
def test_two_affines_more_than_a_voxel_apart_are_flagged(
    tmp_path: Path, millimetres: float
) -> None:
    """By a shift, or by a turn whose far corner is apart; the sform is used."""
    image = nib.Nifti1Image(GOOD, np.diag([2.0, 3, 4, 1]))
    other = image.affine.copy()
    other[1, 3] += millimetres
    image.set_sform(image.affine, 1)
    image.set_qform(other, 1)
    nib.save(image, tmp_path / "a.nii")
    volume = read_verified(tmp_path / "a.nii")
    assert volume.flags == (("sform_qform",) if millimetres > 2 else ())
    np.testing.assert_array_equal(volume.affine, image.affine)
    image.set_qform(turned(10), 1)
    image.set_sform(affine(), 1)
    nib.save(image, tmp_path / "a.nii")
    assert read_verified(tmp_path / "a.nii").flags == ("sform_qform",)
    # Mirrored is worse than moved, and told as such.
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ affine(), 1)
    nib.save(image, tmp_path / "a.nii")
    mirrored = read_verified(tmp_path / "a.nii")
    assert mirrored.flags == ("left_right",) and "left and right" in words_of(*mirrored.flags)
    np.testing.assert_allclose(mirrored.affine, affine())


@pytest.mark.parametrize(
    ("unit", "factor", "told"),
    [("mm", 0.001, "mm"), (None, 0.001, "no unit"), ("um", 1, "micron"), ("m", 1, "metre")],
)
def test_lengths_that_cannot_be_of_that_unit_are_refused(
    tmp_path: Path, unit: str | None, factor: float, told: str
) -> None:
    with pytest.raises(VolumeError, match=rf"{told}.*xyzt_units"):
        read_verified(save(tmp_path / "a.nii.gz", DATA, scaled(factor), unit=unit))


def unoriented(folder: Path, kind: str, data: np.ndarray = DATA) -> Path:
    """A file whose header says nothing of where its axes run to."""
    if kind == "nifti":
        return save(folder / "a.nii.gz", data, forms=(0, 0))
    if kind == "nifti2":
        return save(folder / "a.nii", data, forms=(0, 0), kind=nib.Nifti2Image)
    if kind == "analyze":
        return save(folder / "a.hdr", data, kind=nib.AnalyzeImage)
    content = nib.MGHImage(data, affine()).to_bytes()
    (folder / "a.mgz").write_bytes(gzip.compress(content[:28] + b"\0\0" + content[30:]))
    return folder / "a.mgz"


@pytest.mark.parametrize("kind", ["nifti", "nifti2", "mgh", "analyze"])
@pytest.mark.parametrize("assumed", ["", "LAS", "PIR", "SLA"])
def test_without_an_orientation_a_file_is_refused_or_read_as_assumed(
    tmp_path: Path, kind: str, assumed: str
) -> None:
    """What is stored along those axes comes back as what it is."""
    ras = nib.Nifti1Image(DATA, affine())
    codes = nib.orientations.axcodes2ornt(tuple(assumed or "RAS"))
    turn = nib.orientations.ornt_transform(nib.io_orientation(ras.affine), codes)
    path = unoriented(tmp_path, kind, np.asarray(ras.as_reoriented(turn).dataobj))
    if not assumed:
        assert reason_of(path) == "no_orientation"
        return
    config = PrepareConfig(source="hcp", root=".", assume_orientation=assumed)
    volume = load_volume(path, None, config)
    np.testing.assert_array_equal(volume.data, loaded(tmp_path, DATA)[0].data)
    assert volume.scan.native.orientation == assumed
    flag = volume.scan.flags[0]
    assert code_of(flag) == "assumed_orientation" and assumed in words_of(flag)


def test_orientations_are_the_48_and_no_others() -> None:
    for axes, ends in product(permutations(("LR", "PA", "IS")), product((0, 1), repeat=3)):
        codes = "".join(axis[end] for axis, end in zip(axes, ends, strict=True))
        assert PrepareConfig(source="hcp", assume_orientation=codes).assume_orientation == codes
    for wrong in ("ras", "RA", "RAR", "LRS", "R A S", "XYZ", "RASS"):
        with pytest.raises(ValueError, match=r"prepare\.assume_orientation"):
            PrepareConfig(source="hcp", root=".", assume_orientation=wrong)


MASKS: dict[str, tuple[np.ndarray, float, str]] = {
    **{f"one value, {v}": ((BRAIN * v).astype(np.float32), 0.5, "") for v in (1, 255, 7, 0.003)},
    "probabilities": (PROBABILITY, 0.5, "brain is from 0.5 on"),
    "strict": (PROBABILITY, 0.9, "brain is from 0.9 on"),
    "per cent": (np.round(PROBABILITY * 100).astype(np.int16), 50, "brain is from 50 on"),
    "per cent, unsaid": (np.round(PROBABILITY * 100).astype(np.uint8), 0.5, "set it to 50"),
    "labels": (LABELS.astype(np.int16), 0.5, "mask holds several values"),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_of_one_value_is_that_and_one_of_several_is_cut_and_flagged(
    tmp_path: Path, case: str
) -> None:
    mask, threshold, told = MASKS[case]
    volume, codes = loaded(tmp_path, DATA + 50, mask, mask_threshold=threshold)
    np.testing.assert_array_equal(volume.mask, mask >= threshold if told else mask > 0)
    assert codes[:1] == ["mask_values"] * bool(told)
    assert told in "".join(volume.scan.flags)


def test_masks_must_lie_on_their_image(tmp_path: Path) -> None:
    image = save(tmp_path / "a.nii.gz", DATA + 50)
    mask = BRAIN.astype(np.uint8)
    metres = save(tmp_path / "metres.nii.gz", mask, scaled(0.001), unit="m")
    config = PrepareConfig(source="hcp", root=".")
    np.testing.assert_array_equal(load_volume(image, metres, config).mask, BRAIN)
    # The same place in another storage order is brought to the image's axes.
    turned = nib.as_closest_canonical(nib.Nifti1Image(mask, affine()))
    for codes in ("LAS", "PIR", "SRA"):
        ends = nib.orientations.axcodes2ornt(codes)
        other = turned.as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(turned.affine), ends)
        )
        nib.save(other, tmp_path / f"{codes}.nii.gz")
        same = load_volume(image, tmp_path / f"{codes}.nii.gz", config).mask
        np.testing.assert_array_equal(same, BRAIN)
        direct = read_mask(tmp_path / f"{codes}.nii.gz", BRAIN.shape, affine())
        np.testing.assert_array_equal(direct, BRAIN)
    for name, data, place, reason in (
        ("other.nii", mask[1:], None, "mask_shape"),
        ("moved.nii", mask, affine(4.1), "mask_position"),
        ("none.nii", 0 * mask, None, "no_brain"),
    ):
        assert reason_of(image, save(tmp_path / name, data, place)) == reason


def test_slices_that_show_nothing_are_no_result(tmp_path: Path) -> None:
    """A mask beside the brain: all that it holds is one intensity, but for a few voxels."""
    assert reason_of(save(tmp_path / "small.nii.gz", DATA, affine(0.5))) == "too_small"
    data, mask = np.zeros_like(DATA), np.zeros(DATA.shape, np.uint8)
    mask[4:40, 4:48, 4:40] = 1
    data[20, 20, 5] = data[21, 20, 5] = 500  # a slice that is not taken
    keys = {"lower_percentile": 0.0, "upper_percentile": 100.0, "slice_spacing_mm": 8.0}
    paths = save(tmp_path / "a.nii.gz", data), save(tmp_path / "m.nii.gz", mask)
    assert reason_of(*paths, **keys) == "black"
    data[20:30, 20:30, 22:26] = 500
    volume, _ = loaded(tmp_path, data, mask, **keys)
    cut = volume.slices(PrepareConfig(slice_spacing_mm=8.0))
    assert [code_of(flag) for flag in cut.flags] == ["black_slices"]
    assert 0 < sum(not picture.any() for picture in cut.images) < len(cut.images)


def test_expectations_are_checked_and_have_sources(raw: Study) -> None:
    assert len(expectations()) == 12
    for row in expectations():
        assert row.metadata["source"] and row.metadata["below"] + row.metadata["above"]
    for wrong in ("[5,1]", "[-1,3]", "[1,.inf]", "3"):
        assert "brain_ml" in raw.run(f"--prepare.plausibility.brain_ml={wrong}", code=2)
    assert "'quarantine'" in raw.run("--prepare.plausibility.action=stop", code=2)


def test_only_those_whom_an_expectation_or_an_assumption_concerns_are_prepared_again(
    raw: Study,
) -> None:
    save(raw.root / "good.nii.gz", DATA)
    save(raw.root / "half.nii.gz", without(np.s_[:, :, 26:]))
    save(raw.root / "lost.nii.gz", head(1), forms=(0, 0))
    keys = {"template": "{subject}.nii.gz", "spacing_mm": 6.0, "plausibility": {"action": "flag"}}
    told = raw.run(code=3, **keys)
    assert "lost: no_orientation" in told and "half: brain volume" in told
    findings = {entry.subject: entry.findings for entry in raw.store.entries}
    assert set(findings["good"]) == {row.name for row in expectations()}
    assert findings["good"]["brain_ml"] == pytest.approx(BRAIN.sum() * 0.064, rel=1e-3)
    html = (raw.folder / "report/index.html").read_text()
    assert "expected 700 to 2,200" in html and "doi 10.1093/cercor/bhy109" in html
    assert "nothing to do" in raw.run(code=3, **keys)

    lost = "--prepare.assume_orientation=LAS"
    told = raw.run(lost, **keys)
    assert "prepare.assume_orientation changed: 1 subject: lost" in told
    assert "LAS is assumed" in told
    assert "1 subject: lost" in raw.run("--prepare.assume_orientation=RAS", **keys)
    raw.run(lost, **keys)

    strict = "--prepare.plausibility.action=quarantine"
    told = raw.run(lost, strict, code=3, **keys)
    assert "prepare.plausibility changed: 1 subject: half" in told
    assert "half: implausible: half.nii.gz: brain volume" in told and "brain height" in told
    wider = ("brain_ml=[100,2200]", "height_mm=[40,220]")
    raw.run(lost, strict, *(f"--prepare.plausibility.{key}" for key in wider), **keys)
    assert not any(entry.flags for entry in raw.store.entries if entry.subject == "half")


def test_a_store_from_before_there_were_checks_is_read_and_checked_anew(study: Study) -> None:
    path = study.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checks_version"], manifest[OWN_DIGEST]
    for item in manifest["subjects"]:
        del item["findings"]
    path.write_text(json.dumps(manifest))
    before = study.store
    assert before.entries[0].findings == {}
    assert "an earlier version of this program checked it" in study.run()
    assert study.store.digest == before.digest and study.store.entries[0].findings
    # Keys that are new are recorded only where they are used: a store keeps its digest.
    recorded = PrepareConfig(source="hcp", root=".").recorded()
    assert not {"plausibility", "mask_threshold", "assume_orientation"} & recorded.keys()
    ours = PrepareConfig(plausibility=PlausibilityConfig(action="ignore")).recorded()
    assert ours["plausibility"]["action"] == "ignore"
