import errno
import os
from pathlib import Path

import pytest

from common import atomic


def test_a_new_file_has_its_contents_and_mode(tmp_path: Path) -> None:
    atomic.create(tmp_path / "key", b"secret")
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["key"]


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"first")
    with pytest.raises(FileExistsError):
        atomic.create(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        atomic.create(tmp_path / "key", b"secret")
    assert os.listdir(tmp_path) == []


def test_what_a_dead_writer_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".key.partial").write_bytes(b"sec")
    atomic.create(tmp_path / "key", b"secret")
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert os.listdir(tmp_path) == ["key"]


def test_a_link_in_the_place_of_the_half_written_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"untouched")
    (tmp_path / ".key.partial").symlink_to(tmp_path / "other")
    atomic.create(tmp_path / "key", b"secret")
    assert (tmp_path / "other").read_bytes() == b"untouched"
