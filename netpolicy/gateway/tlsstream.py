"""TLS over a socket whose first bytes have been read already."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

_PIECE: Final = 1 << 17


class TlsStream:
    """One connection; reads and writes may go on at once, from one task each. OSError (ssl.SSLError is one)."""

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        host: str | None = None,
        first: bytes = b"",
    ) -> None:
        self._socket = connection
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._in.write(first)
        self._tls = context.wrap_bio(self._in, self._out, server_side=server_side, server_hostname=host)
        self._sending = asyncio.Lock()

    async def handshake(self) -> None:
        """Shake hands."""
        await self._do(self._tls.do_handshake)

    async def read(self) -> bytes:
        """What came; b"" at its end."""
        try:
            data: bytes = await self._do(lambda: self._tls.read(_PIECE))
            return data
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    async def write(self, data: bytes) -> None:
        """Send."""
        view = memoryview(data)
        while view:
            sent: int = await self._do(lambda: self._tls.write(view[:_PIECE]))  # noqa: B023 - called at once
            view = view[sent:]

    async def close(self) -> None:
        """Say that no more comes."""
        with contextlib.suppress(ssl.SSLError, OSError):
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            await self._flush()
            self._socket.shutdown(socket.SHUT_WR)

    async def _do(self, deed: Callable[[], Any]) -> Any:
        while True:
            try:
                result = deed()
            except ssl.SSLWantReadError:
                await self._flush()
                piece = await asyncio.get_running_loop().sock_recv(self._socket, _PIECE)
                if piece:
                    self._in.write(piece)
                else:
                    self._in.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        async with self._sending:
            if data := self._out.read():
                await asyncio.get_running_loop().sock_sendall(self._socket, data)
