import io
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs import erofs
from fs.errors import StoreCorrupt, StoreUnreachable
from fs.lazy.cache import SEGMENT, SegmentCache
from fs.lazy.image import LazyImage
from fs.store.backend import Directory
from fs.store.store import Store
from fs.tree import Node, Tree


def test_a_segment_is_fetched_once_however_many_want_it(tmp_path: Path) -> None:
    asked, gate = [], threading.Event()

    def fetch(pack: str, offset: int, length: int) -> bytes:
        asked.append((pack, offset))
        gate.wait(10)
        return bytes([offset // SEGMENT]) * length

    cache = SegmentCache(tmp_path, fetch, limit_bytes=1 << 30)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.read("p", SEGMENT - 2, 4, seen=lambda _: None)))
        for _ in range(8)
    ]
    for each in threads:
        each.start()
    gate.set()
    for each in threads:
        each.join()
    assert found == [b"\0\0\1\1"] * 8
    assert sorted(asked) == [("p", 0), ("p", SEGMENT)]
    again = SegmentCache(tmp_path, fetch, limit_bytes=1 << 30)
    assert again.read("p", 0, 1, seen=lambda _: None) == b"\0"
    assert len(asked) == 2
    cache.close()
    again.close()


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = SegmentCache(tmp_path, lambda pack, offset, length: bytes(length), limit_bytes=3 * SEGMENT)
    for number in (0, 1, 2, 0, 3):
        cache.read("p", number * SEGMENT, 10, seen=lambda _: None)
    assert sorted(int(path.name) for path in (tmp_path / "p").iterdir()) == [0, 2, 3]
    (tmp_path / "p/0").unlink()  # by somebody else
    assert cache.read("p", 0, 5, seen=lambda _: None) == bytes(5)
    cache.close()


def test_a_failure_is_told_and_asked_again(tmp_path: Path) -> None:
    fails = [True]

    def fetch(pack: str, offset: int, length: int) -> bytes:
        if fails.pop() if fails else False:
            raise StoreUnreachable("gone")
        return bytes(length)

    cache = SegmentCache(tmp_path, fetch, limit_bytes=1 << 30)
    with pytest.raises(StoreUnreachable):
        cache.read("p", 0, 5, seen=lambda _: None)
    with pytest.raises(StoreUnreachable):  # nobody asks again for a while
        cache.read("p", 0, 5, seen=lambda _: None)
    cache._down_until = 0.0
    assert cache.read("p", 0, 5, seen=lambda _: None) == bytes(5)
    cache.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, LazyImage, SegmentCache, Path]:
    folder, chance = tmp_path_factory.mktemp("lazy"), random.Random(3)
    store, tree = Store(folder, Directory(folder)), Tree()
    with store.writer() as writer:
        for number in range(40):
            data = chance.randbytes(chance.randrange(1, 200_000)) + bytes(chance.randrange(9000))
            tree.put(f"d{number % 5}/f{number}".encode(), Node("file", 0o644, pieces=writer.add(io.BytesIO(data))))
        recipe = writer.commit(erofs.lay_out(tree))
    store.write_out(recipe, folder / "whole")
    fetch = Directory(folder)
    cache = SegmentCache(
        folder / "cache", lambda pack, offset, length: fetch.read(f"packs/{pack}", offset, length), limit_bytes=1 << 30
    )
    return (folder / "whole").read_bytes(), LazyImage(recipe, cache, folder / "profile"), cache, folder


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_part_is_what_the_whole_file_has_there(
    image: tuple[bytes, LazyImage, SegmentCache, Path], data: st.DataObject
) -> None:
    whole, lazy, _, _ = image
    offset = data.draw(st.integers(0, len(whole) + 5000))
    size = data.draw(st.sampled_from([0, 1, 4096, 131072, 1 << 20]))
    assert lazy.read(offset, size) == whole[offset : offset + size]


def test_what_was_touched_first_is_fetched_ahead_the_next_time(
    image: tuple[bytes, LazyImage, SegmentCache, Path], tmp_path: Path
) -> None:
    whole, _, cache, folder = image
    recipe = Store(folder, Directory(folder))
    digest = next(iter((folder / "images").iterdir())).name
    found = recipe.recipe(f"sha256:{digest}")
    assert found is not None
    first = LazyImage(found, cache, tmp_path / "profile")
    first.begin()
    first.read(len(whole) - 4096, 4096)
    first.save_profile()
    asked: list[int] = []

    def fetch(pack: str, offset: int, length: int) -> bytes:
        asked.append(offset)
        return Directory(folder).read(f"packs/{pack}", offset, length)

    fresh = SegmentCache(tmp_path / "cache", fetch, limit_bytes=1 << 30)
    LazyImage(found, fresh, tmp_path / "profile").begin()
    fresh._pool.shutdown()
    assert asked


def test_wrong_bytes_are_never_served(image: tuple[bytes, LazyImage, SegmentCache, Path], tmp_path: Path) -> None:
    whole, _, _, folder = image
    digest = next(iter((folder / "images").iterdir())).name
    found = Store(folder, Directory(folder)).recipe(f"sha256:{digest}")
    assert found is not None
    liar = SegmentCache(tmp_path, lambda pack, offset, length: bytes(length), limit_bytes=1 << 30)
    with pytest.raises(StoreCorrupt):
        LazyImage(found, liar, tmp_path / "profile").read(len(whole) - 4096, 4096)
    liar.close()
