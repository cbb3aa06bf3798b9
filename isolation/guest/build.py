"""Builds PID 1 with the C compiler of the ziglang wheel: static, for musl, the same bytes on every machine."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from isolation.errors import IsolationError

FOLDER: Final = Path(__file__).parent
SOURCES: Final = ("init.c", "spawn.c", "users.c", "files.c")
HEADERS: Final = ("wire.h", "init.h")
_FLAGS: Final = ("-target", "x86_64-linux-musl", "-std=gnu11", "-Os", "-static", "-s", "-Wall", "-Wextra", "-Werror")


def source_digest() -> str:
    """A short digest of all that the binary is made from; images record it."""
    state = hashlib.sha256(" ".join(_FLAGS).encode())
    for name in (*SOURCES, *HEADERS):
        state.update((FOLDER / name).read_bytes())
    return state.hexdigest()[:16]


def binary(cache: Path) -> Path:
    """The init, built on first use; IsolationError with the compiler's words if that fails."""
    shipped = FOLDER / f"init-{source_digest()}"  # in a wheel
    path = shipped if shipped.exists() else cache / "init" / shipped.name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / "init"
            compile_init(built)
            os.replace(built, path)
    return path


def compile_init(target: Path) -> None:
    """Compile into target."""
    command = [sys.executable, "-m", "ziglang", "cc", *_FLAGS, *SOURCES, "-o", str(target.absolute())]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        words = done.stderr.strip()[-2000:]
        raise IsolationError(f"cannot build the init: {words}", hint="run `make setup`; it installs the compiler")
