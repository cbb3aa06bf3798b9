"""/v1/sandboxes/{id}/ports: what listens inside, reached through PID 1's channel."""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response, WebSocket

from sandbox_api.models.ports import Port, PortList, PortWait
from sandbox_api.routes.context import SandboxId, Tenant, Use, problems
from sandbox_api.routes.pass_on import METHODS, Over, Place, both, dialled, pass_http, pass_websocket

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}/ports", tags=["ports"])
PortNumber = Annotated[int, Path(ge=1, le=65535)]
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


@router.websocket("/{port}/tcp")
async def tcp(socket: WebSocket, use: Use, tenant: Tenant, sandbox_id: SandboxId, port: PortNumber) -> None:
    """A TCP connection to the port: binary frames each way; an empty one from the client ends its side."""
    await use.registry.usable(tenant, sandbox_id)
    async with dialled(use, sandbox_id, port) as connection:
        await socket.accept()

        async def up() -> None:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    raise Over
                data = message.get("bytes") or (message.get("text") or "").encode()
                if not data:
                    use.host.ports.end_transmission(connection)
                elif not await use.host.ports.transmit(connection, data):
                    return

        async def down() -> None:
            while data := await use.host.ports.receive(connection):
                await socket.send_bytes(data)
            await socket.close(1000)
            raise Over

        await both(up(), down())


@router.websocket("/{port}/{path:path}")
async def websocket(
    socket: WebSocket, use: Use, tenant: Tenant, sandbox_id: SandboxId, port: PortNumber, path: str
) -> None:
    """A websocket of the program's."""
    await use.registry.usable(tenant, sandbox_id)
    await pass_websocket(use, _place(sandbox_id, port), socket)


# ---- HTTP


def _place(sandbox_id: str, port: int) -> Place:
    return Place(sandbox_id, port, f"/v1/sandboxes/{sandbox_id}/ports/{port}")


async def http(use: Use, tenant: Tenant, sandbox_id: SandboxId, port: PortNumber, request: Request) -> Response:
    """An HTTP request to the program that listens on the port, and its answer."""
    await use.registry.usable(tenant, sandbox_id)
    return await pass_http(use, _place(sandbox_id, port), request)


for _method in METHODS:
    for _path in ("/{port}", "/{port}/{path:path}"):
        router.add_api_route(
            _path,
            http,
            methods=[_method],
            responses=problems(409, 502),
            response_class=Response,
            include_in_schema=False,
        )
