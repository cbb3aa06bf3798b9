"""Runs the system's own tools (mmdebstrap, mkfs.erofs, tar) and turns their failures into errors."""

import subprocess
from collections.abc import Sequence

from fs.errors import ImageError


def run(argv: Sequence[str], *, deed: str, package: str, timeout: float = 1800) -> None:
    """Run a program to its end; ImageError with its last words if it fails or is not installed (package has it)."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise ImageError(f"cannot {deed}: {argv[0]} is not installed", hint=f"install the package {package}") from error
    if done.returncode:
        words = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-3:]
        raise ImageError(f"cannot {deed}: {argv[0]} failed ({done.returncode}): {' / '.join(words)[-500:]}")
