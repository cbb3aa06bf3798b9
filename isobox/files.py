"""A sandbox's files, blocking."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from websockets.sync.client import connect

from isobox import calls, trees
from isobox.calls import Edit
from isobox.transport import Transport
from isobox.values import FileChange, FileInfo, FilePage


class Files:
    """A sandbox's files, as its user sees them."""

    def __init__(self, transport: Transport, sandbox_id: str) -> None:
        self._transport = transport
        self._id = sandbox_id

    def _send(self, method: str, suffix: str = "", **parts: Any) -> Any:
        return self._transport.send(calls.files(method, self._id, suffix, **parts))

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        found: bytes = self._send("GET", params={"path": path}, read_timeout_s=None)
        return found

    def read_text(self, path: str) -> str:
        """A file's text."""
        return self.read(path).decode()

    def download(self, path: str, target: Path | str) -> None:
        """Copy a file out of the sandbox."""
        call = calls.files("GET", self._id, params={"path": path}, read_timeout_s=None)
        with self._transport.stream(call) as pieces, open(target, "wb") as file:
            for piece in pieces:
                file.write(piece)

    def write(self, path: str, contents: bytes | str | BinaryIO, *, mode: int | None = None) -> FileInfo:
        """Replace a file, all or nothing; folders above it are made."""
        body = contents.encode() if isinstance(contents, str) else contents
        params = calls.without_none({"path": path, "mode": None if mode is None else f"{mode:04o}"})
        # What is read from a stream can be sent once only.
        safe = isinstance(body, bytes)
        return FileInfo.parse(self._send("PUT", params=params, content=body, safe=safe, read_timeout_s=None))

    def upload(self, source: Path | str, path: str, *, mode: int | None = None) -> FileInfo:
        """Copy a file into the sandbox."""
        with open(source, "rb") as file:
            return self.write(path, file, mode=mode)

    def list(self, path: str, *, depth: int = 1) -> list[FileInfo]:
        """What a folder holds."""
        entries = self._send("GET", "/list", params={"path": path, "depth": depth})["entries"]
        return [FileInfo.parse(entry) for entry in entries]

    def stat(self, path: str) -> FileInfo:
        """A file's own data; NotFound if there is none."""
        return FileInfo.parse(self._send("GET", "/stat", params={"path": path}))

    def mkdir(self, path: str, *, parents: bool = True) -> FileInfo:
        """Make a folder."""
        return FileInfo.parse(self._send("POST", "/mkdir", json={"path": path, "parents": parents}))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file or folder."""
        self._send("DELETE", params={"path": path, "recursive": str(recursive).lower()})

    def page(self, path: str, *, limit: int = 1000, cursor: str | None = None) -> FilePage:
        """Some of what a folder holds, in the order of the names, and where the list goes on."""
        params = calls.without_none({"path": path, "limit": limit, "cursor": cursor})
        found = self._send("GET", "/list", params=params)
        return FilePage.parse(found)

    def move(self, path: str, to: str, *, overwrite: bool = False) -> FileInfo:
        """Give a file or folder another name."""
        return FileInfo.parse(self._send("POST", "/move", json={"path": path, "to": to, "overwrite": overwrite}))

    def copy(self, path: str, to: str, *, overwrite: bool = False) -> FileInfo:
        """Copy a file, or a folder and all that it holds."""
        return FileInfo.parse(self._send("POST", "/copy", json={"path": path, "to": to, "overwrite": overwrite}))

    def chmod(self, path: str, mode: int, *, recursive: bool = False) -> FileInfo:
        """Set permissions."""
        body = {"path": path, "mode": f"{mode:04o}", "recursive": recursive}
        return FileInfo.parse(self._send("POST", "/chmod", json=body))

    def edit(self, path: str, *edits: Edit) -> FileInfo:
        """Replace text, (old, new) or (old, new, count) each: all of it or, with ConflictError, nothing."""
        return FileInfo.parse(self._send("POST", "/edit", json=calls.edit(path, edits))["file"])

    def upload_tree(self, source: Path | str, path: str) -> FileInfo:
        """Copy a local folder's contents, or one file, into a folder inside."""
        with tempfile.TemporaryFile() as file:
            trees.pack(Path(source), file)
            file.seek(0)
            return FileInfo.parse(
                self._send("PUT", "/archive", params={"path": path}, content=file, safe=False, read_timeout_s=None)
            )

    def download_tree(self, path: str, target: Path | str) -> None:
        """Copy a folder's contents from inside into a local folder, which is made; nothing is written outside of it."""
        call = calls.files("GET", self._id, "/archive", params={"path": path, "format": "tar.gz"}, read_timeout_s=None)
        with tempfile.TemporaryFile() as file:
            with self._transport.stream(call) as pieces:
                for piece in pieces:
                    file.write(piece)
            file.seek(0)
            trees.unpack(file, Path(target))

    def watch(self, path: str, *, recursive: bool = False) -> Iterator[FileChange]:
        """What changes in a folder from now on; the first one is `ready`. Close the iterator to end it."""
        config = self._transport.config
        with connect(
            calls.watch_url(config.url, self._id, path, recursive=recursive),
            additional_headers=config.headers,
            proxy=None,
        ) as socket:
            for frame in socket:
                yield FileChange.parse(json.loads(frame))
