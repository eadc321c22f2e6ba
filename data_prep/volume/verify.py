"""A volume's file, read to its end: its checksums compared, its header and its voxels checked.

nibabel alone reads a compressed volume only as far as it needs to and never reaches the
checksum at the end of the gzip stream: a damaged byte then becomes wrong anatomy in silence.
"""

import contextlib
import errno
import hashlib
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.spm2analyze import Spm2AnalyzeHeader

from data_prep.common.errors import VolumeError
from data_prep.volume.plausibility import ASSUMED_ORIENTATION, FORMS_DISAGREE, MIRRORED, UNITS

# The optional extra `fast` inflates about twice as fast; both find the same damage.
isal_zlib: Any = None
with contextlib.suppress(ImportError):
    from isal import isal_zlib

GZIP_MAGIC = b"\x1f\x8b"

HALVES = {".hdr": ".img", ".img": ".hdr"}  # NIfTI pairs and Analyze 7.5: header and voxels
HEADER_BYTES = 540  # enough of a file to hold any header
FOOTER_BYTES = 1 << 16  # may follow the last voxel: an MGH file's footer and tags
MGH_BYTES, GOOD_RAS = 284, slice(28, 30)  # its header, and where that says if it is oriented

# Voxels beyond these are a broken header (often metres or micrometres, and nothing says so). The
# finest volume of a whole human brain, BigBrain, has 0.02 mm.
SMALLEST_VOXEL_MM, LARGEST_VOXEL_MM = 0.01, 20.0

# Units of length that a NIfTI or an Analyze header can declare, and their mm; none means mm.
LENGTHS = {1: ("metre", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}
ANALYZE_LENGTHS = {b"mm": ("mm", 1.0), b"cm": ("cm", 10.0), b"um": ("micron", 0.001)}

# As assume_orientation: any axes will do, for an array without a place in space.
ANYWHERE = "anywhere"

# First bytes of files that are mistaken for images.
_OTHERS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"NRRD": "an NRRD volume",
    b"\x89HDF": "an HDF5 file (perhaps MINC)",
}


@dataclass(frozen=True)
class VerifiedVolume:
    """A checked volume.

    data: (X, Y, Z) float32 in the file's own storage order (Fortran) and intensity units.
    affine: (4, 4) float64, voxel indices to RAS mm.
    sha256, size_bytes: of the file's bytes as they lie on disk; of a pair, header before voxels.
    flags: what is odd about the file though it is usable (plausibility.py).
    """

    data: np.ndarray
    affine: np.ndarray
    sha256: str
    size_bytes: int
    flags: tuple[str, ...] = ()


