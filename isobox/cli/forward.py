"""A local port that leads into a sandbox: each connection a websocket of its own."""

import asyncio
import contextlib
import socket

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from isobox.cli.say import complain, say
from isobox.config import Config

_PIECE = 64 << 10


async def forward(config: Config, sandbox: str, port: int, host: str, local: int) -> None:
    """Listen on host:local and pass each connection on, until cancelled."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ConnectionClosed):  # either side has gone, and so does this connection
            await _pass_on(config, f"/v1/sandboxes/{sandbox}/ports/{port}/tcp", reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, host, local, family=socket.AF_UNSPEC)
    bound = server.sockets[0].getsockname()
    say(f"{bound[0]}:{bound[1]} leads to port {port} of {sandbox}; Ctrl-C ends it")
    async with server:
        await server.serve_forever()


async def _pass_on(config: Config, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    url = "ws" + config.url.removeprefix("http") + path
    try:
        async with (
            connect(url, additional_headers=config.headers, max_size=None, compression=None, proxy=None) as there,
            asyncio.TaskGroup() as both,
        ):
            up = both.create_task(_up(reader, there), name="up")
            try:
                await _down(there, writer)
            finally:
                up.cancel()
    except InvalidStatus as error:
        complain(f"refused: {error.response.status_code} {error.response.body.decode(errors='replace')[:300]}")


async def _up(reader: asyncio.StreamReader, there: ClientConnection) -> None:
    with contextlib.suppress(OSError, ConnectionClosed):  # the other direction sees it too
        while piece := await reader.read(_PIECE):
            await there.send(piece)
        await there.send(b"")


async def _down(there: ClientConnection, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ConnectionClosed):
        async for piece in there:
            writer.write(piece if isinstance(piece, bytes) else piece.encode())
            await writer.drain()
