"""Is this file what it claims to be: read once, to its end, and hashed on the way.

nibabel alone reads a compressed volume only as far as it needs to and never reaches the
checksum at the end of the gzip stream: a damaged byte then becomes wrong anatomy in silence.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_prep.common.errors import VolumeError
from data_prep.volume.decompress import GZIP_MAGIC, BrokenOff, Hash, pieces
from data_prep.volume.headers import (
    HEADER_BYTES,
    Header,
    is_short,
    parse_header,
    refuse_other_kinds,
)
from data_prep.volume.pairs import pair_of

# What may follow the last voxel: an MGH file's footer and tags.
FOOTER_BYTES = 1 << 16

# Deflate packs no tighter than this: a header that promises more is wrong.
MOST_PACKED = 1032


@dataclass(frozen=True)
class VerifiedVolume:
    """A checked volume.

    data: (X, Y, Z) float32 in the file's own storage order (Fortran) and intensity units.
    affine: (4, 4) float64, voxel indices to RAS mm.
    sha256, size_bytes: of the file's bytes as they lie on disk; of a pair, header before voxels.
    lowest: the smallest value.
    flags: what is odd about the file though it is usable (flags.py).
    """

    data: np.ndarray
    affine: np.ndarray
    sha256: str
    size_bytes: int
    lowest: float
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
    does not matter. Memory: the float32 volume and about 3 MB, whatever type the file has.

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
    half = pair_of(path)
    parse = partial(
        parse_header,
        flat_allowed=flat_allowed,
        assume_orientation=assume_orientation,
        pair=half is not None,
    )
    current = path
    try:
        with ExitStack() as opened:
            streams = []
            for current in half or (path,):
                streams.append((opened.enter_context(_opened(current)), current.name))
            return _read(streams, parse, constant_allowed)
    except OSError as error:
        raise _refusal(current, error, of=path) from None


def _opened(path: Path) -> BinaryIO:
    # Asked first, because opening a pipe would wait for a writer.
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise VolumeError("not_a_file", f"{path.name} is a device or a pipe, not a file")
    return path.open("rb", buffering=0)


def _refusal(path: Path, error: OSError, of: Path) -> VolumeError:
    """What the file system's refusal means for the file's owner. of: its pair's other half."""
    name = path.name if path == of else f"{path.name}, which {of.name} needs beside it,"
    if isinstance(error, IsADirectoryError):
        return VolumeError("directory", f"{name} is a folder, not a file")
    if isinstance(error, PermissionError):
        return VolumeError("no_permission", f"{name} may not be read by this user")
    # ELOOP: links that lead to each other.
    if path.is_symlink() and (isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP):
        return VolumeError("broken_link", f"{name} is a link to {os.readlink(path)}: nothing there")
    if isinstance(error, FileNotFoundError):
        return VolumeError("missing", f"{name} is not there")
    return VolumeError("unreadable", f"{name} cannot be read: {error.strerror}")


def _read(
    streams: list[tuple[BinaryIO, str]], parse: Callable[..., Header], constant_allowed: bool
) -> VerifiedVolume:
    """streams: the file and its name, or those of a pair, the header first."""
    digest = hashlib.sha256()
    size = sum(os.fstat(stream.fileno()).st_size for stream, _ in streams)
    (stream, name), known = streams[-1], b""
    if len(streams) > 1:
        known = _whole(*streams[0], digest)
    compressed = _compressed(stream, name)
    content = _Content(name, os.fstat(stream.fileno()).st_size, compressed, parse)
    if len(streams) > 1:
        content.begin(known, streams[0][1])
    try:
        for piece in pieces(stream, digest, compressed=compressed, name=name):
            content.take(piece)
    except BrokenOff as end:
        # A damaged byte can also make the inflater run past the end. A file that is complete
        # still carries the right length in its last four bytes.
        header, problem = content.header, content.problem
        whole = header is not None and 0 <= end.length - header.end % 2**32 < FOOTER_BYTES
        if whole or problem is not None:
            raise VolumeError("corrupt", f"{name} is damaged inside") from None
        raise VolumeError("truncated", f"{name} ends before its gzip stream does") from None
    data, header = content.finished()
    low, high = content.range
    if np.isnan(low):
        raise VolumeError("nan", f"{name} holds {int(np.isnan(data).sum())} values that are NaN")
    if not np.isfinite([low, high]).all():
        raise VolumeError("infinite", f"{name} holds {int(np.isinf(data).sum())} infinite values")
    if not constant_allowed and low == high:
        raise VolumeError("constant", f"{name} has the value {low:g} everywhere")
    shaped = data.reshape(header.shape, order="F")
    return VerifiedVolume(shaped, header.affine, digest.hexdigest(), size, float(low), header.flags)


