import os
import tarfile
from pathlib import Path

import pytest

from fs import rootfs
from fs.errors import ImageInvalid, UnknownImage
from fs.images import ImageStore


@pytest.fixture
def init(tmp_path: Path) -> Path:
    path = tmp_path / "init-0123"
    path.write_bytes(b"#!init")
    return path


def test_a_tree_gets_its_init_its_user_and_its_mount_points(tmp_path: Path, init: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh")
    rootfs.prepare(root, init)
    rootfs.prepare(root, init)  # again changes nothing
    assert (root / "etc/passwd").read_text().splitlines()[1:] == ["user:x:1000:1000::/home/user:/bin/sh"]
    assert (root / ".isobox/init").stat().st_mode & 0o777 == 0o755
    assert (root / "home/user").stat().st_uid == 1000
    assert (root / "proc").is_dir()


@pytest.mark.parametrize("name", ["etc", ".isobox", "home", "proc"])
def test_no_link_of_a_strange_tree_is_followed(tmp_path: Path, init: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / name).symlink_to(outside)
    with pytest.raises(ImageInvalid, match=name):
        rootfs.prepare(root, init)
    assert list(outside.iterdir()) == []


def test_no_file_link_either(tmp_path: Path, init: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0::/root:/bin/sh\n")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").symlink_to(secret)
    with pytest.raises(ImageInvalid):
        rootfs.prepare(root, init)
    assert secret.read_text() == "root:x:0:0::/root:/bin/sh\n"


def test_import_keeps_modes_and_owners_and_a_newer_init_makes_a_new_file(tmp_path: Path, init: Path) -> None:
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "bin/su").write_bytes(b"x")
    os.chown(source / "bin/su", 0, 42)
    (source / "bin/su").chmod(0o4755)
    with tarfile.open(tmp_path / "image.tar.gz", "w:gz") as tar:
        tar.add(source, arcname=".")
    current = [init]
    store = ImageStore(tmp_path / "images", init=lambda: current[0])
    first = store.import_path("mine", tmp_path / "image.tar.gz")
    assert store.ensure("mine") == first
    newer = tmp_path / "init-4567"
    newer.write_bytes(b"#!newer")
    current[0] = newer
    second = store.ensure("mine")
    assert second.id == first.id
    assert second.init.startswith(newer.name)
    assert second.digest != first.digest
    from fs import erofs

    erofs.copy_out(store.path(second), tmp_path / "seen")
    assert (tmp_path / "seen/.isobox/init").read_bytes() == b"#!newer"
    su = (tmp_path / "seen/bin/su").stat()
    assert (su.st_mode & 0o7777, su.st_gid) == (0o4755, 42)
    assert len(list((tmp_path / "images").glob("*.erofs"))) == 1
    store.remove("mine")
    with pytest.raises(UnknownImage, match="no image 'mine'"):
        store.ensure("mine")


def test_what_is_no_root_file_system_is_refused(tmp_path: Path, init: Path) -> None:
    store = ImageStore(tmp_path / "images", init=lambda: init)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no tar")
    for name, source in (("x", "missing"), ("x", "empty"), ("Bad Name", "empty"), ("../x", "empty"), ("x", "text")):
        with pytest.raises(Exception, match=r"there is no|is empty|no name|cannot unpack"):
            store.import_path(name, tmp_path / source)
    assert store.all() == []
