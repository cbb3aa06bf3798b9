"""Web endpoints of functions: …/functions/{id}/web, and …/apps/{app}/web/{function} for what is in force there."""

from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response, WebSocket

from sandbox_api.routes.context import Services, Tenant, Use, problems
from sandbox_api.routes.pass_on import METHODS, Place, pass_http, pass_websocket

router = APIRouter(tags=["functions"])
FunctionId = Annotated[str, Path(pattern=r"^fun[a-z2-7]{26}$")]
AppName = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
FunctionName = Annotated[str, Path(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,254}$")]


async def _http(use: Services, tenant: str, function: str, prefix: str, request: Request) -> Response:
    async with AsyncExitStack() as stack:
        sandbox, port = await stack.enter_async_context(use.functions.visit(tenant, function))
        return await pass_http(use, Place(sandbox, port, prefix), request, stack.pop_all())


async def _websocket(use: Services, tenant: str, function: str, prefix: str, socket: WebSocket) -> None:
    async with use.functions.visit(tenant, function) as (sandbox, port):
        await pass_websocket(use, Place(sandbox, port, prefix), socket)


async def of_function(use: Use, tenant: Tenant, function_id: FunctionId, request: Request) -> Response:
    """A request to a web endpoint; a container is started for it if there is none."""
    return await _http(use, tenant, function_id, f"/v1/functions/{function_id}/web", request)


async def of_app(use: Use, tenant: Tenant, app: AppName, function: FunctionName, request: Request) -> Response:
    """The same for the one that is in force in an app."""
    id_ = use.apps.in_force(tenant, app, function)
    return await _http(use, tenant, id_, f"/v1/apps/{app}/web/{function}", request)


@router.websocket("/v1/functions/{function_id}/web/{path:path}")
async def socket_of_function(socket: WebSocket, use: Use, tenant: Tenant, function_id: FunctionId, path: str) -> None:
    """A websocket of a web endpoint."""
    await _websocket(use, tenant, function_id, f"/v1/functions/{function_id}/web", socket)


@router.websocket("/v1/apps/{app}/web/{function}/{path:path}")
async def socket_of_app(
    socket: WebSocket, use: Use, tenant: Tenant, app: AppName, function: FunctionName, path: str
) -> None:
    """The same for the one that is in force in an app."""
    await _websocket(use, tenant, use.apps.in_force(tenant, app, function), f"/v1/apps/{app}/web/{function}", socket)


for _base, _handler in (("/v1/functions/{function_id}/web", of_function), ("/v1/apps/{app}/web/{function}", of_app)):
    for _method in METHODS:
        for _path in (_base, _base + "/{path:path}"):
            router.add_api_route(
                _path,
                _handler,
                methods=[_method],
                responses=problems(409, 502, 503),
                response_class=Response,
                include_in_schema=False,
            )
