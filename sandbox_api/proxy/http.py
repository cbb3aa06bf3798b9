"""One HTTP request passed on, both bodies streamed as they come."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import h11
from starlette.requests import ClientDisconnect

from common.turns import turn_budget
from sandbox_api.host.interface import Ports
from sandbox_api.problems import Problem
from sandbox_api.proxy.headers import Headers

_PIECE = 64 << 10
_EVENT_COST = 16 << 10


@dataclass(slots=True)
class Answer:
    """The program's answer; `body` must be read to its end or closed."""

    status: int
    headers: Headers
    body: AsyncIterator[bytes]


def _failed(detail: str) -> Problem:
    return Problem(
        502, "bad_answer", detail, hint="see what the program inside printed; it must speak HTTP/1.1", retryable=True
    )


class Exchange:
    """A request on its way over a connection (`Ports.dial`) and the answer on its way back."""

    def __init__(self, ports: Ports, connection: str) -> None:
        self._ports = ports
        self._connection = connection
        self._protocol = h11.Connection(our_role=h11.CLIENT, max_incomplete_event_size=256 << 10)
        self._taken = True

    async def send(self, method: str, target: bytes, headers: Headers, body: AsyncIterator[bytes]) -> None:
        """Send the request; an end of the program's attention is no error, its answer tells."""
        if not any(name in (b"content-length", b"transfer-encoding") for name, _ in headers):
            headers = [*headers, (b"transfer-encoding", b"chunked")] if method not in _BODILESS else headers
        try:
            await self._send(h11.Request(method=method, target=target, headers=[*headers, (b"connection", b"close")]))
            async for piece in body:
                if piece and not await self._send(h11.Data(data=piece)):
                    return
            await self._send(h11.EndOfMessage())
        except ClientDisconnect:
            return  # nobody is left to be told
        except h11.LocalProtocolError as error:
            raise Problem(400, "request_invalid", f"the request cannot be passed on: {error}") from error

    async def _send(self, event: h11.Event) -> bool:
        data = self._protocol.send(event)
        if data and self._taken:
            self._taken = await self._ports.transmit(self._connection, data)
        return self._taken

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        try:
            while (event := self._protocol.next_event()) is h11.NEED_DATA:
                self._protocol.receive_data(await self._ports.receive(self._connection))
        except h11.RemoteProtocolError as error:
            raise _failed(f"the program's answer is no HTTP: {error}") from error
        return event  # type: ignore[return-value]  # NEED_DATA is handled above

    async def answer(self) -> Answer:
        """The head of the answer; 502 where none comes."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return Answer(event.status_code, list(event.headers.raw_items()), self._body())
            if not isinstance(event, h11.InformationalResponse):
                raise _failed("the program closed the connection without an answer")

    async def _body(self) -> AsyncIterator[bytes]:
        turn = turn_budget()
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                await turn.take(_EVENT_COST + len(event.data))  # a byte may be a chunk of its own
                yield bytes(event.data)
            else:
                return


_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "DELETE"})
