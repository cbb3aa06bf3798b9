"""Composes the server, once."""

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from common import owners
from common.errors import IsoboxError
from common.tasks import TaskOwner
from sandbox_api.auth import Keys
from sandbox_api.gate import Gate, Websockets
from sandbox_api.host.local import local_host
from sandbox_api.in_flight import InFlight
from sandbox_api.metrics import Metrics
from sandbox_api.models.common import ProblemDocument
from sandbox_api.problems import Problem, from_error, invalid
from sandbox_api.routes import contexts as context_routes
from sandbox_api.routes import (
    execs,
    files,
    functions,
    gpus,
    images,
    network,
    objects,
    ports,
    sandboxes,
    snapshots,
    streams,
    system,
    volumes,
    web,
)
from sandbox_api.routes.context import Services
from sandbox_api.services.buckets import BucketService
from sandbox_api.services.builder import Builder
from sandbox_api.services.catalog import Catalog
from sandbox_api.services.contexts import ContextService
from sandbox_api.services.copies import CopyService
from sandbox_api.services.egress import EgressService
from sandbox_api.services.execs import ExecService
from sandbox_api.services.functions.apps import AppService
from sandbox_api.services.functions.asks import Asks
from sandbox_api.services.functions.runs import RunService
from sandbox_api.services.functions.service import FunctionService
from sandbox_api.services.gpus import GpuService
from sandbox_api.services.images import ImageService
from sandbox_api.services.life import Life
from sandbox_api.services.objects import ObjectService
from sandbox_api.services.parking import Parking
from sandbox_api.services.registry import Registry
from sandbox_api.services.sandboxes import SandboxService
from sandbox_api.services.secrets import Seal, SecretService
from sandbox_api.services.uploads import Uploads
from sandbox_api.services.usage import UsageService
from sandbox_api.services.volumes import VolumeService
from sandbox_api.settings import Settings, SettingsError
from sandbox_api.store.store import Store

VERSION = "0.1.0"


class StateInUse(SettingsError):
    """Another server has this state directory."""


