"""/v1/sandboxes/{id}/ports: what listens inside, reached through PID 1's channel."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from isolation.errors import SandboxGone
from sandbox_api.auth import KEY_SUBPROTOCOL
from sandbox_api.models.ports import Port, PortList, PortWait
from sandbox_api.proxy.headers import request_headers, response_headers, subprotocols
from sandbox_api.proxy.http import Exchange
from sandbox_api.proxy.websocket import Upstream
from sandbox_api.routes.context import SandboxId, Services, Tenant, Use, problems

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}/ports", tags=["ports"])
PortNumber = Annotated[int, Path(ge=1, le=65535)]
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_LOOK_EVERY_S = (0.02, 0.25)


@router.get("", responses=problems(409))
async def list_(use: Use, tenant: Tenant, sandbox_id: SandboxId) -> PortList:
    """What listens inside."""
    live = await use.registry.usable(tenant, sandbox_id)
    found = await use.host.ports.listeners(sandbox_id, live.record.user)
    return PortList(ports=[Port(port=each.port, address=each.address) for each in found])


@router.get("/{port}/wait", responses=problems(409))
async def wait(
    use: Use,
    tenant: Tenant,
    sandbox_id: SandboxId,
    port: PortNumber,
    timeout_s: Annotated[float, Query(ge=0, le=600)] = 30.0,
) -> PortWait:
    """Wait until something listens on the port, at most timeout_s seconds; `listening` tells whether it does."""
    live = await use.registry.usable(tenant, sandbox_id)
    deadline, pause = time.monotonic() + timeout_s, _LOOK_EVERY_S[0]
    while True:
        found = any(each.port == port for each in await use.host.ports.listeners(sandbox_id, live.record.user))
        if found or time.monotonic() + pause > deadline:
            return PortWait(port=port, listening=found)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LOOK_EVERY_S[1])


# ---- raw bytes


class _Over(Exception):
    """The session is done."""


@router.websocket("/{port}/tcp")
async def tcp(socket: WebSocket, use: Use, tenant: Tenant, sandbox_id: SandboxId, port: PortNumber) -> None:
    """A TCP connection to the port: binary frames each way; an empty one from the client ends its side."""
    await use.registry.usable(tenant, sandbox_id)
    async with _dialled(use, sandbox_id, port) as connection:
        await socket.accept()

        async def up() -> None:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    raise _Over
                data = message.get("bytes") or (message.get("text") or "").encode()
                if not data:
                    use.host.ports.end_transmission(connection)
                elif not await use.host.ports.transmit(connection, data):
                    return

        async def down() -> None:
            while data := await use.host.ports.receive(connection):
                await socket.send_bytes(data)
            await socket.close(1000)
            raise _Over

        await _both(up(), down())


@contextlib.asynccontextmanager
async def _dialled(use: Services, sandbox_id: str, port: int) -> AsyncIterator[str]:
    connection = await use.host.ports.dial(sandbox_id, port)
    try:
        yield connection
    finally:
        await use.host.ports.hang_up(connection)
        if (live := use.registry.live.get(sandbox_id)) is not None:
            live.used_at = time.time()


async def _both(up: Any, down: Any) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(up, name="up")
            group.create_task(down, name="down")
    except* (_Over, WebSocketDisconnect, SandboxGone, OSError, RuntimeError):
        pass  # one side has gone, and the other is told by what follows


# ---- websockets


@router.websocket("/{port}/{path:path}")
async def websocket(
    socket: WebSocket, use: Use, tenant: Tenant, sandbox_id: SandboxId, port: PortNumber, path: str
) -> None:
    """A websocket of the program's."""
    await use.registry.usable(tenant, sandbox_id)
    async with _dialled(use, sandbox_id, port) as connection:
        offered = subprotocols(socket.scope.get("subprotocols", []), key_prefix=KEY_SUBPROTOCOL)
        target = _target(socket.scope, sandbox_id, port).decode("latin-1")
        upstream = Upstream(use.host.ports, connection, target=target, port=port, subprotocols=offered)
        chosen = await upstream.open(_request_headers(socket.scope, sandbox_id, port, socket))
        await socket.accept(subprotocol=chosen)

        async def up() -> None:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    await upstream.close(message.get("code", 1001))
                    raise _Over
                text = message.get("text")
                await upstream.send(text if text is not None else message["bytes"])

        async def down() -> None:
            while (message := await upstream.receive()) is not None:
                if isinstance(message, str):
                    await socket.send_text(message)
                else:
                    await socket.send_bytes(message)
            await socket.close(upstream.close_code)
            raise _Over

        await _both(up(), down())


# ---- HTTP


def _prefix(sandbox_id: str, port: int) -> str:
    return f"/v1/sandboxes/{sandbox_id}/ports/{port}"


def _target(scope: Any, sandbox_id: str, port: int) -> bytes:
    """The path as the client wrote it, escapes and all, below the port's own."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = raw.partition(b"?")[0][len(_prefix(sandbox_id, port)) :] or b"/"
    query: bytes = scope.get("query_string", b"")
    return path + b"?" + query if query else path


def _request_headers(scope: Any, sandbox_id: str, port: int, connection: Request | WebSocket) -> Any:
    return request_headers(
        list(scope["headers"]),
        port=port,
        prefix=_prefix(sandbox_id, port),
        scheme=connection.url.scheme.replace("ws", "http"),
        client=connection.client.host if connection.client else "",
    )


async def http(use: Use, tenant: Tenant, sandbox_id: SandboxId, port: PortNumber, request: Request) -> Response:
    """An HTTP request to the program that listens on the port, and its answer."""
    await use.registry.usable(tenant, sandbox_id)
    stack = contextlib.AsyncExitStack()
    async with stack:
        connection = await stack.enter_async_context(_dialled(use, sandbox_id, port))
        exchange = Exchange(use.host.ports, connection)
        headers = _request_headers(request.scope, sandbox_id, port, request)
        # Both ways at once: a program may answer before it has read everything.
        sending = use.tasks.spawn(
            exchange.send(request.method, _target(request.scope, sandbox_id, port), headers, request.stream()),
            name=f"request to {sandbox_id}:{port}",
        )
        stack.push_async_callback(_cancelled, sending)
        answering = use.tasks.spawn(exchange.answer(), name=f"answer of {sandbox_id}:{port}")
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
    response.raw_headers = response_headers(answer.headers, port=port, prefix=_prefix(sandbox_id, port))
    return response


async def _cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)  # what it failed with was told, or nobody is left to be told


for _method in _METHODS:
    for _path in ("/{port}", "/{port}/{path:path}"):
        router.add_api_route(
            _path,
            http,
            methods=[_method],
            responses=problems(409, 502),
            response_class=Response,
            include_in_schema=False,
        )
