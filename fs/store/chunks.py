"""Contents cut into pieces where they themselves say so, so that what is the same in two files is stored once. Pure.

FastCDC (pyfastcdc): a piece of 64 KiB to 1 MiB, 256 KiB on average; a smaller file is one piece.
"""

import hashlib
from collections.abc import Iterator
from typing import BinaryIO, Final

import zstandard
from pyfastcdc import FastCDC

from fs.errors import StoreCorrupt
from fs.tree import Piece

MIN: Final = 64 << 10
AVERAGE: Final = 256 << 10
MAX: Final = 1 << 20
_WINDOW: Final = 8 << 20
_LEVEL: Final = 1

_CUTTER: Final = FastCDC(avg_size=AVERAGE, min_size=MIN, max_size=MAX)


def cut(contents: BinaryIO) -> Iterator[bytes]:
    """The pieces of a file, however it is read."""
    parts: list[bytes] = []
    size = 0
    while data := contents.read(_WINDOW):
        parts.append(data)
        size += len(data)
        if size < _WINDOW:  # whoever reads little at a time is not looked at anew each time
            continue
        found = list(_CUTTER.cut_buf(b"".join(parts)))
        for each in found[:-1]:
            yield bytes(each.data)
        parts = [bytes(found[-1].data)]
        size = len(parts[0])
    rest = b"".join(parts)
    if len(rest) > MIN:
        yield from (bytes(each.data) for each in _CUTTER.cut_buf(rest))
    elif rest:
        yield rest


def digest(data: bytes) -> bytes:
    """What a piece is known by."""
    return hashlib.sha256(data).digest()


def pack(data: bytes) -> bytes:
    """A piece as it is stored: a zstd frame."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress(data)


def unpack(stored: bytes, piece: Piece) -> bytes:
    """The piece that was stored; StoreCorrupt if it is not that one."""
    try:
        if zstandard.frame_content_size(stored) != piece.size:
            raise StoreCorrupt("a stored piece has another size than was written")
        data = zstandard.ZstdDecompressor().decompress(stored)
    except zstandard.ZstdError as error:
        raise StoreCorrupt(f"a stored piece cannot be read: {error}") from error
    if digest(data) != piece.digest:
        raise StoreCorrupt(
            f"a stored piece is not what was written (sha256 {piece.digest.hex()[:12]})",
            hint="the disk or the store returned wrong bytes: check it, then pull or build the image again",
        )
    return data
