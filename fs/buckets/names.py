"""Paths of files and keys of objects, and the numbers that the kernel knows paths by. Pure.

A path is the key behind the mount's prefix, b"" the mount itself; folders are what stands before a slash. A number is
made of its path, so that it is the same whoever is asked; which path it stands for is noted where the mount lives.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

ROOT: Final = 1
NAME_MAX: Final = 255
_KEY_MAX: Final = 1024
_PATHS_MAX: Final = 50_000
_PATHS_BYTES: Final = 8 << 20


def number(path: bytes) -> int:
    """The number of a path."""
    return int.from_bytes(hashlib.sha256(path).digest()[:8], "little") | 1 << 62 if path else ROOT


def child(folder: bytes, name: bytes) -> bytes | None:
    """The path of a name in a folder; None for a name that no object can have."""
    if not name or len(name) > NAME_MAX or name in (b".", b"..") or b"/" in name or b"\0" in name:
        return None
    path = join(folder, name)
    return path if len(path) <= _KEY_MAX and _is_text(path) else None


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_path(path: bytes) -> bool:
    """Whether it is one that we would make."""
    found: bytes | None = b""
    for name in path.split(b"/"):
        found = None if found is None else child(found, name)
    return found == path


def join(folder: bytes, name: bytes) -> bytes:
    """The path of a name that was checked."""
    return folder + b"/" + name if folder else name


def parent(path: bytes) -> bytes:
    """The folder that a path lies in."""
    return path.rpartition(b"/")[0]


def shown(keys: Iterable[str], folders: Iterable[str], below: str) -> tuple[list[str], list[str]]:
    """Of what a listing of `below` gave, the names of files and of folders; what cannot be a name is left out.

    Where an object and a folder have one name, the object is what is seen.
    """
    files = [each.removeprefix(below) for each in keys if each != below]
    seen = set(files)
    inner = [each.removeprefix(below).rstrip("/") for each in folders]
    return [each for each in files if _can_be_seen(each)], [e for e in inner if _can_be_seen(e) and e not in seen]


def _can_be_seen(name: str) -> bool:
    raw = name.encode(errors="surrogateescape")
    return child(b"", raw) is not None


Keep = Callable[[int, bytes | None], None]
"""Notes a text under a number where the mount lives, or drops the note."""


class Paths:
    """Which path each number stands for: the last 50,000, or 8 MiB of them, that were asked for.

    What is forgotten is looked up again.
    """

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._paths: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0

    def learn(self, noted: int, path: bytes) -> bool:
        """Take one that was noted before; False for a note that is not one of ours, or too many."""
        if not is_path(path) or number(path) != noted or self._full(len(path)):
            return False
        if noted not in self._paths:
            self._size += len(path)
        self._paths[noted] = path
        return True

    def _full(self, more: int) -> bool:
        return len(self._paths) >= _PATHS_MAX or self._size + more > _PATHS_BYTES

    def number(self, path: bytes) -> int:
        """The number of a path that the kernel is told of now."""
        found = number(path)
        if path:
            if found not in self._paths:
                while self._full(len(path)):
                    oldest, forgotten = self._paths.popitem(last=False)
                    self._size -= len(forgotten)
                    self._keep(oldest, None)
                self._keep(found, path)
                self._size += len(path)
            self._paths[found] = path
            self._paths.move_to_end(found)
        return found

    def path(self, node: int) -> bytes | None:
        """The path of a number; None for one that is not known, or not any more."""
        return b"" if node == ROOT else self._paths.get(node)
