"""Files that are being written, on this machine's disk until they are objects.

    FOLDER/ID         the bytes
    FOLDER/ID.json    {"path", "upload"}: where they go, and whether they were closed and have not arrived yet

What was closed arrives, whoever dies meanwhile: `Spools.left` finds it. What was not closed is no object.
"""

import errno
import json
import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from common.errors import IsoboxError

_FILES_MAX: Final = 256
"""Of one mount: each holds a descriptor of the server."""

_ID: Final = re.compile(r"[0-9a-f]{32}")


class SpoolFull(IsoboxError):
    """There is no room for what is being written."""


class Budget:
    """The bytes that all spools of a machine may take together, or those of one sandbox, a part of the machine's."""

    def __init__(self, limit: int, whole: "Budget | None" = None) -> None:
        self.limit = limit
        self._whole = whole
        self._used = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """SpoolFull beyond the limit; a negative size gives back."""
        with self._lock:
            if size > 0 and self._used + size > self.limit:
                raise SpoolFull(f"files that are being written take {self.limit >> 20} MiB already")
            if self._whole is not None:
                self._whole.take(size)
            self._used += size


class Spool:
    """One such file; path is None once it was deleted."""

    def __init__(self, folder: Path, id_: str, path: bytes | None, budget: Budget) -> None:
        self.id = id_
        self.path = path
        self.changed = False
        """Whether it has bytes that its object does not."""
        self._file = folder / id_
        self._budget = budget
        self._using = threading.Lock()
        self.fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self.fd).st_size
        self._taken = 0
        try:
            self._resize(self.size)
        except SpoolFull:
            os.close(self.fd)
            raise

    def _resize(self, size: int) -> None:
        self._budget.take(size - self._taken)
        self._taken = size

    def note(self, *, upload: bool) -> None:
        """Write down where it goes, and whether it has to get there."""
        described = {"path": (self.path or b"").decode(), "upload": upload and self.path is not None}
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(described))
        partial.replace(self._file.with_suffix(".json"))

    def write(self, offset: int, data: bytes) -> None:
        """SpoolFull, OSError."""
        end = offset + len(data)
        if end > self.size:
            self._resize(end)
        view = memoryview(data)
        with self._using:
            while view:
                done = os.pwrite(self.fd, view, offset)
                view, offset = view[done:], offset + done
        self.size = max(self.size, end)
        self.changed = True

    def truncate(self, size: int) -> None:
        """SpoolFull, OSError."""
        self._resize(size)
        os.ftruncate(self.fd, size)
        self.size = size
        self.changed = True

    def read(self, offset: int, length: int) -> bytes:
        """Fewer at its end."""
        with self._using:
            return os.pread(self.fd, length, offset)

    @property
    def mtime_s(self) -> int:
        """Seconds since the epoch."""
        return int(os.fstat(self.fd).st_mtime)

    def close(self, *, remove: bool = True) -> None:
        """Let go of it; without remove its files stay."""
        with self._using:
            fd, self.fd = self.fd, -1  # whoever comes too late is not to have another's file
            os.close(fd)
        self._budget.take(-self._taken)
        if remove:
            self._file.with_suffix(".json").unlink(missing_ok=True)
            self._file.unlink(missing_ok=True)


class Spools:
    """Those of one mount."""

    def __init__(self, folder: Path, budget: Budget) -> None:
        self._folder = folder
        self._budget = budget
        self._opened: dict[str, Spool] = {}

    def create(self, path: bytes) -> Spool:
        """A new one; SpoolFull, OSError (EMFILE if too many are open)."""
        if len(self._opened) >= _FILES_MAX:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = Spool(self._folder, secrets.token_hex(16), path, self._budget)
        made.note(upload=False)
        self._opened[made.id] = made
        return made

    def again(self, id_: str) -> Spool | None:
        """One of an earlier server; None if this mount has no such."""
        if (opened := self._opened.get(id_)) is not None:
            return opened
        if not _ID.fullmatch(id_):
            return None
        try:
            described = json.loads((self._folder / f"{id_}.json").read_text())
        except FileNotFoundError:
            return None
        found = Spool(self._folder, id_, described["path"].encode() or None, self._budget)
        found.changed = True
        self._opened[id_] = found
        return found

    def left(self) -> Iterator[Spool]:
        """Those of an earlier server that were closed and have not arrived."""
        for described in sorted(self._folder.glob("*.json")):
            if (
                described.stem not in self._opened
                and json.loads(described.read_text())["upload"]
                and (found := self.again(described.stem)) is not None
            ):
                yield found

    def drop(self, spool: Spool) -> None:
        """It is an object now, or was given up."""
        if self._opened.pop(spool.id, None) is not None:
            spool.close()

    def close(self) -> None:
        """Let go of all; what a later server may need stays on the disk."""
        for each in self._opened.values():
            each.close(remove=False)
        self._opened.clear()
