"""uvicorn's HTTP protocol with bounds, because httptools has none: it keeps a header for as long as it grows.

    a head      TARGET_MAX bytes of request line, HEADERS_MAX headers, HEAD_MAX bytes, in head_timeout_s
    a body      HEAD_MAX bytes in a row that bring nothing of it (chunk extensions, trailers, whose fields are dropped)
    a stranger  UNWANTED_MAX bytes of a body that nobody asked for, once the answer was given

Each read of the socket is counted before and while it is parsed. What is refused is told why in a problem document,
where HTTP allows one, and the connection is closed.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from common.ids import new_id
from sandbox_api.listener.admission import Admission, Full, address_of
from sandbox_api.listener.unread import UnreadWatch
from sandbox_api.listener.websocket import WebsocketProtocol
from sandbox_api.problems import Problem

HEAD_MAX: Final = 64 << 10
TARGET_MAX: Final = 16 << 10
HEADERS_MAX: Final = 100
WEBSOCKET_LINE_MAX: Final = 8 << 10
"""A line of a websocket's handshake, which is parsed once more, by websockets (its MAX_LINE_LENGTH)."""

UNWANTED_MAX: Final = 64 << 10
PIPELINE_MAX: Final = 16
LINGER_S: Final = 2.0
"""So long a client that was refused may take to read why."""

STALL_S: Final = 120.0
"""So long a client may read nothing of its answer."""

_FULL: Final = {
    Full.ADDRESS: (
        429,
        "too_many_connections",
        "too many connections are open from this address",
        "close some, or use them for several requests each; the operator sets the number with "
        "ISOBOX_CONNECTIONS_PER_ADDRESS",
    ),
    Full.SERVER: (
        503,
        "server_full",
        "all of the server's connections are in use",
        "try again later; the operator sets the number with ISOBOX_CONNECTIONS",
    ),
}


