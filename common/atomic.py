"""Files that are there whole or not at all, whatever happens in the middle of writing them: keys above all."""

import os
from pathlib import Path


def create(path: Path, contents: bytes, mode: int = 0o600) -> None:
    """Write a new file and make it durable. FileExistsError if there is one by that name, which stays as it is.

    One writer at a time: the caller holds the lock of the folder. A file that an earlier writer left half-written is
    written anew.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # unlike a rename it never replaces what is there
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
