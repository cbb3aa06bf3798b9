"""Builds what runs inside by the C compiler of the ziglang wheel: static, for musl, the same bytes everywhere."""

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isolation.errors import IsolationError

FOLDER: Final = Path(__file__).parent
_COMMON: Final = ("-std=gnu11", "-Os", "-s", "-Wall", "-Wextra", "-Werror")
_STATIC: Final = ("-target", "x86_64-linux-musl", "-static", *_COMMON)
_ADD_ON: Final = ("-target", "x86_64-linux-gnu", "-shared", "-fPIC", "-nostdlib", "-fvisibility=hidden", *_COMMON)


@dataclass(frozen=True, slots=True)
class Program:
    """A program and what it is made from."""

    name: str
    sources: tuple[str, ...]
    headers: tuple[str, ...] = ()
    flags: tuple[str, ...] = _STATIC

    @property
    def digest(self) -> str:
        """A short digest of all that the binary is made from; images record that of their init."""
        state = hashlib.sha256(" ".join(self.flags).encode())
        for name in (*self.sources, *self.headers):
            state.update((FOLDER / name).read_bytes())
        return state.hexdigest()[:16]

    def compile(self, target: Path) -> None:
        """Compile into target; IsolationError with the compiler's words."""
        command = [sys.executable, "-m", "ziglang", "cc", *self.flags, *self.sources, "-o", str(target.absolute())]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            words = done.stderr.strip()[-2000:]
            raise IsolationError(
                f"cannot build {self.name}: {words}", hint="run `make setup`; it installs the compiler"
            )


INIT: Final = Program(
    "init",
    ("init.c", "memory.c", "names.c", "namespaces.c", "spawn.c", "users.c"),
    ("wire.h", "init.h", "names.h"),
)
"""PID 1, which every image holds."""

FILES: Final = Program("files", ("files.c", "hold.c", "place.c", "tar.c", "watch.c"), ("tar.h",))
"""File operations and what holds mounts, which PID 1 starts for the host; every image holds it too."""

RESEED: Final = Program("reseed", ("reseed.c",), flags=_ADD_ON)
"""An add-on by which Node's generator of random numbers is seeded anew; every image holds it."""

LAYER: Final = Program("layer", ("layer.c", "names.c", "place.c", "tar.c"), ("tar.h", "names.h"))
"""Saves and applies image layers; the host brings it along."""

MOUNT: Final = Program("mount", ("mount.c", "place.c"), ("tar.h",))
"""Mounts folders that the host serves; the host brings it along."""


@dataclass(frozen=True, slots=True)
class Brought:
    """The programs that the host brings along: what lies in a sandbox its root may have replaced."""

    init: Path
    layer: Path
    mount: Path


def brought(cache: Path) -> Brought:
    """Them, built on first use."""
    return Brought(binary(cache), binary(cache, LAYER), binary(cache, MOUNT))


def guest(cache: Path) -> tuple[Path, ...]:
    """The programs that an image holds, as `binary` gives them: NAME-DIGEST each, for /.isobox/NAME."""
    return binary(cache), binary(cache, FILES), binary(cache, RESEED)


def binary(cache: Path, program: Program = INIT) -> Path:
    """A program, built on first use; what `Program.compile` raises if that fails."""
    shipped = FOLDER / f"{program.name}-{program.digest}"  # in a wheel
    path = shipped if shipped.exists() else cache / "init" / shipped.name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / program.name
            program.compile(built)
            os.replace(built, path)
    return path
