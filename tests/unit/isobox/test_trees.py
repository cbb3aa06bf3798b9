import contextlib
import io
import tarfile
from pathlib import Path

import pytest

from isobox import trees


def test_a_tree_is_packed_the_same_every_time_and_comes_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep/a").write_text("1")
    (source / "link").symlink_to("deep/a")
    first, second = io.BytesIO(), io.BytesIO()
    trees.pack(source, first)
    (source / "deep/a").touch()
    trees.pack(source, second)
    assert first.getvalue() == second.getvalue()
    first.seek(0)
    trees.unpack(first, tmp_path / "target")
    assert (tmp_path / "target/deep/a").read_text() == "1"
    assert (tmp_path / "target/link").readlink() == Path("deep/a")


@pytest.mark.parametrize("name", ["../out", "/etc/out", "link/out"])
def test_an_archive_from_inside_writes_nowhere_else(tmp_path: Path, name: str) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        if name.startswith("link"):
            archive.addfile(link)
        archive.addfile(tarfile.TarInfo(name))
    raw.seek(0)
    with contextlib.suppress(tarfile.FilterError):
        trees.unpack(raw, tmp_path / "target")
    assert not (tmp_path / "out").exists()
    assert not Path("/etc/out").exists()
