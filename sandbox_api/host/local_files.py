"""Files in this machine's sandboxes, by a program of ours that PID 1 starts."""

import contextlib
import errno
from collections.abc import AsyncIterator, Callable

from isolation.files import Change, Entry, FileFailed, Operation, operate
from isolation.sandbox import Sandbox

_KEEP_MODE = 0o10000


class LocalFiles:
    """See `sandbox_api.host.interface.Files`."""

    def __init__(
        self, sandbox: Callable[[str], Sandbox], *, allow_root: bool, patience_s: float, no_links: bool = False
    ) -> None:
        """An operation that gives no sign of life for patience_s seconds is ended.

        With no_links there is read, write, pack, unpack and empty (see `isolation.files.operate`).
        """
        self._patience_s = patience_s
        self._sandbox = sandbox
        self._allow_root = allow_root
        self._no_links = no_links

    @contextlib.asynccontextmanager
    async def _operate(
        self, sandbox: str, name: str, path: str, argument: str, user: str, *, stdin: bool = False
    ) -> AsyncIterator[Operation]:
        owner = self._sandbox(sandbox)
        with owner.in_use():
            async with operate(
                owner.link,
                name,
                path,
                argument,
                user=user,
                allow_root=self._allow_root,
                stdin=stdin,
                no_links=self._no_links,
                patience_s=self._patience_s,
            ) as operation:
                yield operation

    async def _entry(self, sandbox: str, name: str, path: str, argument: str, user: str) -> Entry:
        async with self._operate(sandbox, name, path, argument, user) as operation:
            return _required(await operation.result(), path)

    async def stat(self, sandbox: str, path: str, user: str) -> Entry:
        return await self._entry(sandbox, "stat", path, "", user)

    async def list_folder(self, sandbox: str, path: str, depth: int, user: str) -> list[Entry]:
        async with self._operate(sandbox, "list", path, str(depth), user) as operation:
            return await operation.listing()

    async def read(self, sandbox: str, path: str, offset: int, length: int, user: str) -> AsyncIterator[Entry | bytes]:
        async with self._operate(sandbox, "read", path, f"{offset}:{length}", user) as operation:
            yield await operation.head()
            async for piece in operation.contents():
                yield piece
            await operation.result()

    async def write(
        self,
        sandbox: str,
        path: str,
        size: int,
        mode: int | None,
        contents: AsyncIterator[bytes],
        user: str,
        *,
        changed_ns: int = -1,
    ) -> Entry:
        # A mode beyond all modes keeps the file's own.
        argument = f"{size}:{_KEEP_MODE if mode is None else mode:o}:{changed_ns}"
        async with self._operate(sandbox, "write", path, argument, user, stdin=True) as operation:
            async for piece in contents:
                if not await operation.feed(piece):
                    break
            operation.end()
            return _required(await operation.result(), path)

    async def mkdir(self, sandbox: str, path: str, parents: bool, user: str) -> Entry:
        return await self._entry(sandbox, "mkdir", path, "1" if parents else "0", user)

    async def remove(self, sandbox: str, path: str, recursive: bool, user: str) -> None:
        async with self._operate(sandbox, "remove", path, "1" if recursive else "0", user) as operation:
            await operation.result()

    async def empty(self, sandbox: str, path: str, user: str) -> None:
        async with self._operate(sandbox, "empty", path, "", user) as operation:
            await operation.result()

    async def page(self, sandbox: str, path: str, after: str, limit: int, user: str) -> list[Entry]:
        async with self._operate(sandbox, "page", path, f"{limit}:{after}", user) as operation:
            return await operation.listing()

    async def move(self, sandbox: str, path: str, to: str, overwrite: bool, user: str) -> Entry:
        return await self._entry(sandbox, "move", path, f"{overwrite:d}{to}", user)

    async def copy(self, sandbox: str, path: str, to: str, overwrite: bool, user: str) -> Entry:
        return await self._entry(sandbox, "copy", path, f"{overwrite:d}{to}", user)

    async def chmod(self, sandbox: str, path: str, mode: int, recursive: bool, user: str) -> Entry:
        return await self._entry(sandbox, "chmod", path, f"{recursive:d}{mode:o}", user)

    async def pack(self, sandbox: str, path: str, user: str) -> AsyncIterator[Entry | bytes]:
        async with self._operate(sandbox, "pack", path, "", user) as operation:
            yield await operation.head()
            async for piece in operation.contents():
                yield piece
            await operation.result()

    async def unpack(self, sandbox: str, path: str, owners: bool, contents: AsyncIterator[bytes], user: str) -> Entry:
        async with self._operate(sandbox, "unpack", path, f"{owners:d}", user, stdin=True) as operation:
            async for piece in contents:
                if not await operation.feed(piece):
                    break
            operation.end()
            return _required(await operation.result(), path)

    async def watch(self, sandbox: str, path: str, recursive: bool, user: str) -> AsyncIterator[Change]:
        async with self._operate(sandbox, "watch", path, f"{recursive:d}", user) as operation:
            async for change in operation.changes():
                yield change


def _required(entry: Entry | None, path: str) -> Entry:
    if entry is None:
        raise FileFailed(errno.EIO, path)
    return entry
