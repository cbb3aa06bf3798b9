"""What a container gets: the runner, what it is to run, and the code, as one archive that is made once a function."""

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from common.ids import new_id
from sandbox_api.archives import unpacked
from sandbox_api.models.functions import CreateFunction
from sandbox_api.problems import invalid
from sandbox_api.services.uploads import Uploads

FOLDER: Final = "/tmp/.isobox-function"  # in the sandbox, its own
BOOT: Final = """
import importlib, io, json, os, sys, threading
folder = sys.path[0] = sys.argv[1]
os.write(1, b'{"k": "begun"}\\n')
os.environ.update(json.loads(sys.stdin.buffer.readline()))
path = folder + "/runner.py"
exec(compile(open(path, "rb").read(), path, "exec"), {"__name__": "__main__", "__file__": path})
"""
"""Starts Python, with what the runner imports; it waits for a line with its environment (see `begun.py`)."""

_PROGRAMS: Final = Path(__file__).parents[2] / "functions"
_OURS: Final = ("runner.py", "asks.py", "batches.py")
_CODE_MAX: Final = 64 << 20
_PIECE: Final = 1 << 20
_QUESTIONS: Final = 256


class Code:
    """The archives, in a folder of the state."""

    def __init__(self, folder: Path, uploads: Uploads) -> None:
        self._folder = folder
        self._uploads = uploads
        self._ours = {name: (_PROGRAMS / name).read_bytes() for name in _OURS}

    def _path(self, function: str) -> Path:
        return self._folder / f"{function}.tar"

    async def keep(self, function: str, tenant: str, asked: CreateFunction) -> None:
        """Make a function's archive of its upload; 422 if that is none."""
        raw = bytearray()
        async for piece in unpacked(self._uploads.read(tenant, asked.code)):
            raw += piece
            if len(raw) > _CODE_MAX:
                raise invalid(f"the code is more than {_CODE_MAX >> 20} MiB", "put data into an image or a volume")
        await asyncio.to_thread(self._keep, function, bytes(raw), asked)

    def _keep(self, function: str, raw: bytes, asked: CreateFunction) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        said = {
            "entry": asked.entry,
            "concurrency": asked.concurrency if asked.web is None else 1,
            "trust": asked.trust,
            "questions": questions(asked),
        }
        partial = self._folder / f"{new_id('req')}.partial"
        try:
            with tarfile.open(partial, "w") as made, tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as given:
                for name, data in (self._ours | {"function.json": json.dumps(said).encode()}).items():
                    made.addfile(_member(name, len(data)), io.BytesIO(data))
                for each in given:
                    if each.isfile():
                        made.addfile(_member(f"code/{each.name}", each.size), given.extractfile(each))
        except (tarfile.TarError, EOFError, ValueError) as error:
            partial.unlink(missing_ok=True)
            raise invalid(f"the code is no tar archive: {error}", "send a tar archive, plain, gzip or zstd") from error
        partial.replace(self._path(function))

    async def read(self, function: str) -> AsyncIterator[bytes]:
        """A function's archive."""
        with self._path(function).open("rb") as file:
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece

    def forget(self, function: str) -> None:
        """Delete it."""
        self._path(function).unlink(missing_ok=True)


def questions(asked: CreateFunction) -> int:
    """How many questions a runner has open at once; what it asks beyond them waits there."""
    return _QUESTIONS + 4 * asked.concurrency


def _member(name: str, size: int) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.mode = size, 0o644
    return found