def read_verified(
    path: Path,
    *,
    constant_allowed: bool = False,
    flat_allowed: bool = False,
    assume_orientation: str = "",
) -> VerifiedVolume:
    """Read a NIfTI, MGH or Analyze file and check all that can be checked about one file.

    That is .nii, .mgh, .mgz, or either file of a pair .hdr and .img, also with .gz behind it; case
    does not matter. Memory: the file, its content and the float32 volume.

    Args:
        path: the file.
        constant_allowed: accept a volume with one value everywhere (a mask may be that).
        flat_allowed: accept a single slice; its data has three axes all the same.
        assume_orientation: where the axes run to, such as "LAS", if the header does not say; ""
            refuses such a file, and ANYWHERE takes what nibabel makes of it.

    Raises:
        VolumeError: `reason` is one of missing, broken_link, directory, not_a_file, no_permission,
            unreadable, empty, html, dicom, wrong_format, wrong_extension, not_gzip, truncated,
            corrupt, not_nifti, header, dimensions, no_orientation, nan, infinite, constant.
    """
    files = files_of(path)
    packed = [_bytes_of(file, path) for file in files]
    contents = [_unpacked(*pair) for pair in zip(packed, files, strict=True)]
    name, (content, whole) = files[-1].name, contents[-1]
    start, pair = contents[0][0][:HEADER_BYTES], len(files) > 1
    if not contents[0][1] and (pair or len(content) < HEADER_BYTES):
        raise VolumeError("truncated", f"{files[0].name} ends before its gzip stream does")
    try:
        header = _header(start, files[0].name, pair, flat_allowed, assume_orientation)
    except VolumeError:
        if whole:
            raise
        raise VolumeError("corrupt", f"{name} is damaged inside") from None
    count = int(np.prod(header.shape, dtype=np.int64))
    end = header.offset + count * header.dtype.itemsize
    if not whole:
        # A damaged byte can also make the inflater run past the end. A file that is complete still
        # carries the right length in its last four bytes.
        length = int.from_bytes(packed[-1][-4:], "little")
        if 0 <= length - end % 2**32 < FOOTER_BYTES:
            raise VolumeError("corrupt", f"{name} is damaged inside")
        raise VolumeError("truncated", f"{name} ends before its gzip stream does")
    if end > len(content):
        raise VolumeError("truncated", f"{name} holds fewer voxels than its header says")
    if end + FOOTER_BYTES < len(content):
        raise VolumeError("header", f"{name} holds more than its header says")
    data = np.frombuffer(content, header.dtype, count, header.offset)
    with np.errstate(over="ignore", invalid="ignore"):  # reported below, as infinite or NaN
        if (header.slope, header.intercept) != (1.0, 0.0):
            # In float64 and in this order, as nibabel does it.
            data = data.astype(np.float64) * header.slope + header.intercept
        data = data.astype(np.float32).reshape(header.shape, order="F")
    low, high = data.min(), data.max()  # NaN wins in both
    if not np.isfinite([low, high]).all():
        nan, infinite = int(np.isnan(data).sum()), int(np.isinf(data).sum())
        if nan:
            raise VolumeError("nan", f"{name} holds {nan} values that are NaN")
        raise VolumeError("infinite", f"{name} holds {infinite} infinite values")
    if not constant_allowed and low == high:
        raise VolumeError("constant", f"{name} has the value {low:g} everywhere")
    digest = hashlib.sha256()
    for part in packed:
        digest.update(part)
    size = sum(map(len, packed))
    return VerifiedVolume(data, header.affine, digest.hexdigest(), size, header.flags)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a volume consists of: one, or header and voxels of a pair.

    Endings are compared without case, and either file of a pair may end in .gz. Where the other
    half is not there, its path is the likeliest one.
    """
    packed = path.name[-3:] if path.name.lower().endswith(".gz") else ""
    bare = Path(path.name.removesuffix(packed))
    other = HALVES.get(bare.suffix.lower())
    if other is None:
        return (path,)
    matching = other.upper() if bare.suffix.isupper() else other
    places = [
        path.with_name(bare.stem + cased + gz)
        for cased in (matching, other, other.upper())
        for gz in (packed, "", ".gz", ".GZ")
    ]
    half = next((place for place in places if place.exists()), places[0])
    return (half, path) if other == ".hdr" else (path, half)


def _bytes_of(path: Path, of: Path) -> bytes:
    """A file's bytes. of: the file that was asked for, where this one is its pair's other half."""
    name = path.name if path == of else f"{path.name}, which {of.name} needs beside it,"
    try:
        with _opened(path) as stream:
            content = stream.read()
    except OSError as error:
        # ELOOP: links that lead to each other.
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
            told = f"is a link to {os.readlink(path)}: nothing there"
            raise VolumeError("broken_link", f"{name} {told}") from None
        closed = VolumeError("no_permission", f"{name} may not be read by this user")
        other = VolumeError("unreadable", f"{name} cannot be read: {error.strerror}")
        known = {
            errno.EISDIR: VolumeError("directory", f"{name} is a folder, not a file"),
            errno.EACCES: closed,
            errno.EPERM: closed,
            errno.ENOENT: VolumeError("missing", f"{name} is not there"),
        }
        raise known.get(error.errno or 0, other) from None
    if not content:
        raise VolumeError("empty", f"{path.name} has no bytes in it")
    return content


def _opened(path: Path) -> BinaryIO:
    # Asked first, because opening a pipe would wait for a writer.
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise VolumeError("not_a_file", f"{path.name} is a device or a pipe, not a file")
    return path.open("rb", buffering=0)


def _unpacked(content: bytes, path: Path) -> tuple[bytes, bool]:
    """A file's content, and whether it is whole: its gzip stream ends before the file does.

    Of a gzip file every member is unpacked and its checksum compared; zeros may follow the last
    one, as on tapes. Raises VolumeError (wrong_extension, not_gzip, corrupt).
    """
    name = path.name
    named = name.lower().endswith((".gz", ".mgz"))
    packed = content[:2] == GZIP_MAGIC[: len(content)]
    if packed and not named:
        raise VolumeError("wrong_extension", f"{name} is compressed: its name must end in .gz")
    if not named:
        return content, True
    if not packed:
        _refuse_other_kinds(content[:HEADER_BYTES], name)
        raise VolumeError("not_gzip", f"{name} is named as a gzip file but is not compressed")
    library = isal_zlib or zlib
    parts: list[bytes] = []
    while content:
        if content[:2] != GZIP_MAGIC[: len(content)]:
            raise VolumeError("corrupt", f"{name} goes on after its gzip stream")
        inflater = library.decompressobj(wbits=31)  # a gzip member, header and checksum included
        try:
            parts.append(inflater.decompress(content))
        except library.error as error:
            raise VolumeError("corrupt", f"{name} is damaged inside: {error}") from None
        if not inflater.eof:
            return b"".join(parts), False
        content = inflater.unused_data.lstrip(b"\0")
    return b"".join(parts), True


def _refuse_other_kinds(start: bytes, name: str) -> None:
    """Raise VolumeError (html, dicom, wrong_format) where `start` begins a file of another kind."""
    if start[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        told = "is a web page, not an image: was the download logged in?"
        raise VolumeError("html", f"{name} {told}")
    if start[128:132] == b"DICM":
        told = "is a DICOM file, which is not read: convert it with dcm2niix first"
        raise VolumeError("dicom", f"{name} {told}")
    for magic, kind in _OTHERS.items():
        if start.startswith(magic):
            raise VolumeError("wrong_format", f"{name} is {kind}, not a NIfTI or MGH volume")


@dataclass(frozen=True)
class _Header:
    """Where the voxels are and what they mean: value = stored * slope + intercept."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray
    flags: tuple[str, ...]


