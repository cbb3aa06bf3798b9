"""Network namespaces with names, as ip-netns(8) keeps them: a bind mount below /run/netns each.

`create` and `enter` change the namespace of the thread that calls them: call them in one that does nothing else.
"""

import ctypes
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

FOLDER: Final = Path("/run/netns")
_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 1 << 12
_MS_REC: Final = 1 << 14
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, deed: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {deed}: {os.strerror(number)}")


def create(name: str) -> None:
    """Make a namespace, and be in it; one of that name from earlier is gone."""
    _prepare()
    remove(name)
    path = FOLDER / name
    path.touch(mode=0o444)
    try:
        _checked(_libc.unshare(_CLONE_NEWNET), "make a network namespace")
        mounted = _libc.mount(b"/proc/thread-self/ns/net", os.fsencode(path), b"none", _MS_BIND, None)
        _checked(mounted, "name a network namespace")
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _prepare() -> None:
    """Make the folder a shared mount, as ip-netns(8) does: were it the first to, it would hide ours below its own."""
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    folder = os.fsencode(FOLDER)
    lock = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as ip-netns(8) does
        if _libc.mount(b"", folder, None, _MS_SHARED | _MS_REC, None) != 0:  # no mount yet
            _checked(_libc.mount(folder, folder, None, _MS_BIND | _MS_REC, None), f"mount {FOLDER}")
            _checked(_libc.mount(b"", folder, None, _MS_SHARED | _MS_REC, None), f"share {FOLDER}")
    finally:
        os.close(lock)


def open_(name: str) -> int:
    """A descriptor of it; FileNotFoundError. Close it when done."""
    return os.open(FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)


def enter(name: str) -> None:
    """Be in it; OSError."""
    fd = open_(name)
    try:
        _checked(_libc.setns(fd, _CLONE_NEWNET), f"enter the network namespace {name}")
    finally:
        os.close(fd)


def remove(name: str) -> None:
    """Forget its name: it ends with the last socket and process in it. No error if there is none; OSError."""
    path = FOLDER / name
    _libc.umount2(os.fsencode(path), _MNT_DETACH)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.EBUSY:
            error.strerror = f"it lies below another mount of {FOLDER}: umount {FOLDER}, and try again"
        raise


def all_(prefix: str) -> list[str]:
    """Names that begin so."""
    return sorted(path.name for path in FOLDER.glob(f"{prefix}*")) if FOLDER.is_dir() else []
