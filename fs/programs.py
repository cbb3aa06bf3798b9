"""Runs the system's own tools (mmdebstrap, tar) and turns their failures into errors."""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from fs.errors import ImageError


@contextmanager
def output_of(argv: Sequence[str], *, deed: str, package: str) -> Iterator[BinaryIO]:
    """A program's output while it runs; ImageError with its last words if it fails or is missing (package has it)."""
    with tempfile.TemporaryFile() as words:
        try:
            program = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words)
        except FileNotFoundError as error:
            raise ImageError(
                f"cannot {deed}: {argv[0]} is not installed", hint=f"install the package {package}"
            ) from error
        assert program.stdout is not None
        with program.stdout as stream:
            try:
                yield stream  # type: ignore[misc]  # a buffered reader
            except BaseException:
                program.kill()
                failed = program.wait() not in (0, -9)
                if failed:
                    _complain(argv[0], program.returncode, words, deed)
                raise
        if program.wait():
            _complain(argv[0], program.returncode, words, deed)


def _complain(name: str, code: int, words: BinaryIO, deed: str) -> None:
    words.seek(0)
    lines = [line for line in words.read().decode(errors="replace").splitlines() if line.strip()][-3:]
    raise ImageError(f"cannot {deed}: {name} failed ({code}): {' / '.join(lines)[-500:]}")
