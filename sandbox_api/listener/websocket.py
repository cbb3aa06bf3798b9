"""uvicorn's websocket protocol with bounds.

what came      is parsed in pieces, between which others have their turn; reading waits until all of it is parsed
messages       ws_max_size bytes, FRAGMENTS_MAX fragments
pings, pongs   CONTROLS_AHEAD at once, CONTROLS_PER_S in the long run; while a client reads nothing, one pong waits
a close        a client that reads nothing is cut off after LINGER_S
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from sandbox_api.listener.pieces import PieceSize
from sandbox_api.listener.unread import UnreadWatch

FRAGMENTS_MAX: Final = 1024
CONTROLS_AHEAD: Final = 64.0
CONTROLS_PER_S: Final = 8.0
LINGER_S: Final = 10.0
_SMALL: Final = 1 << 10
_MESSAGES_A_TURN: Final = 32
_NONE: Final = memoryview(b"")


class WebsocketProtocol(WebSocketsSansIOProtocol):
    """One websocket. See the module."""

    def __init__(self, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.when_lost: Callable[[], None] = _nothing
        self._unparsed = _NONE
        self._piece = PieceSize()
        self._scheduled: asyncio.Handle | None = None
        self._controls, self._controls_at = CONTROLS_AHEAD, self.loop.time()
        self._pong = b""
        self._frames_parsed = 0
        self._received = 0
        self._unread: UnreadWatch | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._unread = UnreadWatch(self.loop, self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.when_lost()
        self._unparsed = _NONE
        if self._scheduled is not None:
            self._scheduled.cancel()
        if self._unread is not None:
            self._unread.stop()
        super().connection_lost(exc)

    # ---- what comes

    def data_received(self, data: bytes) -> None:
        """Parse it at once if it is little, else in pieces."""
        if not self.handshake_initiated:
            self._shake_hands(data)
        elif not self._unparsed and len(data) <= _SMALL:
            super().data_received(data)
        else:
            self._unparsed = memoryview(bytes(self._unparsed) + data) if self._unparsed else memoryview(data)
            self.transport.pause_reading()
            if self._scheduled is None and not self.read_paused:
                self._turn()

    def _shake_hands(self, head: bytes) -> None:
        self.conn.receive_data(head)
        if self.conn.parser_exc is not None or self.conn.handshake_exc is not None:  # uvicorn does not look for these
            self.handshake_initiated = self.handshake_complete = self.close_sent = True
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()
            return
        self.handle_events()

    def _turn(self) -> None:
        """Parse a piece. What follows waits for the others' turn, and for the program to take what it got."""
        self._scheduled = None
        if self.disconnected or self.transport.is_closing():
            self._unparsed = _NONE
            return
        piece, self._unparsed = self._unparsed[: self._piece.bytes], self._unparsed[self._piece.bytes :]
        self._frames_parsed = 0
        super().data_received(bytes(piece))
        self._piece.parsed(self._frames_parsed)
        self._go_on()

    def _go_on(self) -> None:
        if self.read_paused or self.transport.is_closing():
            return  # `receive` goes on, once the program has taken all
        if not self._unparsed:
            self.transport.resume_reading()
        elif self._scheduled is None:
            self._scheduled = self.loop.call_soon(self._turn)

    def handle_parser_exception(self) -> None:
        """The client broke the protocol."""
        if self.conn.close_sent is not None:
            super().handle_parser_exception()
        else:  # before the websocket was accepted, or after it was closed: nobody is owed a close frame
            self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.PROTOCOL_ERROR, "reason": ""})
            self.close_sent = True
            self.transport.close()
        self._linger()

    async def receive(self) -> ASGIReceiveEvent:
        """The next event for the program."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._go_on()
        self._received += 1
        if self._received % _MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)  # a full queue gives all it has without a pause
        return message

    def handle_text(self, event: Frame) -> None:
        """A text message, or its first fragment."""
        self._frames_parsed += 1
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """A binary message, or its first fragment."""
        self._frames_parsed += 1
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """A further fragment."""
        self._frames_parsed += 1
        if len(self.frames) >= FRAGMENTS_MAX:
            self._fail(CloseCode.POLICY_VIOLATION, f"a message has at most {FRAGMENTS_MAX} fragments")
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answer it: with the last pong alone, and later, if the client reads nothing."""
        if not self._control():
            return
        pongs = self.conn.data_to_send()
        if not pongs:
            return  # they went out for the first ping of the same piece
        if self.writable.is_set():
            self.transport.write(b"".join(pongs))
        else:
            self._pong = pongs[-1]

    def handle_pong(self, event: Frame) -> None:
        """The client is there."""
        if self._control():
            super().handle_pong(event)

    def _control(self) -> bool:
        """Whether the client may send another ping or pong."""
        self._frames_parsed += 1
        now = self.loop.time()
        self._controls = min(CONTROLS_AHEAD, self._controls + (now - self._controls_at) * CONTROLS_PER_S)
        self._controls_at = now
        if self._controls < 1:
            self._fail(CloseCode.POLICY_VIOLATION, "too many pings or pongs")
            return False
        self._controls -= 1
        return True

    # ---- what goes

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._pong and not self.transport.is_closing():
            self.transport.write(self._pong)
            self._pong = b""

    def _fail(self, code: int, reason: str) -> None:
        """Close it, and say why."""
        if self.close_sent:
            return
        self.stop_keepalive()
        self.conn.fail(code, reason)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._unparsed = _NONE
        self.transport.close()
        self._linger()

    def keepalive_timeout(self) -> None:
        """The client answered no ping."""
        super().keepalive_timeout()
        self._linger()

    def on_task_complete(self, task: "asyncio.Task[None]") -> None:
        """The program is done with it."""
        super().on_task_complete(task)
        self._linger()

    def _linger(self) -> None:
        """What is not read by and by is lost."""
        if not self.disconnected and self._unread is not None:
            self._unread.start(LINGER_S)


def _nothing() -> None:
    return
