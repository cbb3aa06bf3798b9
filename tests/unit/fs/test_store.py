import io
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs import erofs
from fs.erofs import Layout, Placed
from fs.errors import StoreCorrupt, StoreFull
from fs.progress import Interrupted, Progress
from fs.store import chunks
from fs.store.backend import Directory
from fs.store.recipe import Location, Recipe, decode
from fs.store.store import Store
from fs.tree import Node, Piece, Tree


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def make(store: Store, contents: dict[str, bytes]) -> str:
    tree = Tree()
    with store.writer() as writer:
        for name, data in contents.items():
            tree.put(name.encode(), Node("file", 0o644, pieces=writer.add(io.BytesIO(data))))
        return writer.commit(erofs.lay_out(tree)).digest


def read(store: Store, digest: str) -> dict[str, bytes]:
    recipe = store.recipe(digest)
    assert recipe is not None
    return {path.decode(): b"".join(store.contents(node.pieces)) for path, node in erofs.read(recipe.layout).walk()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, Directory(tmp_path))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3 << 20) | st.integers(8 << 20, 20 << 20), st.integers(1, 1 << 20), st.integers())
def test_pieces_are_cut_the_same_however_a_file_is_read(size: int, step: int, seed: int) -> None:
    data, step = noise(size, seed), max(step, size >> 12)  # some thousand reads at most

    class Slow(io.BytesIO):
        def read(self, want: int | None = -1, /) -> bytes:
            return super().read(min(step, want or step))

    assert list(chunks.cut(Slow(data))) == list(chunks.cut(io.BytesIO(data)))
    assert b"".join(chunks.cut(io.BytesIO(data))) == data


def test_an_insertion_changes_few_pieces() -> None:
    data = noise(8 << 20, 1)
    before = {chunks.digest(each) for each in chunks.cut(io.BytesIO(data))}
    after = [chunks.digest(each) for each in chunks.cut(io.BytesIO(data[: 1 << 20] + b"inserted" + data[1 << 20 :]))]
    assert sum(each not in before for each in after) <= 3


def test_what_is_stored_is_read_back_and_kept_once(store: Store) -> None:
    big = noise(3 << 20, 2)
    first = make(store, {"a": b"one", "big": big, "empty": b""})
    stored = store.stats().stored_bytes
    second = make(store, {"x": b"two", "also-big": big})
    assert read(store, first) == {"a": b"one", "big": big, "empty": b""}
    assert read(store, second) == {"x": b"two", "also-big": big}
    assert store.stats().stored_bytes - stored < 100
    assert make(store, {"a": b"one", "big": big, "empty": b""}) == first


def test_an_image_is_written_out_as_one_file(store: Store, tmp_path: Path) -> None:
    contents = {f"f{i}": noise(i * 700, i) for i in range(1, 60)}
    recipe = store.recipe(make(store, contents))
    assert recipe is not None
    store.write_out(recipe, tmp_path / "image.erofs")
    image = (tmp_path / "image.erofs").read_bytes()
    assert image.startswith(recipe.layout.metadata)
    assert len(image) == recipe.layout.size
    by_offset = {
        placed.offset: image[placed.offset : placed.offset + placed.piece.size] for placed in recipe.layout.placed
    }
    assert sorted(by_offset.values()) == sorted(contents.values())


def test_garbage_is_what_no_image_needs(store: Store) -> None:
    shared = noise(200_000, 3)
    first = make(store, {"a": noise(300_000, 4), "s": shared})
    second = make(store, {"b": noise(300_000, 5), "s": shared})
    store.drop(first)
    store.collect()
    assert read(store, second) == {"b": noise(300_000, 5), "s": shared}
    assert store.recipe(first) is None
    store.drop(second)
    assert store.collect().deleted_packs > 0
    assert store.stats() == type(store.stats())(0, 0, 0, 0)


