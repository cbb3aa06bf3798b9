"""Streams of archives, compressed and not; no more than a piece of either is held.

What takes long is done in threads, and a small piece of what strangers send never becomes more than a few MiB there.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Final, Literal

import zstandard

from sandbox_api.problems import Problem

Format = Literal["tar", "tar.zst", "tar.gz"]
MEDIA_TYPES: Final[dict[Format, str]] = {
    "tar": "application/x-tar",
    "tar.zst": "application/zstd",
    "tar.gz": "application/gzip",
}
_BLOCK: Final = 128 << 10
"""Bytes that a block of zstd becomes at most (RFC 8878, 3.1.1.2.4)."""

_BLOCK_LEAST: Final = 4
"""Bytes of a block that repeats one byte: what is empty in a folder comes in such, and may be very large."""

_SLICE: Final = 256
_PIECE: Final = 1 << 20
_SWOLLEN: Final = (_SLICE // _BLOCK_LEAST + 2) * _BLOCK
"""What a slice becomes at most."""

_HERE_MAX: Final = 4 << 10
"""Bytes that are worked on sooner than a thread is woken."""


def _damaged(why: object) -> Problem:
    return Problem(
        400, "archive_invalid", f"the archive is damaged: {why}", hint="send a tar, tar.gz or tar.zst archive"
    )


class _Collected:
    """Takes what a slice becomes."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> int:
        self._size += len(data)
        if self._size > _PIECE + _SWOLLEN:
            raise _damaged("a part of it becomes more than zstd can say")
        self.pieces.append(bytes(data))
        return len(data)

    def take(self) -> list[bytes]:
        found, self.pieces, self._size = self.pieces, [], 0
        return found

    @property
    def full(self) -> bool:
        """Whether what is there is to be taken first."""
        return self._size >= _PIECE


async def unpacked(contents: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The tar archive that a stream holds, by its first bytes gzip, zstd or plain; Problem where it is damaged."""
    head = b""
    async for piece in contents:
        head += piece
        if len(head) >= 4:
            break
    if head.startswith(b"\x1f\x8b"):
        chosen = _gunzip(_chain(head, contents))
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        chosen = _unzstd(_chain(head, contents))
    else:
        chosen = _chain(head, contents)
    async for piece in chosen:
        yield piece


async def _chain(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if head:
        yield head
    async for piece in rest:
        yield piece


def _feed(writer: zstandard.ZstdDecompressionWriter, collected: _Collected, piece: bytes, begin: int) -> int:
    """Decompress some of a piece from a place on: where the rest of it begins."""
    while begin < len(piece) and not collected.full:
        writer.write(piece[begin : begin + _SLICE])
        begin += _SLICE
    return begin


async def _unzstd(contents: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    collected = _Collected()
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    try:
        with decompressor.stream_writer(collected, closefd=False) as writer:  # type: ignore[arg-type]  # it writes
            async for piece in contents:
                begin = 0
                while begin < len(piece):
                    begin = await asyncio.to_thread(_feed, writer, collected, piece, begin)
                    for each in collected.take():
                        yield each
    except zstandard.ZstdError as error:
        raise _damaged(error) from error


async def _gunzip(contents: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    stream = zlib.decompressobj(wbits=31)
    try:
        async for piece in contents:
            rest = piece
            while rest and not stream.eof:
                yield await asyncio.to_thread(stream.decompress, rest, _PIECE)
                rest = stream.unconsumed_tail
    except zlib.error as error:
        raise _damaged(error) from error
    if not stream.eof:
        raise _damaged("it is cut short")


async def packed(contents: AsyncIterator[bytes], how: Format) -> AsyncIterator[bytes]:
    """A tar archive, compressed as it comes."""
    if how == "tar":
        async for piece in contents:
            yield piece
        return
    stream = zlib.compressobj(6, wbits=31) if how == "tar.gz" else zstandard.ZstdCompressor(level=3).compressobj()
    async for piece in contents:
        if (
            data := stream.compress(piece)
            if len(piece) <= _HERE_MAX
            else await asyncio.to_thread(stream.compress, piece)
        ):
            yield data
    yield await asyncio.to_thread(stream.flush)
