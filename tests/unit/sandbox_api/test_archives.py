import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sandbox_api.archives import Format, packed, unpacked
from sandbox_api.problems import Problem


async def stream(data: bytes, step: int) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), step):
        yield data[begin : begin + step]


def all_of(contents: AsyncIterator[bytes]) -> list[bytes]:
    async def run() -> list[bytes]:
        return [piece async for piece in contents]

    return asyncio.run(run())


@given(
    data=st.binary(min_size=5, max_size=2000).map(lambda data: b"ustar" + data * 20),
    step=st.integers(1, 5000),
    how=st.sampled_from(["tar", "tar.gz", "tar.zst"]),
)
def test_an_archive_is_the_same_there_and_back_however_it_is_cut(data: bytes, step: int, how: Format) -> None:
    sent = b"".join(all_of(packed(stream(data, step), how)))
    assert b"".join(all_of(unpacked(stream(sent, step)))) == data


def test_a_small_piece_that_becomes_very_much_comes_bit_by_bit() -> None:
    """A bomb, and any folder with a large empty file: so much is never held, and whoever takes it has a quota."""

    async def run() -> None:
        tracemalloc.start()
        size = 0
        async for piece in unpacked(stream(bomb, len(bomb))):
            size += len(piece)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        assert size == 256 << 20

    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(256 << 20))
    assert len(bomb) < 64 << 10
    try:
        asyncio.run(run())
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_no_more_than_a_few_mebibytes_come_at_once(pack: object) -> None:
    data = b"".join(bytes([n % 256]) * 4000 for n in range(8000))
    sizes = [len(piece) for piece in all_of(unpacked(stream(pack(data), 1 << 20)))]  # type: ignore[operator]
    assert sum(sizes) == len(data)
    assert max(sizes) <= 1 << 20


def test_a_window_of_very_much_memory_is_refused() -> None:
    settings = zstandard.ZstdCompressionParameters(window_log=29, strategy=1)
    stream_ = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    data = stream_.compress(bytes(1000)) + stream_.flush()
    with pytest.raises(Problem, match="the archive is damaged"):
        all_of(unpacked(stream(data, 1000)))


@pytest.mark.parametrize(
    "data", [gzip.compress(b"x" * 1000)[:-10], b"\x1f\x8b" + b"x" * 50, b"\x28\xb5\x2f\xfd" + b"x" * 50]
)
def test_damage_is_told(data: bytes) -> None:
    with pytest.raises(Problem, match="the archive is damaged"):
        all_of(unpacked(stream(data, 7)))


def test_what_takes_long_is_done_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither decompresses nor compresses where everybody's requests are answered."""
    here: list[bool] = []
    to_thread = asyncio.to_thread

    async def counted(work: object, *arguments: object) -> object:
        here.append(True)
        return await to_thread(work, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "to_thread", counted)
    all_of(unpacked(stream(gzip.compress(bytes(10 << 20)), 1 << 20)))
    assert len(here) >= 10
    here.clear()
    all_of(packed(stream(bytes(10 << 20), 1 << 20), "tar.gz"))
    assert len(here) >= 10
