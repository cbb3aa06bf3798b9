"""Connections into this machine's sandboxes."""

import contextlib
import itertools
from collections.abc import Callable

from isolation.connections import Connection, Listener, dial, listening
from isolation.errors import SandboxGone
from isolation.files import FileFailed
from isolation.sandbox import Sandbox
from sandbox_api.host.local_files import LocalFiles

_PROC_NET_MAX = 1 << 20


class LocalPorts:
    """See `sandbox_api.host.interface.Ports`."""

    def __init__(self, sandbox: Callable[[str], Sandbox], files: LocalFiles) -> None:
        self._sandbox = sandbox
        self._files = files
        self._connections: dict[str, tuple[Connection, contextlib.AsyncExitStack]] = {}
        self._numbers = itertools.count(1)

    async def dial(self, sandbox: str, port: int) -> str:
        owner, stack = self._sandbox(sandbox), contextlib.AsyncExitStack()
        async with stack:
            stack.enter_context(owner.in_use())
            connection = await stack.enter_async_context(dial(owner.link, port))
            name = f"{sandbox}:{port}:{next(self._numbers)}"
            self._connections[name] = (connection, stack.pop_all())
        return name

    async def receive(self, connection: str) -> bytes:
        return await self._connections[connection][0].receive()

    async def transmit(self, connection: str, data: bytes) -> bool:
        return await self._connections[connection][0].send(data)

    def end_transmission(self, connection: str) -> None:
        with contextlib.suppress(SandboxGone):
            self._connections[connection][0].end()

    async def hang_up(self, connection: str) -> None:
        if (found := self._connections.pop(connection, None)) is not None:
            await found[1].aclose()

    async def listeners(self, sandbox: str, user: str) -> list[Listener]:
        text = bytearray()
        for name in ("/proc/net/tcp", "/proc/net/tcp6"):
            with contextlib.suppress(FileFailed):
                async for piece in self._files.read(sandbox, name, 0, _PROC_NET_MAX, user):
                    text += piece if isinstance(piece, bytes) else b""
        return listening(text.decode("ascii", errors="replace"))
