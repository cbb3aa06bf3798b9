"""EROFS files: made by mkfs.erofs, read through the kernel."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fs.programs import run


def make(root: Path, target: Path) -> None:
    """Write a tree into an EROFS file: uncompressed, nothing inlined, so that gVisor can map it."""
    argv = ["mkfs.erofs", "-d1", "-E", "noinline_data", str(target), str(root)]
    run(argv, deed="write the image", package="erofs-utils")


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """An EROFS file, mounted to be read."""
    with tempfile.TemporaryDirectory(prefix="isobox-erofs-") as point:
        options = "loop,ro,nosuid,nodev,noexec"
        run(["mount", "-t", "erofs", "-o", options, str(image), point], deed="open the image", package="mount")
        try:
            yield Path(point)
        finally:
            run(["umount", point], deed="close the image", package="mount")


def copy_out(image: Path, root: Path) -> None:
    """Copy all of an EROFS file into the folder root, which is made.

    By mounting it: `fsck.erofs --extract` loses setuid bits (erofs-utils 1.5 changes the owner last).
    """
    with mounted(image) as point:
        run(["cp", "-a", str(point), str(root)], deed="copy the image", package="coreutils")


def names(image: Path) -> bytes:
    """What each folder of an EROFS file holds: "./FOLDER/" and then its names, all NUL-terminated."""
    found = bytearray()
    with mounted(image) as point:
        top = os.fsencode(point)
        for folder, below, files in os.walk(top):
            inside = os.path.relpath(folder, top)
            head = b"./" if inside == b"." else b"./" + inside + b"/"
            found += b"\0".join([head, *below, *files]) + b"\0"
    return bytes(found)
