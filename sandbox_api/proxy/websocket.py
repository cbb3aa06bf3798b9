"""A websocket passed on: the client's side is the server's own, the program's side is spoken here (RFC 6455)."""

import asyncio
from collections import deque
from collections.abc import Sequence

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Event
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from common.turns import turn_budget
from sandbox_api.host.interface import Ports
from sandbox_api.listener.pieces import PieceSize
from sandbox_api.problems import Problem
from sandbox_api.proxy.headers import Headers

MESSAGE_MAX = 16 << 20
FRAGMENTS_MAX = 1024
_EVENT_COST = 8 << 10


class Upstream:
    """The program's side of a websocket, over a connection (`Ports.dial`)."""

    def __init__(self, ports: Ports, connection: str, *, target: str, port: int, subprotocols: Sequence[str]) -> None:
        self._ports = ports
        self._connection = connection
        self._protocol = ClientProtocol(
            parse_uri(f"ws://localhost:{port}{target}"),
            subprotocols=[Subprotocol(each) for each in subprotocols] or None,
            max_size=MESSAGE_MAX,
        )
        self._events: deque[Event] = deque()
        self._unparsed = memoryview(b"")
        self._piece = PieceSize()
        self._parts = bytearray()
        self._fragments = 0
        self._text = False
        self._failed = False

    async def open(self, headers: Headers) -> str | None:
        """Shake hands; the subprotocol that the program chose. 502 where it does not want a websocket."""
        request = self._protocol.connect()
        for name, value in headers:
            if name != b"host":
                request.headers[name.decode("latin-1")] = value.decode("latin-1")
        self._protocol.send_request(request)
        await self._flush()
        while True:
            self._events += self._protocol.events_received()
            while self._events:  # a first message may have come with the answer: it stays
                if isinstance(event := self._events.popleft(), Response):
                    if self._protocol.handshake_exc is None:
                        return self._protocol.subprotocol
                    raise self._refused(event)
            if self._protocol.handshake_exc is not None or not await self._hear():
                raise self._refused(None)

    def _refused(self, response: Response | None) -> Problem:
        why = self._protocol.handshake_exc
        said = f"it answered {response.status_code}" if response is not None else "it closed the connection"
        detail = str(why) if isinstance(why, InvalidHandshake) and response is None else said
        return Problem(
            502, "websocket_refused", f"the program does not take this websocket: {detail}", hint="see its log"
        )

    async def _hear(self) -> bool:
        """Parse some of what came: tiny frames in small pieces, with others' turn between. False at the end."""
        if not self._unparsed:
            self._unparsed = memoryview(await self._ports.receive(self._connection))
            if not self._unparsed:
                self._protocol.receive_eof()
                await self._flush()
                return False
        else:
            await asyncio.sleep(0)
        piece, self._unparsed = self._unparsed[: self._piece.bytes], self._unparsed[self._piece.bytes :]
        self._protocol.receive_data(bytes(piece))
        parsed = self._protocol.events_received()
        self._piece.parsed(len(parsed))
        self._events += parsed
        await self._flush()
        return True

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                await self._ports.transmit(self._connection, data)
            else:
                self._ports.end_transmission(self._connection)

    async def send(self, message: str | bytes) -> None:
        """Pass a client's message on."""
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        await self._flush()

    async def close(self, code: int) -> None:
        """The client has gone, with this code."""
        if self._protocol.state.name == "OPEN":
            self._protocol.send_close(code if code in range(1000, 5000) and code not in (1005, 1006, 1015) else 1001)
            await self._flush()

    async def receive(self) -> str | bytes | None:
        """The program's next message; None when it has closed (`close_code` tells how)."""
        turn = turn_budget()
        while True:
            self._events += self._protocol.events_received()
            while self._events and not self._failed:
                event = self._events.popleft()
                await turn.take(_EVENT_COST)
                if isinstance(event, Frame) and (message := self._join(event)) is not None:
                    return message
            if self._failed or self._protocol.close_rcvd is not None or not await self._hear():
                await self._flush()
                return None

    def _join(self, frame: Frame) -> str | bytes | None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._parts, self._fragments, self._text = bytearray(), 0, frame.opcode is Opcode.TEXT
        elif frame.opcode is not Opcode.CONT:
            return None
        if self._fragments >= FRAGMENTS_MAX:
            self._protocol.fail(CloseCode.POLICY_VIOLATION, f"a message has at most {FRAGMENTS_MAX} fragments")
            self._failed = True
            self._parts.clear()
            return None
        self._fragments += 1
        self._parts += frame.data
        if not frame.fin:
            return None
        whole, self._parts = bytes(self._parts), bytearray()
        return whole.decode(errors="replace") if self._text else whole

    @property
    def close_code(self) -> int:
        """How the program closed; 1011 if it just went."""
        received = self._protocol.close_rcvd
        return received.code if received is not None and received.code not in (1005, 1006, 1015) else 1011
