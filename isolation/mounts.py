"""mount(2) and umount2(2), for the little that a sandbox needs."""

import ctypes
import os
from pathlib import Path
from typing import Final

_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MNT_DETACH: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


def mount_tmpfs(path: Path, *, size_mb: int) -> None:
    """Mount a tmpfs of size_mb MiB; OSError as the kernel says."""
    options = f"size={size_mb}m,mode=700".encode()
    if _libc.mount(b"isobox", os.fsencode(path), b"tmpfs", _MS_NOSUID | _MS_NODEV, options) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount a tmpfs on {path}")


def detach(path: Path) -> None:
    """Unmount path from the tree; what is open there lives on. No error if nothing is mounted there."""
    if _libc.umount2(os.fsencode(path), _MNT_DETACH) != 0 and ctypes.get_errno() not in (2, 22):  # ENOENT, EINVAL
        raise OSError(ctypes.get_errno(), f"cannot unmount {path}")
