"""Where packs and recipes lie: anything that keeps bytes under a key and gives back parts of them.

Keys: `packs/ID`, `images/DIGEST` (recipes), `names/NAME` (what a name means), all of [a-z0-9._/-].
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from fs.errors import StoreCorrupt, StoreFull, StoreUnreachable

_AGAIN: Final = "pull or build the image again"
DOCUMENT_MAX: Final = 256 << 20
"""Bytes of a recipe: that of two million names has 100 MiB."""


def cannot_write(error: OSError) -> StoreFull:
    """What the disk's refusal means."""
    return StoreFull(f"the store cannot write: {error.strerror}", hint="free disk space, or prune images")


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """A full disk, and whatever else a file's system refuses, as StoreFull."""
    try:
        yield
    except OSError as error:
        raise StoreFull(f"{what}: {error.strerror or error}", hint="free disk space") from error


class Backend(Protocol):
    """Bytes under keys; every call blocks and raises a StoreError of `fs.errors` on failure."""

    def put(self, key: str, source: Path) -> None:
        """Keep a file's contents; when it returns they are safe, and nobody ever sees a part of them.

        The file itself may be kept: it is not written to again.
        """

    def get(self, key: str) -> bytes | None:
        """All of it, at most DOCUMENT_MAX bytes; None if there is no such key."""

    def read(self, key: str, offset: int, length: int) -> bytes:
        """That part of it, shorter only at its end; StoreCorrupt if there is no such key."""

    def delete(self, key: str) -> None:
        """Forget it; one that is not there is no error."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Those that begin so."""

    def close(self) -> None:
        """Close its connections."""


class Directory:
    """A folder. Files appear whole, by renaming, and are on the disk when `put` returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, source: Path) -> None:
        """See Backend."""
        target = self.folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            try:
                os.link(source, partial)
            except OSError:
                shutil.copyfile(source, partial)
            fd = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(partial, target)
            fd = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise cannot_write(error) from error

    def get(self, key: str) -> bytes | None:
        """See Backend."""
        try:
            return (self.folder / key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnreachable(f"the store cannot be read: {error.strerror}") from error

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See Backend."""
        try:
            fd = os.open(self.folder / key, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreCorrupt(f"the store lacks {key}: {error.strerror}", hint=_AGAIN) from error
        try:
            data = os.pread(fd, length, offset)
        except OSError as error:
            raise StoreUnreachable(f"the store cannot be read: {error.strerror}") from error
        finally:
            os.close(fd)
        return data

    def delete(self, key: str) -> None:
        """See Backend."""
        (self.folder / key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> Iterator[str]:
        """See Backend."""
        top = self.folder / prefix.rpartition("/")[0]
        for path in sorted(top.rglob("*")):
            key = str(path.relative_to(self.folder))
            if path.is_file() and key.startswith(prefix) and not key.endswith(".partial"):
                yield key

    def close(self) -> None:
        """See Backend."""
