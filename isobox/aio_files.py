"""A sandbox's files, for asyncio."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from isobox import calls, trees
from isobox.calls import Edit
from isobox.transport import AsyncTransport
from isobox.values import FileChange, FileInfo, FilePage

_PIECE = 1 << 20


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with open(path, "rb") as file:  # noqa: ASYNC230 - read in pieces, in a thread
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


async def _read(file: Any) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, _PIECE):
        yield piece


class AsyncFiles:
    """A sandbox's files, as its user sees them."""

    def __init__(self, transport: AsyncTransport, sandbox_id: str) -> None:
        self._transport = transport
        self._id = sandbox_id

    async def _send(self, method: str, suffix: str = "", **parts: Any) -> Any:
        return await self._transport.send(calls.files(method, self._id, suffix, **parts))

    async def read(self, path: str) -> bytes:
        """A file's bytes."""
        found: bytes = await self._send("GET", params={"path": path}, read_timeout_s=None)
        return found

    async def read_text(self, path: str) -> str:
        """A file's text."""
        return (await self.read(path)).decode()

    async def download(self, path: str, target: Path | str) -> None:
        """Copy a file out of the sandbox."""
        call = calls.files("GET", self._id, params={"path": path}, read_timeout_s=None)
        async with self._transport.stream(call) as pieces:
            with open(target, "wb") as file:  # noqa: ASYNC230 - page cache
                async for piece in pieces:
                    file.write(piece)

    async def write(
        self, path: str, contents: bytes | str | AsyncIterator[bytes], *, mode: int | None = None
    ) -> FileInfo:
        """Replace a file, all or nothing; folders above it are made."""
        body = contents.encode() if isinstance(contents, str) else contents
        params = calls.without_none({"path": path, "mode": None if mode is None else f"{mode:04o}"})
        # What is read from a stream can be sent once only.
        safe = isinstance(body, bytes)
        return FileInfo.parse(await self._send("PUT", params=params, content=body, safe=safe, read_timeout_s=None))

    async def upload(self, source: Path | str, path: str, *, mode: int | None = None) -> FileInfo:
        """Copy a file into the sandbox."""
        return await self.write(path, _pieces(Path(source)), mode=mode)

    async def list(self, path: str, *, depth: int = 1) -> list[FileInfo]:
        """What a folder holds."""
        entries = (await self._send("GET", "/list", params={"path": path, "depth": depth}))["entries"]
        return [FileInfo.parse(entry) for entry in entries]

    async def stat(self, path: str) -> FileInfo:
        """A file's own data; NotFound if there is none."""
        return FileInfo.parse(await self._send("GET", "/stat", params={"path": path}))

    async def mkdir(self, path: str, *, parents: bool = True) -> FileInfo:
        """Make a folder."""
        return FileInfo.parse(await self._send("POST", "/mkdir", json={"path": path, "parents": parents}))

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file or folder."""
        await self._send("DELETE", params={"path": path, "recursive": str(recursive).lower()})

    async def page(self, path: str, *, limit: int = 1000, cursor: str | None = None) -> FilePage:
        """Some of what a folder holds, in the order of the names, and where the list goes on."""
        params = calls.without_none({"path": path, "limit": limit, "cursor": cursor})
        return FilePage.parse(await self._send("GET", "/list", params=params))

    async def move(self, path: str, to: str, *, overwrite: bool = False) -> FileInfo:
        """Give a file or folder another name."""
        return FileInfo.parse(await self._send("POST", "/move", json={"path": path, "to": to, "overwrite": overwrite}))

    async def copy(self, path: str, to: str, *, overwrite: bool = False) -> FileInfo:
        """Copy a file, or a folder and all that it holds."""
        return FileInfo.parse(await self._send("POST", "/copy", json={"path": path, "to": to, "overwrite": overwrite}))

    async def chmod(self, path: str, mode: int, *, recursive: bool = False) -> FileInfo:
        """Set permissions."""
        body = {"path": path, "mode": f"{mode:04o}", "recursive": recursive}
        return FileInfo.parse(await self._send("POST", "/chmod", json=body))

    async def edit(self, path: str, *edits: Edit) -> FileInfo:
        """Replace text, (old, new) or (old, new, count) each: all of it or, with ConflictError, nothing."""
        return FileInfo.parse((await self._send("POST", "/edit", json=calls.edit(path, edits)))["file"])

    async def upload_tree(self, source: Path | str, path: str) -> FileInfo:
        """Copy a local folder's contents, or one file, into a folder inside."""
        with tempfile.TemporaryFile() as file:
            await asyncio.to_thread(trees.pack, Path(source), file)
            file.seek(0)
            return FileInfo.parse(
                await self._send(
                    "PUT", "/archive", params={"path": path}, content=_read(file), safe=False, read_timeout_s=None
                )
            )

    async def download_tree(self, path: str, target: Path | str) -> None:
        """Copy a folder's contents from inside into a local folder, which is made; nothing is written outside of it."""
        call = calls.files("GET", self._id, "/archive", params={"path": path, "format": "tar.gz"}, read_timeout_s=None)
        with tempfile.TemporaryFile() as file:
            async with self._transport.stream(call) as pieces:
                async for piece in pieces:
                    file.write(piece)
            file.seek(0)
            await asyncio.to_thread(trees.unpack, file, Path(target))

    async def watch(self, path: str, *, recursive: bool = False) -> AsyncIterator[FileChange]:
        """What changes in a folder from now on; the first one is `ready`. Close the iterator to end it."""
        config = self._transport.config
        async with connect(
            calls.watch_url(config.url, self._id, path, recursive=recursive),
            additional_headers=config.headers,
            proxy=None,
        ) as socket:
            async for frame in socket:
                yield FileChange.parse(json.loads(frame))
