"""Following execs and sandboxes: websockets and server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from common.errors import IsoboxError
from common.turns import turn_budget
from isolation.errors import SandboxGone
from isolation.execlog import Event, Gap
from sandbox_api.body import DEPTH_MAX, depth
from sandbox_api.models.execs import ExecRequest, signal_number
from sandbox_api.output import wire
from sandbox_api.problems import Problem, from_error, invalid
from sandbox_api.routes.context import ExecId, SandboxId, Services, Tenant, Use, problems
from sandbox_api.store.records import ExecRecord

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["streams"])
_FIRST_FRAME_TIMEOUT_S = 30.0
_PROTOCOLS = (wire.JSON_PROTOCOL, wire.BINARY_PROTOCOL)
_OUT_OF_PROTOCOL = 1008
_INPUT_AHEAD = 16
_FRAME_COST = 4 << 10

After = Annotated[int, Query(alias="from", ge=0, le=1 << 62)]


def _protocol(socket: WebSocket) -> str:
    offered = [each for each in socket.scope.get("subprotocols", []) if each in _PROTOCOLS]
    return offered[0] if offered else wire.JSON_PROTOCOL


async def accept(socket: WebSocket) -> str:
    """Take a client: the subprotocol that it speaks."""
    protocol = _protocol(socket)
    await socket.accept(subprotocol=protocol if socket.scope.get("subprotocols") else None)
    return protocol


async def _send(socket: WebSocket, protocol: str, event: Event | Gap) -> None:
    frame = wire.binary_frame(event) if protocol == wire.BINARY_PROTOCOL else wire.text_frame(event)
    if isinstance(frame, bytes):
        await socket.send_bytes(frame)
    else:
        await socket.send_text(frame)


async def _refuse(socket: WebSocket, problem: Problem) -> None:
    """Tell a client that is connected already what is wrong, and close."""
    document = problem.document(str(socket.state.request_id))
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await socket.send_json({"seq": 0, "t": None, "type": "problem", "data": document})
        await socket.close(_OUT_OF_PROTOCOL, problem.detail[:120])


class _Session:
    """One client on one exec: a task sends events, this one reads frames."""

    def __init__(self, socket: WebSocket, use: Services, record: ExecRecord, protocol: str) -> None:
        self._socket = socket
        self._use = use
        self._record = record
        self._protocol = protocol
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue(_INPUT_AHEAD)

    async def run(self, after: int) -> None:
        """Until the exec has ended and been told, or the client has gone."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(), name="stdin")
                group.create_task(self._listen(), name="frames")
                async for event in self._use.execs.follow(self._record, after):
                    await _send(self._socket, self._protocol, event)
                await self._socket.close(1000)
                raise _Over
        except* _Over:
            pass
        except* IsoboxError as problems_:
            await _refuse(self._socket, _first(problems_))
        except* (WebSocketDisconnect, OSError, RuntimeError):
            pass  # the client has gone; the exec goes on

    async def _listen(self) -> None:
        turn = turn_budget()
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise _Over
            text = message.get("text")
            await turn.take(_FRAME_COST + len(text or ""))
            if text is None:
                raise Problem(
                    400, "frame_invalid", "client frames are text", hint='send {"type": "stdin", "data_b64": …}'
                )
            try:
                await self._obey(wire.client_frame(text))
            except wire.ClientFrameError as error:
                raise Problem(
                    400, "frame_invalid", str(error), hint="see the client frames in the API document"
                ) from None

    async def _obey(self, frame: dict[str, Any]) -> None:
        record = self._record
        if frame["type"] == "stdin":
            await self._input.put(frame["data"])  # full: the client waits, through TCP
        elif frame["type"] == "stdin_eof":
            await self._input.put(None)
        elif frame["type"] == "signal":
            try:
                number = signal_number(frame["signal"])
            except (ValueError, AttributeError, TypeError) as error:
                raise wire.ClientFrameError(str(error)) from None
            with contextlib.suppress(Problem):  # it has just ended: the exit is on its way
                if record.role == "run":
                    await self._use.contexts.signal(record, number)
                else:
                    await self._use.execs.signal(record, number, group=frame["group"])
        elif record.pty:
            self._use.execs.resize(record, frame["rows"], frame["cols"])
        else:
            raise wire.ClientFrameError("resize: this exec has no terminal")

    async def _feed(self) -> None:
        async def one(piece: bytes) -> AsyncIterator[bytes]:
            yield piece

        async def nothing() -> AsyncIterator[bytes]:
            return
            yield b""

        while True:
            piece = await self._input.get()
            # What ended takes no input; its exit tells that better than an error would.
            with contextlib.suppress(Problem, SandboxGone):
                source = nothing() if piece is None else one(piece)
                await self._use.execs.write_input(self._record, source, eof=piece is None)


