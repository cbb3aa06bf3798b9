"""What every root file system gets before it becomes an image: PID 1, the default user, mount points, its resolver.

The tree may come from a stranger. It is entered by descriptors, one folder at a time, never through a link.
"""

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from common import addresses
from fs.errors import ImageInvalid

REVISION: Final = 2
"""Of what is done here: an image of an older one is renewed on first use."""

INIT: Final = ".isobox/init"
USER: Final = "user"
UID: Final = 1000
_MOUNT_POINTS: Final = ("proc", "sys", "dev", "tmp", "etc", "home", ".isobox")


def _enter(parent: int, name: str) -> int:
    """Open a folder, made where missing; ImageInvalid if it is anything else, a link included."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise ImageInvalid(f"/{name} of the image is no folder", hint="replace it by a real folder") from error


def _replace(parent: int, name: str, content: bytes, mode: int) -> None:
    temporary = f"{name}.isobox-new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
    os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)


def _read(parent: int, name: str) -> str:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ImageInvalid(f"/etc/{name} of the image is no regular file") from error
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ImageInvalid(f"/etc/{name} of the image is no regular file")
        return file.read(1 << 20).decode(errors="surrogateescape")


def with_line(text: str, key: str, line: str) -> str:
    """A colon-separated database with a line for key: its own, if it has one, else this."""
    if any(each.partition(":")[0] == key for each in text.splitlines()):
        return text
    return text + ("" if text.endswith("\n") or not text else "\n") + line + "\n"


def prepare(root: Path, init: Path) -> None:
    """Make a tree ready for its sandbox."""
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    folders = {name: _enter(top, name) for name in _MOUNT_POINTS}
    try:
        _replace(folders[".isobox"], "init", init.read_bytes(), 0o755)
        os.chmod("tmp", 0o1777, dir_fd=top)  # noqa: S103 - as /tmp is
        etc = folders["etc"]
        shell = (
            "/bin/bash" if os.path.lexists(root / "bin/bash") or os.path.lexists(root / "usr/bin/bash") else "/bin/sh"
        )
        passwd = with_line(
            _read(etc, "passwd") or "root:x:0:0:root:/root:/bin/sh\n",
            USER,
            f"{USER}:x:{UID}:{UID}::/home/{USER}:{shell}",
        )
        group = with_line(_read(etc, "group") or "root:x:0:\n", USER, f"{USER}:x:{UID}:")
        _replace(etc, "passwd", passwd.encode(errors="surrogateescape"), 0o644)
        _replace(etc, "group", group.encode(errors="surrogateescape"), 0o644)
        _replace(etc, "hosts", b"127.0.0.1 localhost\n", 0o644)
        _replace(etc, "resolv.conf", f"nameserver {addresses.GATEWAY}\n".encode(), 0o644)
        home = _enter(folders["home"], USER)
        os.fchown(home, UID, UID)
        os.close(home)
    finally:
        for fd in (top, *folders.values()):
            os.close(fd)


def remove_tree(root: Path) -> None:
    """Delete a tree of ours; what is left of a crash included."""
    if root.exists():
        shutil.rmtree(root)
