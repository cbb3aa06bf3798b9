"""Unix sockets at any depth: a socket's address takes 107 bytes, a path more."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_ADDRESS_MAX: Final = 107


@contextmanager
def address(path: str) -> Iterator[str]:
    """An address for path that fits, valid inside the block."""
    if len(os.fsencode(path)) <= _ADDRESS_MAX or path.startswith("\0"):
        yield path
        return
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