class _Over(Exception):
    """The session is done."""


def _first(group: "ExceptionGroup[IsoboxError]") -> Problem:
    found = group.exceptions[0]
    return from_error(found) if isinstance(found, IsoboxError) else _first(found)


@router.websocket("/execs/{exec_id}/stream")
async def follow_exec(
    socket: WebSocket, use: Use, tenant: Tenant, sandbox_id: SandboxId, exec_id: ExecId, after: After = 0
) -> None:
    """Follow an exec from an event on."""
    record = await use.execs.get(tenant, sandbox_id, exec_id)
    protocol = await accept(socket)
    await _Session(socket, use, record, protocol).run(after)


@router.websocket("/exec")
async def run_exec(socket: WebSocket, use: Use, tenant: Tenant, sandbox_id: SandboxId) -> None:
    """Start an exec, described by the first frame, and follow it."""
    await use.registry.usable(tenant, sandbox_id)
    protocol = await accept(socket)
    try:
        async with asyncio.timeout(_FIRST_FRAME_TIMEOUT_S):
            message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        request = _first_frame(message.get("text"))
        record = await use.execs.start(tenant, sandbox_id, request)
    except TimeoutError:
        await _refuse(
            socket, Problem(400, "frame_invalid", "no first frame within 30 s", hint="send the exec request first")
        )
        return
    except IsoboxError as error:
        await _refuse(socket, from_error(error))
        return
    await _Session(socket, use, record, protocol).run(0)


def _first_frame(text: str | None) -> ExecRequest:
    if text is None or depth(text.encode(errors="replace")) > DEPTH_MAX:
        raise Problem(400, "frame_invalid", "the first frame is not an exec request", hint="send a JSON object as text")
    try:
        request = ExecRequest.model_validate_json(text)
    except ValidationError as error:
        raise invalid(
            validation_text(error.errors(include_url=False, include_context=False, include_input=False))
        ) from None
    if request.stdin is None:
        request.stdin = True  # a stream can be written to
    return request


_WORDS: Final = {"extra_forbidden": "there is no such field here", "missing": "it is needed"}


def validation_text(errors: Any) -> str:
    """Pydantic's findings in one line."""
    found = [
        f"{'.'.join(str(part) for part in each['loc']) or 'body'}: {_WORDS.get(each['type'], each['msg'])}"
        for each in errors[:5]
    ]
    return "; ".join(found)[:1000]


# ---- server-sent events


async def _events(source: AsyncIterator[Event | Gap]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(source):  # type: ignore[type-var]  # it is an async generator
        async for event in source:
            yield wire.sse_frame(event)


def sse(source: AsyncIterator[Event | Gap]) -> StreamingResponse:
    """Events as text/event-stream."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(source), media_type="text/event-stream", headers=headers)


LastEventId = Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=1 << 62)]


@router.get("/execs/{exec_id}/stream", responses=problems(), response_class=StreamingResponse)
async def follow_exec_sse(
    use: Use, tenant: Tenant, sandbox_id: SandboxId, exec_id: ExecId, last: LastEventId = None, after: After = 0
) -> StreamingResponse:
    """The same stream as text/event-stream; Last-Event-ID (or from) says where to go on."""
    record = await use.execs.get(tenant, sandbox_id, exec_id)
    return sse(use.execs.follow(record, after if last is None else last))


@router.get("/events", responses=problems(), response_class=StreamingResponse)
async def follow_sandbox_sse(
    use: Use, tenant: Tenant, sandbox_id: SandboxId, last: LastEventId = None, after: After = 0
) -> StreamingResponse:
    """A sandbox's own events: state changes, OOM, a warning ahead of expiry, its end."""
    record = await use.sandboxes.get(tenant, sandbox_id)
    return sse(use.sandboxes.events(record, after if last is None else last))


@router.websocket("/events")
async def follow_sandbox(socket: WebSocket, use: Use, tenant: Tenant, sandbox_id: SandboxId, after: After = 0) -> None:
    """The same over a websocket."""
    record = await use.sandboxes.get(tenant, sandbox_id)
    await accept(socket)
    await send_all(socket, (wire.text_frame(event) async for event in use.sandboxes.events(record, after)))


async def send_all(socket: WebSocket, frames: AsyncIterator[str]) -> None:
    """Send text frames until they or the client are at an end; an error of ours closes with its reason."""

    async def listen() -> None:
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass
        raise _Over

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(listen(), name="listen")
            async with contextlib.aclosing(frames):  # type: ignore[type-var]  # it is an async generator
                async for frame in frames:
                    await socket.send_text(frame)
            await socket.close(1000)
            raise _Over
    except* (_Over, WebSocketDisconnect, OSError, RuntimeError):
        pass
    except* IsoboxError as group:
        await _refuse(socket, _first(group))
