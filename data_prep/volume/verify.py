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

import numpy as np

from data_prep.common.errors import VolumeError
from data_prep.volume.headers import HEADER_BYTES, parse_header, refuse_other_kinds

# The optional extra `fast` inflates about twice as fast; both find the same damage.
isal_zlib: Any = None
with contextlib.suppress(ImportError):
    from isal import isal_zlib

GZIP_MAGIC = b"\x1f\x8b"

# What may follow the last voxel: an MGH file's footer and tags.
FOOTER_BYTES = 1 << 16

# Volumes in two files, NIfTI pairs and Analyze 7.5: header and voxels.
HALVES = {".hdr": ".img", ".img": ".hdr"}


@dataclass(frozen=True)
class VerifiedVolume:
    """A checked volume.

    data: (X, Y, Z) float32 in the file's own storage order (Fortran) and intensity units.
    affine: (4, 4) float64, voxel indices to RAS mm.
    sha256, size_bytes: of the file's bytes as they lie on disk; of a pair, header before voxels.
    flags: what is odd about the file though it is usable (flags.py).
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
            refuses such a file, and headers.ANYWHERE takes what nibabel makes of it.

    Raises:
        VolumeError: `reason` is one of missing, broken_link, directory, not_a_file, no_permission,
            unreadable, empty, html, dicom, wrong_format, wrong_extension, not_gzip, truncated,
            corrupt, not_nifti, header, dimensions, no_orientation, nan, infinite, constant.
    """
    files = files_of(path)
    packed = [_bytes_of(file, path) for file in files]
    contents = [_unpacked(*pair) for pair in zip(packed, files, strict=True)]
    name, (content, whole) = files[-1].name, contents[-1]
    if not contents[0][1] and (len(files) > 1 or len(content) < HEADER_BYTES):
        raise VolumeError("truncated", f"{files[0].name} ends before its gzip stream does")
    try:
        header = parse_header(
            contents[0][0][:HEADER_BYTES],
            files[0].name,
            flat_allowed=flat_allowed,
            assume_orientation=assume_orientation,
            pair=len(files) > 1,
        )
    except VolumeError:
        if whole:
            raise
        raise VolumeError("corrupt", f"{name} is damaged inside") from None
    if not whole:
        # A damaged byte can also make the inflater run past the end. A file that is complete still
        # carries the right length in its last four bytes.
        length = int.from_bytes(packed[-1][-4:], "little")
        if 0 <= length - header.end % 2**32 < FOOTER_BYTES:
            raise VolumeError("corrupt", f"{name} is damaged inside")
        raise VolumeError("truncated", f"{name} ends before its gzip stream does")
    if header.end > len(content):
        raise VolumeError("truncated", f"{name} holds fewer voxels than its header says")
    if header.end + FOOTER_BYTES < len(content):
        raise VolumeError("header", f"{name} holds more than its header says")
    count = int(np.prod(header.shape, dtype=np.int64))
    data = np.frombuffer(content, header.dtype, count, header.offset)
    with np.errstate(over="ignore", invalid="ignore"):  # reported below, as infinite or NaN
        if (header.slope, header.intercept) != (1.0, 0.0):
            # In float64 and in this order, as nibabel does it.
            data = data.astype(np.float64) * header.slope + header.intercept
        data = data.astype(np.float32).reshape(header.shape, order="F")
    low, high = data.min(), data.max()  # NaN wins in both
    if np.isnan(low):
        raise VolumeError("nan", f"{name} holds {int(np.isnan(data).sum())} values that are NaN")
    if not np.isfinite([low, high]).all():
        raise VolumeError("infinite", f"{name} holds {int(np.isinf(data).sum())} infinite values")
    if not constant_allowed and low == high:
        raise VolumeError("constant", f"{name} has the value {low:g} everywhere")
    digest = hashlib.sha256()
    for part in packed:
        digest.update(part)
    return VerifiedVolume(
        data, header.affine, digest.hexdigest(), sum(map(len, packed)), header.flags
    )


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
    except IsADirectoryError:
        raise VolumeError("directory", f"{name} is a folder, not a file") from None
    except PermissionError:
        raise VolumeError("no_permission", f"{name} may not be read by this user") from None
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        # ELOOP: links that lead to each other.
        if path.is_symlink() and (absent or error.errno == errno.ELOOP):
            message = f"{name} is a link to {os.readlink(path)}: nothing there"
            raise VolumeError("broken_link", message) from None
        if absent:
            raise VolumeError("missing", f"{name} is not there") from None
        raise VolumeError("unreadable", f"{name} cannot be read: {error.strerror}") from None
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
    """A file's content, and whether its gzip stream ends before the file does.

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
        refuse_other_kinds(content[:HEADER_BYTES], name)
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
