"""Streams of archives, compressed and not; no more than a piece of either is held."""

import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Final, Literal

import zstandard

from sandbox_api.problems import Problem

Format = Literal["tar", "tar.zst", "tar.gz"]
MEDIA_TYPES: Final[dict[Format, str]] = {
    "tar": "application/x-tar",
    "tar.zst": "application/zstd",
    "tar.gz": "application/gzip",
}
_SLICE: Final = 64 << 10
_PIECE: Final = 1 << 20
_SWOLLEN: Final = 64 << 20
"""What a slice may become at most: 1000 times itself."""


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
        if self._size > _SWOLLEN:
            raise _damaged("a small part of it becomes more than 64 MiB")
        self.pieces.append(bytes(data))
        return len(data)

    def take(self) -> list[bytes]:
        found, self.pieces, self._size = self.pieces, [], 0
        return found


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


def _slices(piece: bytes) -> Iterator[bytes]:
    for begin in range(0, len(piece), _SLICE):
        yield piece[begin : begin + _SLICE]


async def _unzstd(contents: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    collected = _Collected()
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    try:
        with decompressor.stream_writer(collected, closefd=False) as writer:  # type: ignore[arg-type]  # it writes
            async for piece in contents:
                for part in _slices(piece):
                    writer.write(part)
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
                yield stream.decompress(rest, _PIECE)
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
        if data := stream.compress(piece):
            yield data
    yield stream.flush()
