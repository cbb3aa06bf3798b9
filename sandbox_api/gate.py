"""The one middleware: who calls, how much they may send, answers given before, and errors as problem documents.

request ──▶ key? ──▶ body bounded ──▶ Idempotency-Key known? ──▶ the route
             401        413, 400            its answer

Before it comes `listener/`, which bounds heads and connections.
"""

import asyncio
import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final
from weakref import WeakValueDictionary

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import IsoboxError
from common.ids import new_id
from sandbox_api.auth import Caller, Keys, key_of
from sandbox_api.body import read_json, replay
from sandbox_api.in_flight import InFlight, Request
from sandbox_api.metrics import Metrics
from sandbox_api.problems import Problem, from_error
from sandbox_api.store.store import Store

_log = structlog.get_logger(__name__)
_OPEN: Final = frozenset({"/healthz", "/readyz", "/openapi.json"})
_RAW: Final = re.compile(
    r"^/v1/(?:sandboxes/[^/]+/(?:files|files/archive|execs/[^/]+/stdin|ports/.*)"
    r"|(?:functions/[^/]+|apps/[^/]+)/web(?:/.*)?|uploads/[^/]+|volumes/[^/]+/archive)\Z",
    re.DOTALL,  # a path may hold line breaks
)
_KEPT_MAX: Final = 1 << 20


class Gate:
    """See the module."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        store: Store,
        metrics: Metrics,
        websockets: "Websockets",
        in_flight: InFlight,
    ) -> None:
        self._app = app
        self._in_flight = in_flight
        self._websockets = websockets
        self._keys = keys
        self._store = store
        self._metrics = metrics
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        """Of requests with one tenant's key, while there are any: whoever waits for a lock keeps it here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or websocket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._metrics.requests.labels(str(message["status"])).inc()
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            elif message["type"] == "websocket.accept":
                begun = True
            elif message["type"] == "websocket.close" and not begun:  # no route takes it
                raise Problem(
                    404, "path_not_found", "no such path", hint="see docs/api.md for the websockets there are"
                )
            await send(message)

        try:
            if scope["path"] in _OPEN:
                await self._app(scope, receive, noting)  # nothing there has a body: none is read of a stranger
                return
            headers = dict(scope["headers"])
            caller = scope["state"]["caller"] = self._keys.caller(key_of(headers))
            if scope["type"] == "http":
                with self._in_flight.request() as request:
                    await self._http(scope, receive, _marking(request, noting), headers)
            else:
                with self._websockets.opened(caller):
                    await self._app(scope, receive, noting)
        except IsoboxError as error:
            if begun:  # the connection is closed in the middle of the answer, which tells the client
                _log.warning("an answer broke off", path=scope["path"], request_id=request_id, error=error.detail)
                return
            await _refuse(scope, noting, from_error(error), request_id)
        except ClientDisconnect:
            return  # in the middle of its own request: nobody is there to be told
        except Exception as error:
            _log.error("request failed", path=scope["path"], request_id=request_id, exc_info=error)
            if begun:
                raise
            problem = Problem(
                500, "internal", "an error of the server's own", hint=f"report it with {request_id}", retryable=True
            )
            await _refuse(scope, noting, problem, request_id)

    async def _http(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:
        raw = _RAW.match(scope["path"]) is not None
        body = b""
        if not raw and scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
            body = await read_json(receive, headers.get(b"content-length"))
            receive = replay(body, receive)
        key = headers.get(b"idempotency-key", b"").decode("latin-1")
        if scope["method"] != "POST" or not key or raw:
            await self._app(scope, receive, send)
            return
        if len(key) > 255:
            raise Problem(
                400, "idempotency_key_invalid", "Idempotency-Key is longer than 255 characters", hint="use a UUID"
            )
        await self._once(scope, receive, send, key, body)

    async def _once(self, scope: Scope, receive: Receive, send: Send, key: str, body: bytes) -> None:
        """Answer a keyed POST, or repeat the answer it once had; a twin that comes meanwhile waits."""
        tenant = scope["state"]["caller"].tenant or ""  # no tenant has that name: the operator's answers lie there
        query = scope.get("query_string", b"")
        request = hashlib.sha256(b"\0".join([scope["path"].encode(), query, body])).hexdigest()
        async with self._turns.setdefault((tenant, key), asyncio.Lock()):
            if (known := await self._store.answer(tenant, key)) is not None:
                await _repeat(send, known, request)
                return
            kept = _Kept(send)
            await self._app(scope, receive, kept.send)
            if kept.status < 500 and kept.status != 429 and len(kept.body) <= _KEPT_MAX:
                await self._store.keep_answer(tenant, key, request, kept.status, kept.type, bytes(kept.body))


class Websockets:
    """Counts the websockets that are open, of each caller and of all together; 429 and 503 beyond what is allowed."""

    def __init__(self, *, most: int, per_caller: int) -> None:
        self._most = most
        self._per_caller = per_caller
        self._open: Counter[Caller] = Counter()

    @contextlib.contextmanager
    def opened(self, caller: Caller) -> Iterator[None]:
        """One is open until the end of the block."""
        if self._open[caller] >= self._per_caller:
            raise Problem(
                429,
                "too_many_websockets",
                f"{self._per_caller} websockets are open with this key already",
                hint="close some; the operator sets the number with ISOBOX_WEBSOCKETS_PER_KEY",
                retryable=True,
            )
        if self._open.total() >= self._most:
            raise Problem(
                503,
                "server_full",
                f"the server's {self._most} websockets are all in use",
                hint="try again later; the operator sets the number with ISOBOX_WEBSOCKETS",
                retryable=True,
            )
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


class _Kept:
    """Passes an answer on and keeps a copy."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500
        self.type = "application/json"
        self.body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.type = dict(message["headers"]).get(b"content-type", b"").decode()
        elif message["type"] == "http.response.body" and len(self.body) <= _KEPT_MAX:
            self.body += message.get("body", b"")
        # Work that was done is work that was done, even if nobody listens to its answer any more.
        with contextlib.suppress(OSError):
            await self._send(message)


def _marking(request: Request, send: Send) -> Send:
    """Pass messages on, and note how far the answer is."""

    async def marking(message: Message) -> None:
        if message["type"] == "http.response.start":
            request.begun = True
            type_ = dict(message.get("headers", [])).get(b"content-type", b"")
            request.endless = type_.startswith(b"text/event-stream")
        await send(message)

    return marking


async def _repeat(send: Send, known: tuple[str, int, str, bytes], request: str) -> None:
    fingerprint, status, type_, body = known
    if fingerprint != request:
        raise Problem(
            422,
            "idempotency_key_reused",
            "this Idempotency-Key was used for another request",
            hint="use a fresh one for each",
        )
    headers = [(b"content-type", type_.encode()), (b"idempotency-replayed", b"true")]
    await _answer(send, status, headers, body)


async def _refuse(scope: Scope, send: Send, problem: Problem, request_id: str) -> None:
    body = json.dumps(problem.document(request_id)).encode()
    headers: list[Any] = [(b"content-type", b"application/problem+json")]
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if scope["type"] == "http":
        await _answer(send, problem.status, headers, body)
    elif "websocket.http.response" in scope.get("extensions", {}):
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "websocket.http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": problem.detail[:120]})


async def _answer(send: Send, status: int, headers: list[Any], body: bytes) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