def _compressed(stream: BinaryIO, name: str) -> bool:
    """Whether a file is gzip, as its name and its first bytes have it. Raises VolumeError."""
    start = stream.read(HEADER_BYTES)
    stream.seek(0)
    if not start:
        raise VolumeError("empty", f"{name} has no bytes in it")
    compressed = name.lower().endswith((".gz", ".mgz"))
    packed = start[:2] == GZIP_MAGIC[: len(start)]
    if packed and not compressed:
        raise VolumeError("wrong_extension", f"{name} is compressed: its name must end in .gz")
    if compressed and not packed:
        refuse_other_kinds(start, name)
        raise VolumeError("not_gzip", f"{name} is named as a gzip file but is not compressed")
    return compressed


def _whole(stream: BinaryIO, name: str, digest: Hash) -> bytes:
    """The content of a pair's header file, its first HEADER_BYTES; all of it is read and hashed."""
    found = b""
    try:
        for piece in pieces(stream, digest, compressed=_compressed(stream, name), name=name):
            found = (found + piece)[:HEADER_BYTES]
    except BrokenOff:
        raise VolumeError("truncated", f"{name} ends before its gzip stream does") from None
    if is_short(found):
        raise VolumeError("truncated", f"{name} ends within its header")
    return found


class _Content:
    """The voxels as they arrive.

    problem: what is wrong with the header. It waits until the stream has been read to its checksum,
    for a damaged byte may be the cause and should then be reported.
    """

    def __init__(
        self, name: str, size: int, compressed: bool, parse: Callable[..., Header]
    ) -> None:
        """size: of the file, bytes. parse: as parse_header, its options given."""
        self.name, self.parse = name, parse
        self.most_bytes = size * (MOST_PACKED if compressed else 1)
        self.header: Header | None = None
        self.problem: VolumeError | MemoryError | None = None
        self.start, self.skip = b"", 0
        self.data = np.empty(0, np.float32)
        self.filled = 0
        self.rest = b""  # of a voxel whose other bytes are still to come
        self.range = (np.float32(np.inf), np.float32(-np.inf))
        self.length = 0

    def take(self, piece: bytes) -> None:
        """The next bytes of the content."""
        self.length += len(piece)
        if self.problem is not None:
            return
        if self.header is None:
            self.start += piece
            if len(self.start) < HEADER_BYTES:
                return
            self.begin(self.start[:HEADER_BYTES], self.name)
            piece = self.start
        if self.header is None:
            return
        view = memoryview(piece)[self.skip :]
        self.skip -= min(self.skip, len(piece))
        item = self.header.dtype.itemsize
        if self.rest and len(view):
            missing = item - len(self.rest)
            self.rest += bytes(view[:missing])
            view = view[missing:]
            if len(self.rest) == item:
                self._store(memoryview(self.rest))
                self.rest = b""
        whole = len(view) // item * item
        if whole:
            self._store(view[:whole])
        if len(view) > whole:
            self.rest = bytes(view[whole:])

    def begin(self, start: bytes, name: str) -> None:
        """The header, from the first bytes of the file `name`."""
        try:
            header = self.parse(start, name)
            if header.end > self.most_bytes:
                raise _too_few(self.name)
            self.data = np.empty(int(np.prod(header.shape, dtype=np.int64)), np.float32)
        except (VolumeError, MemoryError) as error:
            self.problem = error
        else:
            self.header, self.skip = header, header.offset

    def _store(self, raw: memoryview) -> None:
        assert self.header is not None
        values = np.frombuffer(raw, self.header.dtype)[: len(self.data) - self.filled]
        if not len(values):
            return  # behind the last voxel
        part = self.data[self.filled : self.filled + len(values)]
        slope, intercept = self.header.slope, self.header.intercept
        with np.errstate(over="ignore", invalid="ignore"):  # reported below, as infinite or NaN
            if (slope, intercept) == (1.0, 0.0):
                part[...] = values
            else:
                # In float64 and in this order, as nibabel does it.
                part[...] = values.astype(np.float64) * slope + intercept
        self.filled += len(values)
        # NaN wins in both, so two numbers show whether all are finite.
        low, high = self.range
        self.range = (np.minimum(low, part.min()), np.maximum(high, part.max()))

    def finished(self) -> tuple[np.ndarray, Header]:
        """The values, flat and in the order of the file, once its content has come to its end."""
        if self.header is None and self.problem is None:
            if is_short(self.start):
                raise VolumeError("truncated", f"{self.name} ends within its header")
            self.begin(self.start[:HEADER_BYTES], self.name)
            if self.header is not None:
                piece, self.start = self.start, b""
                self.take(piece)
        if self.problem is not None:
            raise self.problem
        assert self.header is not None
        if self.filled < len(self.data):
            raise _too_few(self.name)
        if self.length > self.header.end + FOOTER_BYTES:
            raise VolumeError("header", f"{self.name} holds more than its header says")
        return self.data, self.header


def _too_few(name: str) -> VolumeError:
    return VolumeError("truncated", f"{name} holds fewer voxels than its header says")