def test_a_pack_that_is_mostly_garbage_is_written_anew(store: Store, tmp_path: Path) -> None:
    shared = noise(50_000, 6)
    first = make(store, {"a": noise(2_000_000, 7), "s": shared})
    second = make(store, {"s": shared, "t": noise(1000, 8)})
    store.drop(first)
    found = store.collect()
    assert found.rewritten_packs == 1
    assert found.freed_bytes > 1_900_000
    assert read(store, second) == {"s": shared, "t": noise(1000, 8)}
    assert sum(path.stat().st_size for path in (tmp_path / "packs").iterdir()) < 60_000


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["make", "drop", "collect", "crash"]), st.integers(0, 5)), max_size=25))
def test_no_sequence_loses_what_an_image_needs(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder, Directory(folder))
    alive: dict[int, str] = {}

    def contents(number: int) -> dict[str, bytes]:
        return {f"f{i}": noise(20_000, (number + i) % 7) for i in range(4)}

    for step, number in steps:
        if step == "make":
            alive[number] = make(store, contents(number))
        elif step == "drop" and number in alive:
            digest = alive.pop(number)
            store.drop(digest)
        elif step == "collect":
            store.collect()
        elif step == "crash":
            with pytest.raises(KeyboardInterrupt), store.writer() as writer:
                writer.add(io.BytesIO(noise(30_000, 100 + number)))
                writer.flush()
                raise KeyboardInterrupt
        store = Store(folder, Directory(folder))
        for each, digest in alive.items():
            assert read(store, digest) == contents(each)
    for digest in alive.values():
        store.drop(digest)
    store.collect()
    assert store.stats().stored_bytes == 0
    assert list((folder / "packs").glob("*")) == []


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_wrong_bytes_are_never_returned(store: Store, tmp_path: Path, harm: str) -> None:
    digest = make(store, {"a": noise(500_000, 9)})
    (pack,) = (tmp_path / "packs").iterdir()
    raw = bytearray(pack.read_bytes())
    if harm == "gone":
        pack.unlink()
    else:
        raw[len(raw) // 2] ^= 1
        pack.write_bytes(raw[: len(raw) // 3] if harm == "cut" else raw)
    with pytest.raises(StoreCorrupt):
        read(store, digest)


def test_a_recipe_of_another_image_is_refused(store: Store, tmp_path: Path) -> None:
    first, second = make(store, {"a": b"1"}), make(store, {"b": b"2"})
    raw = (tmp_path / "images" / first.removeprefix("sha256:")).read_bytes()
    with pytest.raises(StoreCorrupt, match="another image's"):
        decode(raw, second)
    for cut in (0, 10, len(raw) // 2, len(raw) - 1):
        with pytest.raises(StoreCorrupt):
            decode(raw[:cut], first)


def test_the_quota_is_kept_and_nothing_half_made_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, Directory(tmp_path), limit_bytes=100_000)
    kept = make(store, {"a": noise(50_000, 10)})
    with pytest.raises(StoreFull, match="would grow beyond"):
        make(store, {"b": noise(90_000, 11)})
    store.collect()
    assert len(list((tmp_path / "packs").iterdir())) == 1
    assert list((tmp_path / "writing").iterdir()) == []
    assert read(store, kept) == {"a": noise(50_000, 10)}


KILLED = """
import io, os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from fs.store import store as module
from fs.store.backend import Directory
from fs.store.store import Store
from fs import erofs
from fs.tree import Node, Tree
folder, moment = Path(sys.argv[1]), int(sys.argv[2])
count = 0
def tick(frame, event, argument):
    global count
    if frame.f_code.co_filename == module.__file__ and event == "line":
        count += 1
        if count == moment:
            os._exit(9)
    return tick
store = Store(folder, Directory(folder))
sys.settrace(tick)
tree = Tree()
with store.writer() as writer:
    tree.put(b"f", Node("file", 0o644, pieces=writer.add(io.BytesIO(bytes(range(256)) * 2000))))
    writer.commit(erofs.lay_out(tree))
store.drop(sys.argv[3])
store.collect()
print("done")
"""


def test_a_crash_at_any_line_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    """The process is ended at one line of the store's after another; what was there before is there afterwards."""
    folder = tmp_path / "store"
    store = Store(folder, Directory(folder))
    other = make(store, {"doomed": noise(80_000, 20)})
    kept = make(store, {"kept": noise(60_000, 21)})
    script = KILLED.format(root=str(Path(__file__).parents[3]))
    moments = list(range(5, 150, 12))
    for moment in moments:
        argv = [sys.executable, "-c", script, str(folder), str(moment), other]
        done = subprocess.run(argv, env={"PATH": os.defpath}, check=False, capture_output=True, text=True)
        assert done.returncode == 9, done.stderr
        store = Store(folder, Directory(folder))
        assert read(store, kept) == {"kept": noise(60_000, 21)}
        store.collect()
        assert read(store, kept) == {"kept": noise(60_000, 21)}
        db = sqlite3.connect(folder / "index.db")
        known = {row[0] for row in db.execute("select id from packs")}
        db.close()
        assert {path.name for path in (folder / "packs").iterdir()} == known
        make(store, {"doomed": noise(80_000, 20)})


def test_pieces_that_lay_elsewhere_are_counted_when_they_come(tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    there, here = Store(far, Directory(far)), Store(near, Directory(near))
    digest = make(there, {"a": noise(90_000, 30), "b": noise(90_000, 31)})
    recipe = there.recipe(digest)
    assert recipe is not None
    with here.writer() as writer:
        writer.commit(recipe.layout, {placed.piece.digest: at for placed, at in recipe.pieces()})
    assert here.stats().pieces == 0
    with here.writer() as writer:
        for placed, at in recipe.pieces():
            writer.move(placed.piece, there.stored(at))
        writer.commit(recipe.layout)
    here.collect()
    assert read(here, digest) == {"a": noise(90_000, 30), "b": noise(90_000, 31)}
    here.drop(digest)
    here.collect()
    assert here.stats().stored_bytes == 0


def test_what_is_empty_takes_no_disk_where_it_is_written_out(store: Store, tmp_path: Path) -> None:
    contents = {"zeros": bytes(30 << 20), "noise": noise(200_000, 1), "both": bytes(5 << 20) + noise(100, 2)}
    recipe = store.recipe(make(store, contents))
    assert recipe is not None
    target = tmp_path / "image.erofs"
    store.write_out(recipe, target)
    assert target.stat().st_size == recipe.layout.size
    assert target.stat().st_blocks * 512 < 4 << 20
    raw = target.read_bytes()
    for placed, at in recipe.pieces():
        assert raw[placed.offset : placed.offset + placed.piece.size] == store.fetch(placed.piece, at)


def test_what_reads_contents_ends_with_the_server(tmp_path: Path) -> None:
    life = Progress()
    store = Store(tmp_path, Directory(tmp_path), life=life)
    recipe = store.recipe(make(store, {"a": noise(3 << 20, 1)}))
    assert recipe is not None
    reading = store.contents([placed.piece for placed in recipe.layout.placed])
    next(reading)
    life.stop()
    with pytest.raises(Interrupted):
        next(reading)
    reading.close()
    with pytest.raises(Interrupted):
        store.write_out(recipe, tmp_path / "image.erofs")
    assert list(tmp_path.glob("*.erofs")) == list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize(("size", "stored"), [(chunks.MAX + 1, 100), (100, 2 * chunks.MAX + 1)])
def test_a_recipe_of_larger_pieces_than_any_is_refused(store: Store, size: int, stored: int) -> None:
    recipe = store.recipe(make(store, {"a": noise(100, 1)}))
    assert recipe is not None
    placed = Placed(recipe.layout.placed[0].offset, Piece(bytes(32), size))
    layout = Layout(recipe.layout.metadata, (placed,), placed.offset + size)
    other = Recipe(layout, (Location("pack", 0, stored),))
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        decode(other.encode(), other.digest)