def _header(start: bytes, name: str, pair: bool, flat_allowed: bool, assumed: str) -> _Header:
    """The header in the first bytes of a file's content. pair: its voxels are in another file.

    flat_allowed: a single slice will do, of two axes or with an axis of one voxel. assumed: as
    read_verified has assume_orientation.
    """
    kind = _kind(start, name, pair)
    length = MGH_BYTES if kind is MGHHeader else int(kind.sizeof_hdr)
    if len(start) < length:
        raise VolumeError("truncated", f"{name} ends within its header")
    try:
        header = kind(start[:length])
        dtype, shape = header.get_data_dtype(), tuple(int(n) for n in header.get_data_shape())
        offset = int(header.get_data_offset())
        slope, intercept = header.get_slope_inter()
        affine = np.asarray(header.get_best_affine(), np.float64)
        zooms = np.abs(np.asarray(header.get_zooms()[:3], np.float64))
    except Exception as error:  # nibabel raises many kinds for one damaged header
        raise VolumeError("header", f"{name} has a damaged header: {error}") from None
    if kind in (nib.Nifti1Header, nib.Nifti2Header):
        if bytes(header["magic"]).startswith(b"ni") != pair:
            told = (
                "is a whole NIfTI file, header and voxels: name it .nii"
                if pair
                else "is the header of a pair, its voxels are elsewhere: name it .hdr, beside .img"
            )
            raise VolumeError("wrong_extension", f"{name} {told}")
        if not pair and offset < length + 4:
            raise VolumeError("header", f"{name} has voxels that would begin inside its header")
    if dtype.kind not in "iuf":
        raise VolumeError("header", f"{name} has voxels of type {dtype}: not plain numbers")
    if flat_allowed and len(shape) == 2:
        shape, zooms = (*shape, 1), np.append(zooms, 1.0)[:3]
    least = 1 if flat_allowed else 2
    if len(shape) < 3 or min(shape[:3]) < least or any(n != 1 for n in shape[3:]):
        raise VolumeError(
            "dimensions",
            f"{name} has the shape {'x'.join(map(str, shape))}: one 3-D volume is needed",
        )
    first = (shape[0], shape[1], shape[2])
    unit, millimetres = _unit(header)
    flags = _disagreement(header, first, 1e-2 / millimetres)
    oriented = kind is MGHHeader and start[GOOD_RAS] != b"\0\0"
    if isinstance(header, nib.Nifti1Header):
        oriented = header["sform_code"] > 0 or header["qform_code"] > 0
    if assumed != ANYWHERE and not oriented:
        affine = _assumed(assumed, zooms, first, name)
        flags.append(
            f"{ASSUMED_ORIENTATION}: its header gives no orientation: {assumed} is assumed"
            " (prepare.assume_orientation), so left and right are as good as that"
        )
    if millimetres != 1:
        affine[:3] *= millimetres
        flags.append(f"{UNITS}: its header gives lengths in {unit}")
    # The determinant of the directions alone: that of voxels of micrometres is small, too.
    voxel = nib.affines.voxel_sizes(affine)
    sound = np.isfinite(affine).all() and voxel.min() > 0
    if not sound or abs(np.linalg.det(affine[:3, :3] / voxel)) < 1e-6:
        raise VolumeError("header", f"{name} has an orientation matrix without an inverse")
    large = voxel.max() > LARGEST_VOXEL_MM
    if large or (voxel.min() < SMALLEST_VOXEL_MM and assumed != ANYWHERE):
        declared = f"its header gives lengths in {unit}" if unit else "its header names no unit"
        odd = voxel.max() if large else voxel.min()
        raise VolumeError(
            "header",
            f"{name} has voxels of {odd:g} mm ({declared}): correct its affine, or its xyzt_units",
        )
    slope, intercept = (1.0 if slope is None else slope), (intercept or 0.0)
    return _Header(first, dtype, offset, float(slope), float(intercept), affine, tuple(flags))