def lock_state(state: Path) -> int:
    """Make the state directory ours; StateInUse if another server has it. The descriptor holds the lock."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StateInUse(
            f"another server uses {state}", hint="stop it, or choose another directory with --state"
        ) from None
    owners.identify(state)
    return fd


@asynccontextmanager
async def services(settings: Settings, store: Store, metrics: Metrics) -> AsyncIterator[Services]:
    """All that works behind the routes, in the order that a way out needs."""
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(local_host(settings))
        tasks = await stack.enter_async_context(TaskOwner())
        registry = Registry(store)
        secrets = SecretService(store, Seal.load(settings.state))
        egress = EgressService(settings, host, registry, secrets, metrics)
        exec_service = ExecService(settings, host, registry, tasks, metrics)
        life = Life(registry, metrics)
        buckets = BucketService(host, registry, secrets)
        gpu_service = GpuService(host, registry, tasks, look_s=settings.gpu_look_s)
        usage = UsageService(host, registry)
        parking = Parking(settings, host, registry, life, exec_service, egress, buckets, tasks)
        contexts = ContextService(settings, host, registry, exec_service, tasks)
        catalog = Catalog(host, store)
        volume_service = VolumeService(settings, host, registry)
        sandbox_service = SandboxService(
            *(settings, host, registry, catalog, volume_service, buckets, gpu_service, usage),
            *(life, exec_service, parking, contexts, egress, tasks),
        )
        uploads = Uploads(settings.state / "uploads", settings.uploads_quota_mb << 20)
        builder = Builder(settings, host, registry, catalog, sandbox_service, exec_service, uploads)
        image_service = ImageService(host, store, catalog, builder, secrets, uploads, tasks)
        copies = CopyService(
            settings, host, registry, life, exec_service, contexts, sandbox_service, egress, buckets, tasks
        )
        function_service = FunctionService(
            settings, host, registry, sandbox_service, exec_service, uploads, copies, secrets, catalog, tasks
        )
        stack.push_async_callback(function_service.close)
        app_service = AppService(registry, function_service)
        object_service = ObjectService(store.objects, store.functions)
        run_service = RunService(registry, function_service)
        asks = Asks(function_service.desk, function_service, run_service, object_service, uploads)
        function_service.desk.answer = asks.answer
        tasks.spawn(egress.watch(exec_service.tell), name="refusals")  # first: the gateway waits for it
        await sandbox_service.recover()
        await gpu_service.recover()
        await image_service.recover()
        await buckets.recover()
        await host.begin()
        await copies.keep_templates()
        await function_service.recover()
        tasks.spawn(sandbox_service.watch_ends(), name="ends")
        tasks.spawn(sandbox_service.watch_clock(), name="clock")
        tasks.spawn(gpu_service.watch(), name="gpus")
        tasks.spawn(buckets.watch_failures(), name="bucket failures")
        tasks.spawn(copies.watch_expiry(), name="expiry")
        tasks.spawn(sandbox_service.watch_retention(), name="retention")
        tasks.spawn(function_service.watch_retention(), name="calls")
        tasks.spawn(object_service.watch(), name="dicts and queues")
        tasks.spawn(run_service.watch(), name="runs")
        tasks.spawn(app_service.watch_schedules(), name="schedules")
        tasks.spawn(image_service.watch_uploads(), name="uploads")
        yield Services(
            host,
            registry,
            sandbox_service,
            parking,
            copies,
            contexts,
            exec_service,
            tasks,
            metrics,
            egress,
            secrets,
            image_service,
            uploads,
            volume_service,
            gpu_service,
            usage,
            function_service,
            app_service,
            run_service,
            object_service,
        )


def make_app(settings: Settings, store: Store, in_flight: InFlight) -> FastAPI:
    """The application; whoever serves it holds the state directory's lock."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with services(settings, store, metrics) as composed:
            app.state.services = composed
            yield

    app = FastAPI(
        title="isobox",
        version=VERSION,
        summary="gVisor sandboxes for LLM agents",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    for router in (
        sandboxes.router,
        snapshots.router,
        execs.router,
        context_routes.router,
        streams.router,
        files.router,
        ports.router,
        network.router,
        images.router,
        volumes.router,
        gpus.router,
        functions.router,
        web.router,
        objects.router,
        images.uploads_router,
        images.store_router,
        system.router,
    ):
        app.include_router(router)
    app.add_exception_handler(IsoboxError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(WebSocketRequestValidationError, _on_invalid_socket)
    app.add_exception_handler(HTTPException, _on_http)
    websockets = Websockets(most=settings.websockets, per_caller=settings.websockets_per_key)
    app.add_middleware(
        Gate,
        keys=Keys.load(settings.state),
        store=store,
        metrics=metrics,
        websockets=websockets,
        in_flight=in_flight,
    )
    _describe(app)
    return app


def _document(request: Request, problem: Problem) -> Response:
    body = problem.document(str(request.state.request_id))
    return JSONResponse(body, problem.status, problem.headers, media_type="application/problem+json")


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, IsoboxError)
    return _document(request, from_error(error))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        return _document(request, Problem(400, "json_invalid", "the body is not JSON", hint="send a JSON object"))
    hint = "see /openapi.json for what is expected"
    if any(each["loc"] == ("body",) for each in found) and not _is_json(request):
        hint = "send a JSON object, with the header `Content-Type: application/json`"
    return _document(request, invalid(streams.validation_text(found), hint))


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def _on_invalid_socket(_: WebSocket, error: Exception) -> None:
    """Has the gate refuse it, as it refuses everything before a websocket is there."""
    assert isinstance(error, WebSocketRequestValidationError)
    raise invalid(streams.validation_text(error.errors()), "see /openapi.json for what is expected")


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {
        404: ("path_not_found", "no such path"),
        405: ("method_not_allowed", "this path does not take that method"),
    }
    code, detail = codes.get(error.status_code, ("http_error", str(error.detail)))
    answer = _document(request, Problem(error.status_code, code, detail, hint="see /openapi.json for what there is"))
    answer.headers.update(error.headers or {})
    return answer


def _describe(app: FastAPI) -> None:
    """Add to the OpenAPI document what the gate asks for."""
    generate = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            schema["components"]["schemas"]["ProblemDocument"] = ProblemDocument.model_json_schema()
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
