"""Folders that are open inside, each as its kernel reads it, and how many bytes those of a sandbox take. Pure.

A name takes 24 bytes beside itself (struct fuse_dirent) and 4 for where it begins. Folders with the same contents, as
many readers of one have them, are kept once.
"""

import hashlib
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from fs import fuse

BYTES_MAX: Final = 16 << 20
"""Of all open folders of one sandbox; beyond that those that were opened first are forgotten (ESTALE)."""

OPEN_MAX: Final = 1024


class Folder:
    """What a folder held when it was opened."""

    __slots__ = ("_begins", "_packed", "digest")

    def __init__(self, names: Iterable[tuple[bytes, int, bool]]) -> None:
        """Of (name, node, whether a folder) each."""
        packed, begins = bytearray(), array("I")
        for number, (name, node, is_folder) in enumerate(names, 1):
            begins.append(len(packed))
            packed += fuse.dirent(name, node, is_folder, number)
        begins.append(len(packed))
        self._packed = bytes(packed)
        self._begins = begins
        self.digest = hashlib.sha256(packed).digest()

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return len(self._packed) + 4 * len(self._begins)

    def read(self, offset: int, room: int) -> bytes:
        """The entries from the offset'th on, as many as there is room for in bytes."""
        if offset >= len(self._begins):
            return b""
        begin = self._begins[offset]
        end = self._begins[bisect_right(self._begins, begin + room) - 1]
        return self._packed[begin:end]


class OpenFolders:
    """The open folders of one sandbox."""

    def __init__(self, limit: int = BYTES_MAX) -> None:
        self._limit = limit
        self._open: OrderedDict[int, Folder] = OrderedDict()
        self._shared: dict[bytes, tuple[Folder, int]] = {}
        """By digest: a folder, and how many times it is open."""
        self.size = 0

    def __iter__(self) -> Iterator[int]:
        return iter(self._open)

    def open(self, number: int, folder: Folder) -> None:
        """Keep a folder under a number; those that were opened first make room."""
        known, times = self._shared.get(folder.digest, (folder, 0))
        self._shared[folder.digest] = (known, times + 1)
        self._open[number] = known
        if not times:
            self.size += known.size
        while (self.size > self._limit or len(self._open) > OPEN_MAX) and len(self._open) > 1:
            self.close(next(iter(self._open)))

    def get(self, number: int) -> Folder | None:
        """The folder of that number, if it is open still."""
        return self._open.get(number)

    def close(self, number: int) -> None:
        """Forget one; no error if it was forgotten before."""
        if (folder := self._open.pop(number, None)) is None:
            return
        _, times = self._shared[folder.digest]
        if times > 1:
            self._shared[folder.digest] = (folder, times - 1)
        else:
            del self._shared[folder.digest]
            self.size -= folder.size
