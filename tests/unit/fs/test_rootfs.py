import io
import random
import re
import tarfile
from pathlib import Path

import pytest
from archives import archive, info
from memory import Memory

from fs import rootfs
from fs.errors import ImageInvalid, StoreFull, UnknownImage
from fs.images import ImageStore
from fs.store.store import Writer
from fs.tree import Limits, Node, Tree
from isolation.guest import build


@pytest.fixture
def init(tmp_path: Path) -> Path:
    path = tmp_path / "init-0123"
    path.write_bytes(b"#!init")
    return path


def prepared(tree: Tree, sink: Memory) -> Tree:
    rootfs.prepare(tree, {"init": b"#!init"}, sink, sink.read)  # type: ignore[arg-type]
    return tree


def test_a_tree_gets_its_init_its_user_and_its_mount_points() -> None:
    tree, sink = Tree(), Memory()
    tree.put(b"etc/passwd", Node("file", 0o644, pieces=sink.add(io.BytesIO(b"root:x:0:0::/root:/bin/sh"))))
    prepared(prepared(tree, sink), sink)  # again changes nothing
    passwd, start, home = (tree.find(path) for path in (b"etc/passwd", b".isobox/init", b"home/user"))
    assert passwd is not None
    assert sink.read(passwd).decode().splitlines()[1:] == ["user:x:1000:1000::/home/user:/bin/sh"]
    assert start is not None
    assert (start.mode, sink.read(start)) == (0o755, b"#!init")
    assert home is not None
    assert (home.kind, home.uid) == ("dir", 1000)
    assert tree.root.children[b"proc"].kind == "dir"


def test_hosts_are_those_that_pid_1_takes_for_the_images_own() -> None:
    header = (build.FOLDER / "names.h").read_text()
    in_c = re.search(r'#define HOSTS "(.*)"', header)
    assert in_c is not None
    assert in_c[1].encode().decode("unicode_escape") == rootfs.HOSTS
    assert [line.split()[0] for line in rootfs.HOSTS.splitlines() if "localhost" in line.split()] == ["127.0.0.1"]


@pytest.mark.parametrize("name", ["etc", ".isobox", "home", "proc", "home/user"])
def test_no_link_stands_where_a_folder_has_to_be(name: str) -> None:
    tree = Tree()
    tree.put(name.encode(), Node("symlink", 0o777, target=b"/usr"))
    with pytest.raises(ImageInvalid, match=name):
        prepared(tree, Memory())


def test_no_link_stands_for_the_users_database() -> None:
    tree = Tree()
    tree.put(b"etc/passwd", Node("symlink", 0o777, target=b"/usr/passwd"))
    with pytest.raises(ImageInvalid, match="no regular file"):
        prepared(tree, Memory())


def test_import_keeps_modes_and_owners_and_a_newer_init_makes_a_new_file(tmp_path: Path, init: Path) -> None:
    members = [(info("bin", tarfile.DIRTYPE, mode=0o755), b""), (info("bin/su", mode=0o4755, uid=42), b"x")]
    (tmp_path / "image.tar").write_bytes(archive(members).getvalue())
    current = [init]
    store = ImageStore(tmp_path / "images", guest=lambda: (current[0],))
    first = store.import_path("mine", tmp_path / "image.tar")
    assert store.ensure("mine") == first
    newer = tmp_path / "init-4567"
    newer.write_bytes(b"#!newer")
    current[0] = newer
    assert store.ready("mine") is None
    second = store.ensure("mine")
    assert second.id == first.id
    assert second.init.startswith(newer.name)
    assert second.digest != first.digest
    tree = store.tree(second.digest)
    start, su = tree.find(b".isobox/init"), tree.find(b"bin/su")
    assert start is not None
    assert b"".join(store.store.contents(start.pieces)) == b"#!newer"
    assert su is not None
    assert (su.mode, su.uid) == (0o4755, 42)
    assert len(list((tmp_path / "images").glob("*.erofs"))) == 1
    store.path(second).unlink()  # a file that is lost comes out of the store again
    assert store.ensure("mine") == second
    store.remove("mine")
    with pytest.raises(UnknownImage, match="no image 'mine'"):
        store.ensure("mine")
    store.prune()
    assert store.store.stats().stored_bytes == 0


def test_a_folder_is_imported_as_its_archive_is(tmp_path: Path, init: Path) -> None:
    (tmp_path / "tree/bin").mkdir(parents=True)
    (tmp_path / "tree/bin/sh").write_bytes(b"x")
    (tmp_path / "tree/link").symlink_to("/etc/shadow")
    store = ImageStore(tmp_path / "images", guest=lambda: (init,))
    tree = store.tree(store.import_path("folder", tmp_path / "tree").digest)
    link = tree.find(b"link")
    assert link is not None
    assert link.target == b"/etc/shadow"


def test_what_is_no_root_file_system_is_refused(tmp_path: Path, init: Path) -> None:
    store = ImageStore(tmp_path / "images", guest=lambda: (init,))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no tar")
    for name, source in (("x", "missing"), ("x", "empty"), ("Bad Name", "empty"), ("../x", "empty"), ("x", "text")):
        with pytest.raises(ImageInvalid, match=r"there is no|would be empty|no name|is damaged"):
            store.import_path(name, tmp_path / source)
    assert store.all() == []
    assert list((tmp_path / "images").glob("*.erofs")) == []


def test_an_image_that_grew_beyond_the_limit_over_its_layers_is_refused(tmp_path: Path, init: Path) -> None:
    store = ImageStore(tmp_path / "images", guest=lambda: (init,), limits=Limits(total_bytes=1 << 20))

    def fill(tree: Tree, writer: Writer, size: int) -> dict[str, object]:
        tree.put(b"below", Node("file", 0o644, pieces=writer.add(io.BytesIO(bytes(900_000)))))
        tree.put(b"link", tree.root.children[b"below"])
        tree.put(b"above", Node("file", 0o644, pieces=writer.add(io.BytesIO(b"x" * size))))
        return {}

    assert store.make("fits", lambda tree, writer: fill(tree, writer, 100_000)).name == "fits"
    with pytest.raises(ImageInvalid, match="1 is the most"):
        store.make("large", lambda tree, writer: fill(tree, writer, 200_000))
    assert store.named("large") is None


def test_images_that_are_written_out_take_no_more_than_the_store_may(tmp_path: Path, init: Path) -> None:
    store = ImageStore(tmp_path / "images", guest=lambda: (init,), limit_bytes=2 << 20)

    def fill(tree: Tree, writer: Writer, seed: int) -> dict[str, object]:
        pieces = writer.add(io.BytesIO(random.Random(0).randbytes(700_000)))  # the store has it once
        for number in range(2):
            tree.put(f"{seed}-{number}".encode(), Node("file", 0o644, pieces=pieces))
        return {}

    store.write_out(store.make("first", lambda tree, writer: fill(tree, writer, 1)))
    second = store.make("second", lambda tree, writer: fill(tree, writer, 2))
    with pytest.raises(StoreFull, match="images that were written out take 1 MiB"):
        store.write_out(second)
    store.remove("first")
    store.write_out(second)


def test_what_is_fetched_at_a_time_has_room_on_the_disk(tmp_path: Path, init: Path) -> None:
    store = ImageStore(tmp_path / "images", guest=lambda: (init,), limit_bytes=100)
    with store._reserved(60):
        with pytest.raises(StoreFull, match="being fetched"), store._reserved(50):
            raise AssertionError("there is no room")
        with store._reserved(40):
            pass
    with store._reserved(100):
        pass
