"""Is this file what it claims to be: read once, to its end, and hashed on the way.

nibabel alone reads a compressed volume only as far as it needs to and never reaches the
checksum at the end of the gzip stream: a damaged byte then becomes wrong anatomy in silence.
"""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from data_prep.errors import VolumeError

# Larger voxels than this are a broken header (often micrometres written as millimetres).
LARGEST_VOXEL_MM = 20.0


@dataclass(frozen=True)
class VerifiedVolume:
    """A checked volume.

    data: (X, Y, Z) float32 in the file's own storage order and intensity units.
    affine: (4, 4) float64, voxel indices to RAS mm.
    sha256, size_bytes: of the file's bytes as they lie on disk.
    """

    data: np.ndarray
    affine: np.ndarray
    sha256: str
    size_bytes: int


def read_verified(path: Path, *, constant_allowed: bool = False) -> VerifiedVolume:
    """Read a .nii or .nii.gz file and check everything that can be checked about one file.

    Args:
        path: the file.
        constant_allowed: accept a volume with one value everywhere (a mask may be that).

    Raises:
        VolumeError: `reason` is one of unreadable, empty, html, not_gzip, truncated, corrupt,
            not_nifti, header, dimensions, not_finite, constant.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise VolumeError("unreadable", f"{path.name} cannot be read: {error.strerror}") from None
    if not raw:
        raise VolumeError("empty", f"{path.name} has no bytes in it")
    if raw[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise VolumeError(
            "html", f"{path.name} is a web page, not an image: was the download logged in?"
        )
    plain = _decompressed(raw, path) if path.name.endswith(".gz") else raw
    image = _parsed(plain, path)
    data = _voxels(image, path)
    if not np.isfinite(data).all():
        bad = int(data.size - np.isfinite(data).sum())
        raise VolumeError("not_finite", f"{path.name} holds {bad} values that are not finite")
    if not constant_allowed and data.min() == data.max():
        raise VolumeError("constant", f"{path.name} has the value {data.flat[0]:g} everywhere")
    return VerifiedVolume(
        data, np.asarray(image.affine, np.float64), hashlib.sha256(raw).hexdigest(), len(raw)
    )


def _decompressed(raw: bytes, path: Path) -> bytes:
    """The content of a gzip file, its checksum compared."""
    if raw[:2] != b"\x1f\x8b":
        raise VolumeError("not_gzip", f"{path.name} is named .gz but is not a gzip file")
    try:
        return gzip.decompress(raw)
    except EOFError:
        # A damaged byte can also make the decoder run past the end. A file that is complete
        # still carries the right length in its last four bytes.
        if int.from_bytes(raw[-4:], "little") == _length_by_header(raw):
            raise VolumeError("corrupt", f"{path.name} is damaged inside") from None
        raise VolumeError("truncated", f"{path.name} ends before its gzip stream does") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise VolumeError("corrupt", f"{path.name} is damaged inside: {error}") from None


def _length_by_header(raw: bytes) -> int:
    """Bytes, modulo 2**32, that a file whose gzip stream breaks off should unpack to; 0: unknown"""
    try:
        start = zlib.decompressobj(wbits=31).decompress(raw, 4096)
        header = nib.Nifti1Header(start[:348])
        voxels = int(np.prod(header.get_data_shape(), dtype=np.int64))
        return (int(header["vox_offset"]) + voxels * header.get_data_dtype().itemsize) % 2**32
    except Exception:  # any failure only means that the length is not known
        return 0


def _parsed(plain: bytes, path: Path) -> nib.Nifti1Image:
    """The NIfTI image in `plain`, its header checked."""
    sizes = (plain[:4], plain[3::-1]) if len(plain) >= 4 else ()
    versions = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
    known = [versions[n] for n in (int.from_bytes(s, "little") for s in sizes) if n in versions]
    if not known:
        raise VolumeError("not_nifti", f"{path.name} does not begin as a NIfTI file does")
    try:
        image = known[0].from_bytes(plain)
        dtype = image.get_data_dtype()
        zooms = np.asarray(nib.affines.voxel_sizes(image.affine))
    except Exception as error:  # nibabel raises many kinds for one damaged header
        raise VolumeError("header", f"{path.name} has a damaged header: {error}") from None
    if dtype.kind not in "iuf":
        raise VolumeError("header", f"{path.name} has voxels of type {dtype}: not plain numbers")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise VolumeError("header", f"{path.name} has an orientation matrix without an inverse")
    if zooms.max() > LARGEST_VOXEL_MM:
        raise VolumeError("header", f"{path.name} has voxels of {zooms.max():g} mm")
    return image


def _voxels(image: nib.Nifti1Image, path: Path) -> np.ndarray:
    """(X, Y, Z) float32 values; a fourth axis may be there if it holds one volume."""
    shape = image.shape
    if len(shape) < 3 or min(shape[:3]) < 2 or any(n != 1 for n in shape[3:]):
        raise VolumeError(
            "dimensions",
            f"{path.name} has the shape {'x'.join(map(str, shape))}: one 3-D volume is needed",
        )
    try:
        data = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, ValueError):
        raise VolumeError(
            "truncated", f"{path.name} holds fewer voxels than its header says"
        ) from None
    return data.reshape(shape[:3])
