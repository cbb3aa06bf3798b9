"""The file program as the host uses it with root's rights: on no way that anybody else may have prepared."""

import contextlib
import errno
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from isolation import mounts
from isolation.guest import build

USER = 1000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("files") / "files"
    build.FILES.compile(target)
    return target


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of the user's, `home`, in one that is root's alone, beside root's `secret`."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="isobox-test") as folder:
        base = Path(folder)
        base.chmod(0o755)
        for name, owner in (("home", USER), ("secret", 0)):
            (base / name).mkdir()
            os.chown(base / name, owner, owner)
        (base / "secret" / "kept").write_text("kept")
        yield base / "home"


def run(program: Path, operation: str, path: Path | str, argument: str = "", stdin: bytes = b"") -> tuple[bytes, int]:
    """What it prints, and the errno that it tells of; 0 for none."""
    argv = ["isobox-files-no-links", operation, str(path), argument]
    done = subprocess.run(argv, executable=program, input=stdin, capture_output=True, timeout=60, check=False)
    fields = done.stderr.split(b"\0")
    return done.stdout, int(fields[1]) if fields[0] == b"error" else 0


def archive(*names: str, uid: int = USER) -> bytes:
    """Folders (with a slash) and files, whose contents are their names."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.uid = info.gid = uid
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            else:
                info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return raw.getvalue()


def untouched(home: Path) -> bool:
    secret = home.parent / "secret"
    kept = secret / "kept"
    return os.listdir(secret) == ["kept"] and kept.read_text() == "kept" and kept.stat().st_uid == 0


@pytest.mark.parametrize("place", ["data", "above/data"])
@pytest.mark.parametrize(
    ("operation", "argument"), [("empty", ""), ("pack", ""), ("unpack", "1"), ("read", "0:-1"), ("write", "1:644:-1")]
)
def test_a_link_in_the_place_or_above_it_is_not_followed(
    program: Path, home: Path, place: str, operation: str, argument: str
) -> None:
    secret, contents = home.parent / "secret", archive("new")
    if place == "data":
        (home / "data").symlink_to(secret / "kept" if operation in ("read", "write") else secret)
    else:
        (secret / "data").mkdir()
        (home / "above").symlink_to(secret)
    printed, error = run(program, operation, home / place, argument, contents if operation == "unpack" else b"x")
    assert error == errno.ELOOP
    assert printed == b""
    with contextlib.suppress(OSError):
        (secret / "data").rmdir()
    assert untouched(home)


def test_a_link_of_roots_own_is_followed(program: Path, home: Path) -> None:
    (home.parent / "link").symlink_to("./secret/../home")
    assert run(program, "unpack", home.parent / "link" / "data", "1", archive("a/", "a/b"))[1] == 0
    assert (home / "data" / "a" / "b").read_text() == "a/b"
    assert run(program, "pack", home / ".." / "secret")[1] == errno.ELOOP, "out of a folder of the user's"


@pytest.mark.parametrize("operation", ["empty", "pack", "unpack"])
def test_what_is_no_folder_is_refused_at_once(program: Path, home: Path, operation: str) -> None:
    os.mkfifo(home / "pipe")
    (home / "file").write_text("")
    assert run(program, operation, home / "pipe", "1")[1] == errno.ENOTDIR
    assert run(program, operation, home / "file", "1")[1] == errno.ENOTDIR
    assert run(program, operation, "relative", "1")[1] == errno.EINVAL


def test_operations_that_follow_links_are_not_there(program: Path, home: Path) -> None:
    for operation in ("list", "remove", "chmod", "copy", "move", "stat", "mkdir", "watch", "page"):
        assert run(program, operation, home, "1")[1] == errno.ENOSYS


def test_links_pipes_and_other_names_of_files_below_are_left_alone(program: Path, home: Path) -> None:
    data = home / "data"
    data.mkdir()
    (data / "link").symlink_to(home.parent / "secret")
    (data / "folder").symlink_to(home.parent / "secret")
    os.mkfifo(data / "pipe")
    (home / "other").write_text("other")
    os.link(home / "other", data / "file")
    packed, error = run(program, "pack", data)
    assert error == 0
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert {each.name: each.type for each in tar} == {
            "link": tarfile.SYMTYPE, "folder": tarfile.SYMTYPE, "pipe": tarfile.FIFOTYPE, "file": tarfile.REGTYPE,
        }  # fmt: skip
    names = ("link", "folder/", "folder/kept", "pipe", "file")
    assert run(program, "unpack", data, "1", archive(*names, uid=0))[1] == 0
    assert (data / "link").read_text() == "link"
    assert (data / "folder" / "kept").read_text() == "folder/kept"
    assert (home / "other").read_text() == "other"
    assert untouched(home)
    (data / "link").unlink()
    (data / "link").symlink_to(home.parent / "secret")
    assert run(program, "empty", data)[1] == 0
    assert os.listdir(data) == []
    assert (home / "other").read_text() == "other"
    assert untouched(home)


def test_what_is_mounted_below_is_neither_packed_nor_emptied(program: Path, home: Path) -> None:
    data = home / "data"
    (data / "folder" / "mounted").mkdir(parents=True)
    (data / "folder" / "own").write_text("own")
    mounts.mount_tmpfs(data / "folder" / "mounted", size_mb=1)
    try:
        (data / "folder" / "mounted" / "theirs").write_text("theirs")
        with tarfile.open(fileobj=io.BytesIO(run(program, "pack", data)[0])) as tar:
            assert sorted(tar.getnames()) == ["folder", "folder/own"]
        assert run(program, "unpack", data, "1", archive("folder/mounted"))[1] == errno.EBUSY
        assert run(program, "empty", data)[1] == errno.EBUSY
        assert (data / "folder" / "mounted" / "theirs").read_text() == "theirs"
        assert not (data / "folder" / "own").exists()
    finally:
        mounts.detach(data / "folder" / "mounted")


def turn_into_link(folder: Path, target: Path) -> None:
    folder.rename(folder.with_name("aside"))
    folder.symlink_to(target)


def test_a_folder_that_becomes_a_link_while_it_is_packed_is_packed_as_it_was(program: Path, home: Path) -> None:
    folder, secret = home / "data" / "a", home.parent / "secret"
    folder.mkdir(parents=True)
    for number in range(16):  # far more than the program and the pipe hold
        (folder / f"{number:02}").write_bytes(b"own." * (1 << 17))
        (secret / f"{number:02}").write_bytes(b"none" * (1 << 17))
    argv = ["isobox-files-no-links", "pack", str(home / "data"), ""]
    with subprocess.Popen(argv, executable=program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        packed = running.stdout.read(4096)
        turn_into_link(folder, secret)
        packed += running.stdout.read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        files = [each for each in tar if each.isreg()]
        assert len(files) == 16
        assert all(tar.extractfile(each).read(4) == b"own." for each in files)  # type: ignore[union-attr]


def test_a_folder_that_becomes_a_link_while_it_is_filled_gives_nothing_away(program: Path, home: Path) -> None:
    folder, secret = home / "data" / "a", home.parent / "secret"
    whole = archive("a/", "a/kept", "a/more")
    argv = ["isobox-files-no-links", "unpack", str(home / "data"), "1"]
    with subprocess.Popen(argv, executable=program, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdin is not None
        first = 512 * 2 + 1  # both headers, and of the contents a byte
        running.stdin.write(whole[:first])
        running.stdin.flush()
        while not (folder / "kept").exists():
            assert running.poll() is None
        turn_into_link(folder, secret)
        running.stdin.write(whole[first:])
        running.stdin.close()
    assert running.returncode == 0
    assert untouched(home), "neither written nor given to the user"
    assert (home / "data" / "aside" / "kept").stat().st_uid == USER


@pytest.mark.parametrize("operation", ["empty", "unpack", "pack"])
def test_a_folder_that_changes_into_a_link_and_back_leads_nowhere(program: Path, home: Path, operation: str) -> None:
    """The user renames as fast as possible, and gets nothing: whatever the moment, root's files stay, and stay secret."""
    data, over = home / "data", threading.Event()
    data.mkdir()
    (home / "link").symlink_to(home.parent / "secret")

    def swap() -> None:
        """Alone makes names outside of the program: no link is on the way of its own."""
        while not over.is_set():
            for folder in (data / "a", data / "a" / "b"):
                folder.mkdir(exist_ok=True)
                with contextlib.suppress(OSError):
                    folder.rename(home / "aside")
                    os.symlink(home.parent / "secret", folder)
                    folder.unlink()
                shutil.rmtree(home / "aside", ignore_errors=True)

    def swapping() -> None:
        while not over.is_set():
            with contextlib.suppress(FileNotFoundError):  # the program removes folders too
                swap()

    names = [f"a/b/kept{number % 3 or ''}" for number in range(200)]
    thread = threading.Thread(target=swapping)
    thread.start()
    try:
        for _ in range(30):
            printed, _ = run(program, operation, data, "1", archive(*names) if operation == "unpack" else b"")
            assert b"kept\0" not in printed.replace(b"a/b/kept", b"")
            assert untouched(home)
    finally:
        over.set()
        thread.join()
