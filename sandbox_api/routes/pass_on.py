"""HTTP and websockets passed on to a program that listens in a sandbox, through PID 1's channel."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from common.turns import turn_budget
from isolation.errors import SandboxGone
from sandbox_api.auth import KEY_SUBPROTOCOL
from sandbox_api.proxy.headers import request_headers, response_headers, subprotocols
from sandbox_api.proxy.http import Exchange
from sandbox_api.proxy.websocket import Upstream
from sandbox_api.routes.context import Services

_MESSAGE_COST = 16 << 10

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program listens, and the path of ours that stands for its root."""

    sandbox: str
    port: int
    prefix: str

    def below(self, scope: Any) -> bytes:
        """The path as the client wrote it, escapes and all, below the prefix; empty for the prefix itself."""
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        return raw.partition(b"?")[0][len(self.prefix) :]

    def target(self, scope: Any) -> bytes:
        """The same with its query, as the program is asked."""
        path = self.below(scope) or b"/"
        query: bytes = scope.get("query_string", b"")
        return path + b"?" + query if query else path

    def headers(self, scope: Any, connection: Request | WebSocket) -> Any:
        """What the program is sent of the client's headers."""
        return request_headers(
            list(scope["headers"]),
            port=self.port,
            prefix=self.prefix,
            scheme=connection.url.scheme.replace("ws", "http"),
            client=connection.client.host if connection.client else "",
        )


class Over(Exception):
    """The session is done."""


@contextlib.asynccontextmanager
async def dialled(use: Services, sandbox_id: str, port: int) -> AsyncIterator[str]:
    """A connection to a port inside."""
    connection = await use.host.ports.dial(sandbox_id, port)
    try:
        yield connection
    finally:
        await use.host.ports.hang_up(connection)
        if (live := use.registry.live.get(sandbox_id)) is not None:
            live.used_at = time.time()


async def both(up: Coroutine[Any, Any, None], down: Coroutine[Any, Any, None]) -> None:
    """Both ways of a session, until one of them is over."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(up, name="up")
            group.create_task(down, name="down")
    except* (Over, WebSocketDisconnect, SandboxGone, OSError, RuntimeError):
        pass  # one side has gone, and the other is told by what follows


async def pass_websocket(use: Services, place: Place, socket: WebSocket) -> None:
    """A websocket of the program's."""
    async with dialled(use, place.sandbox, place.port) as connection:
        offered = subprotocols(socket.scope.get("subprotocols", []), key_prefix=KEY_SUBPROTOCOL)
        target = place.target(socket.scope).decode("latin-1")
        upstream = Upstream(use.host.ports, connection, target=target, port=place.port, subprotocols=offered)
        chosen = await upstream.open(place.headers(socket.scope, socket))
        await socket.accept(subprotocol=chosen)

        async def up() -> None:
            turn = turn_budget()
            while True:
                message = await socket.receive()
                await turn.take(_MESSAGE_COST)
                if message["type"] == "websocket.disconnect":
                    await upstream.close(message.get("code", 1001))
                    raise Over
                text = message.get("text")
                await upstream.send(text if text is not None else message["bytes"])

        async def down() -> None:
            while (message := await upstream.receive()) is not None:
                if isinstance(message, str):
                    await socket.send_text(message)
                else:
                    await socket.send_bytes(message)
            await socket.close(upstream.close_code)
            raise Over

        await both(up(), down())


async def pass_http(
    use: Services, place: Place, request: Request, holding: contextlib.AsyncExitStack | None = None
) -> Response:
    """An HTTP request to the program, and its answer; holding is left once that is over, or never came."""
    async with contextlib.AsyncExitStack() as stack:
        if holding is not None:
            stack.push_async_exit(holding)
        connection = await stack.enter_async_context(dialled(use, place.sandbox, place.port))
        exchange = Exchange(use.host.ports, connection)
        # Both ways at once: a program may answer before it has read everything.
        sending = use.tasks.spawn(
            exchange.send(
                request.method, place.target(request.scope), place.headers(request.scope, request), request.stream()
            ),
            name=f"request to {place.sandbox}:{place.port}",
        )
        stack.push_async_callback(_cancelled, sending)
        answering = use.tasks.spawn(exchange.answer(), name=f"answer of {place.sandbox}:{place.port}")
        stack.push_async_callback(_cancelled, answering)
        await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
        answer = await answering
        keep = stack.pop_all()

    async def body() -> AsyncIterator[bytes]:
        async with keep:
            async for piece in answer.body:
                yield piece

    response = StreamingResponse(body(), answer.status)
    path = place.below(request.scope)
    host = request.headers.get("host", "").encode("latin-1")
    response.raw_headers = response_headers(answer.headers, port=place.port, prefix=place.prefix, host=host, path=path)
    return response


async def _cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)  # what it failed with was told, or nobody is left to be told