def _kind(start: bytes, name: str, pair: bool) -> Any:
    """nibabel's class for the header in the first bytes of a file's content.

    Of a pair without NIfTI's magic, Analyze: as nibabel does, with the scaling of SPM.
    """
    _refuse_other_kinds(start, name)
    kind: Any = MGHHeader if start[:4] == b"\0\0\0\1" else None
    for nifti in (nib.Nifti1Header, nib.Nifti2Header):
        if start[:4] in (nifti.sizeof_hdr.to_bytes(4, order) for order in ("little", "big")):
            analyze = pair and nifti is nib.Nifti1Header and start[344:347] not in (b"ni1", b"n+1")
            kind = Spm2AnalyzeHeader if analyze else nifti
    if kind is None:
        raise VolumeError("not_nifti", f"{name} does not begin as a NIfTI or MGH file does")
    if (kind is MGHHeader) != name.lower().endswith((".mgh", ".mgz")):
        true, ending = ("an MGH", ".mgz") if kind is MGHHeader else ("a NIfTI", ".nii.gz")
        raise VolumeError("wrong_extension", f"{name} is {true} file: name it {ending}")
    return kind


def _unit(header: Any) -> tuple[str, float]:
    """The unit of length that a header declares, "" for none, and its mm."""
    if isinstance(header, nib.Nifti1Header):
        return LENGTHS.get(int(header["xyzt_units"]) & 7, ("", 1.0))
    if isinstance(header, MGHHeader):
        return "mm", 1.0
    return ANALYZE_LENGTHS.get(bytes(header["vox_units"]).strip(b"\0 ").lower(), ("", 1.0))


def _assumed(codes: str, zooms: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The affine (4, 4) of axes that run to `codes`, 0 mm in the middle of the volume."""
    if not codes:
        raise VolumeError(
            "no_orientation",
            f"{name} gives no orientation (sform and qform codes of 0, or Analyze), so left and "
            "right are unknown: convert it again from its source, or say where its axes run to "
            "with prepare.assume_orientation (anomaly: --assume_orientation), such as RAS or LAS",
        )
    affine = np.diag([0.0, 0, 0, 1])
    for axis, (world, sign) in enumerate(nib.orientations.axcodes2ornt(tuple(codes))):
        affine[int(world), axis] = sign * zooms[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def on_axes_of(
    data: np.ndarray, affine: np.ndarray, there: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A volume with its axes swapped and flipped to run as those of the affine `there`, and its
    affine then. No voxel is moved."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(there))
    back = nib.orientations.inv_ornt_aff(turn, data.shape)
    return nib.apply_orientation(data, turn), affine @ back


def _disagreement(header: Any, shape: tuple[int, int, int], tolerance: float) -> list[str]:
    """The flag of sform and qform, both given, that are more than a voxel's shortest edge apart at
    a corner: that they disagree about left and right, where they do.

    tolerance: in the header's unit. The quaternion is float32: equal affines differ by thousandths
    of a millimetre.
    """
    both = isinstance(header, nib.Nifti1Header) and header["sform_code"] > 0
    if not (both and header["qform_code"] > 0):
        return []
    try:
        sform, qform = header.get_sform(), header.get_qform()
        left = ["L" in nib.aff2axcodes(form) for form in (sform, qform)]
    except Exception:  # an impossible quaternion: there is one good affine, and no second opinion
        return [FORMS_DISAGREE]
    apart = sform - qform
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    distance = np.linalg.norm(apart[:3, :3] @ corners + apart[:3, 3:], axis=0).max()
    if distance <= nib.affines.voxel_sizes(sform).min() + tolerance:
        return []
    return [MIRRORED if left[0] != left[1] else FORMS_DISAGREE]