class _Refused(Exception):
    """Ends the parsing of a request; the reason lies in the protocol."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. See the module."""

    def __init__(self, admission: "Admission[HttpProtocol]", head_timeout_s: float, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._admission = admission
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._unread: UnreadWatch | None = None
        self._problem: Problem | None = None
        self._refused = False
        self._in_body = False
        self._advanced = False
        self._barren = 0
        """Bytes parsed since the parser came to the end of a head or brought some of a body."""
        self._unwanted: int | None = None
        """Bytes that may still come of a body that nobody asked for."""
        self._header_bytes = 0
        self._trailers = 0

    # ---- connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Let it in, or say that there is no room."""
        super().connection_made(transport)
        self._unread = UnreadWatch(self.loop, transport)
        found = self._admission.admit(self, address_of(self.client[0] if self.client else ""))
        if isinstance(found, Full):
            status, code, detail, hint = _FULL[found]
            self._refuse(Problem(status, code, detail, hint=hint, retryable=True))
            return
        if found is not None:
            found.transport.abort()
        self._begin_head_time()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._admission.leave(self)
        self._end_head_time()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        if self._unread is not None:
            self._unread.stop()
        super().connection_lost(exc)

    def _begin_head_time(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_timeout_s, self._head_too_late)

    def _end_head_time(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_late(self) -> None:
        self._head_timer = None
        if not self._barren:
            self._close()  # nothing was begun
            return
        hint = "send it at once; the operator sets the time with ISOBOX_HEAD_TIMEOUT_S"
        detail = f"the request's head was not whole after {self._head_timeout_s:g} s"
        self._refuse(Problem(408, "head_timeout", detail, hint=hint, retryable=True))

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while after an answer."""
        if not self.transport.is_closing():
            self._close()

    def _close(self) -> None:
        """Close it, even if nobody reads what was sent last."""
        self.transport.close()
        self._watch_reading()

    def _watch_reading(self) -> None:
        if self._unread is not None:
            self._unread.start(STALL_S)

    # ---- what comes

    def data_received(self, data: bytes) -> None:
        """Parse it, piece by piece as long as it is a head."""
        if self._refused or self._unwanted is not None:
            self._unwanted = (self._unwanted or 0) - len(data)
            if self._unwanted < 0:
                self._close()
                return
            if self._refused:
                return
        else:
            self._unset_keepalive_if_required()
        while data:
            room = len(data) if self._in_body else HEAD_MAX - self._barren
            piece, data = data[:room], data[room:]
            if not self._parse(piece):
                return
            if self._advanced:
                self._advanced, self._barren = False, 0
                continue
            self._barren += len(piece)
            if self._barren >= HEAD_MAX:
                self._refuse(_too_large("trailers or chunk extensions") if self._in_body else _too_large("head"))
                return
        if not self._in_body and (self.cycle is None or self.cycle.response_complete):
            self._begin_head_time()

    def _parse(self, piece: bytes) -> bool:
        """Whether parsing goes on."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            return False  # another upgrade than a websocket is not taken, and what came behind it is no request
        except httptools.HttpParserError:
            hint = "it must be HTTP/1.1, with its lines and lengths as RFC 9112 has them"
            self._refuse(self._problem or Problem(400, "request_malformed", "the request is not HTTP", hint=hint))
            return False
        return not self._refused

    def _stop(self, problem: Problem) -> _Refused:
        """Raised in a callback of the parser it ends the parsing, and the request with this problem."""
        self._problem = problem
        return _Refused()

    # ---- the parser's callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        self._header_bytes = self._trailers = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Some of the request's target."""
        if len(self.url) + len(url) > TARGET_MAX:
            hint = f"a path with its query has at most {TARGET_MAX >> 10} KiB"
            raise self._stop(Problem(414, "target_too_long", "the request's target is too long", hint=hint))
        if not url.isascii():
            hint = "write other characters as %XX"
            raise self._stop(Problem(400, "request_malformed", "the request's target is not ASCII", hint=hint))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head or, behind a chunked body, of its trailer."""
        if self._in_body:  # dropped: who asked was decided by the head, and nobody here reads trailers
            self._trailers += 1
            if self._trailers > HEADERS_MAX:
                raise self._stop(_too_large("trailer"))
            return
        self._header_bytes += len(name) + len(value)
        if len(self.headers) >= HEADERS_MAX or self._header_bytes > HEAD_MAX:
            raise self._stop(_too_large("head"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._advanced = self._in_body = True
        self._end_head_time()
        self._admission.busy(self)
        if len(self.pipeline) >= PIPELINE_MAX:
            hint = "wait for answers before sending more, or open another connection"
            raise self._stop(Problem(429, "pipeline_too_long", "too many requests were sent ahead", hint=hint))
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._advanced, self._in_body, self._unwanted = True, False, None
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Go on as a websocket, which counts among the connections until it is closed."""
        lines = [len(name) + len(value) + 4 for name, value in self.headers]
        if max(lines, default=0) > WEBSOCKET_LINE_MAX or len(self.url) > WEBSOCKET_LINE_MAX - 20:
            self._refuse(_too_large("line of the websocket's handshake"))
            return
        super().handle_websocket_upgrade()
        if isinstance(websocket := self.transport.get_protocol(), WebsocketProtocol):
            websocket.when_lost = self._leave

    def _leave(self) -> None:
        self._admission.leave(self)

    # ---- what goes

    def on_response_complete(self) -> None:
        """An answer was given."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.pipeline:
            self._admission.idle(self)
            if self.cycle.more_body and "caller" not in self.cycle.scope["state"]:
                self._unwanted = UNWANTED_MAX

    def pause_writing(self) -> None:
        """The client is slow to read."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.stop()

    def _refuse(self, problem: Problem) -> None:
        """Say why, and listen no more."""
        self._refused, self._unwanted = True, UNWANTED_MAX
        self._end_head_time()
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._close()  # in the middle of another answer nothing can be said
            return
        request_id = new_id("req")
        body = json.dumps(problem.document(request_id)).encode()
        head = [
            STATUS_LINE[problem.status],
            b"content-type: application/problem+json\r\n",
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n".encode(),
        ]
        self.transport.write(b"".join([*head, body]))
        self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_S, self.transport.abort)


def protocol(*, most: int, per_address: int, head_timeout_s: float) -> Callable[..., HttpProtocol]:
    """What uvicorn makes a connection's protocol with; all that it makes are counted together."""
    admission: Admission[HttpProtocol] = Admission(most=most, per_address=per_address)

    def made(**uvicorns: Any) -> HttpProtocol:
        return HttpProtocol(admission, head_timeout_s, **uvicorns)

    return made


def _too_large(what: str) -> Problem:
    return Problem(
        431,
        "head_too_large",
        f"the request's {what} is too large",
        hint=f"a head has at most {HEADERS_MAX} fields and {HEAD_MAX >> 10} KiB; send data in the body",
    )
