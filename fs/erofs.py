"""EROFS files: made by mkfs.erofs, read through the kernel."""

import tempfile
from pathlib import Path

from fs.programs import run


def make(root: Path, target: Path) -> None:
    """Write a tree into an EROFS file: uncompressed, nothing inlined, so that gVisor can map it."""
    argv = ["mkfs.erofs", "-d1", "-E", "noinline_data", str(target), str(root)]
    run(argv, deed="write the image", package="erofs-utils")


def copy_out(image: Path, root: Path) -> None:
    """Copy all of an EROFS file into the folder root, which is made.

    By mounting it: `fsck.erofs --extract` loses setuid bits (erofs-utils 1.5 changes the owner last).
    """
    with tempfile.TemporaryDirectory(prefix="isobox-erofs-") as point:
        options = "loop,ro,nosuid,nodev,noexec"
        run(["mount", "-t", "erofs", "-o", options, str(image), point], deed="open the image", package="mount")
        try:
            run(["cp", "-a", point, str(root)], deed="copy the image", package="coreutils")
        finally:
            run(["umount", point], deed="close the image", package="mount")
