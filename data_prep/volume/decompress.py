"""The content of a plain or gzip file in pieces, read once and hashed on the way.

isal (the optional extra `fast`) inflates and checks about twice as fast as the standard library's
zlib; both give the same bytes and find the same damage.
"""

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from data_prep.common.errors import VolumeError

isal_zlib: Any = None
with contextlib.suppress(ImportError):  # where the extra is not installed
    from isal import isal_zlib

# Bytes read at once, and most bytes unpacked at once: both fit into a processor's cache.
READ, UNPACKED = 1 << 17, 1 << 20

GZIP_MAGIC = b"\x1f\x8b"


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


class BrokenOff(Exception):
    """A gzip stream that has not ended where its file does. length: what the last 4 bytes of the
    file say the content's length is, modulo 2**32: true where the file is whole."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length


def pieces(stream: BinaryIO, digest: Hash, *, compressed: bool, name: str) -> Iterator[bytes]:
    """Yield the content of `stream` from its start, at most UNPACKED bytes at a time.

    digest is fed the bytes as they lie in the file. Of a gzip file every member is unpacked and its
    checksum compared; zeros may follow the last one, as on tapes.

    Raises:
        VolumeError: corrupt, at the damaged place or at the checksum that does not fit.
        BrokenOff: the file ends before its gzip stream does.
    """
    if not compressed:
        while piece := stream.read(READ):
            digest.update(piece)
            yield piece
        return
    errors: Any = (zlib.error,) if isal_zlib is None else (zlib.error, isal_zlib.error)
    inflater, tail = _inflater(), b""
    while packed := stream.read(READ):
        digest.update(packed)
        tail = (tail + packed)[-4:] if len(packed) < 4 else packed[-4:]
        try:
            while packed:
                if inflater.eof:
                    packed = packed.lstrip(b"\0")
                    if not packed:
                        break
                    if packed[:2] != GZIP_MAGIC[: len(packed)]:
                        raise VolumeError("corrupt", f"{name} goes on after its gzip stream")
                    inflater = _inflater()
                piece = inflater.decompress(packed, UNPACKED)
                if piece:
                    yield piece
                packed = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        except errors as error:
            raise VolumeError("corrupt", f"{name} is damaged inside: {error}") from None
    if not inflater.eof:
        raise BrokenOff(int.from_bytes(tail, "little"))


def _inflater() -> Any:
    """Unpacks one gzip member, header and checksum included."""
    return (isal_zlib or zlib).decompressobj(wbits=31)
