"""Floods of a client that has a key: how much is parsed in a turn, and what is kept. The wire is faked, the loop is real."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from sandbox_api.listener.websocket import CONTROLS_AHEAD, FRAGMENTS_MAX, WebsocketProtocol

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closed = False
        self.reads = True

    def write(self, data: Any) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def get_write_buffer_size(self) -> int:
        return 0


class Client:
    """A client that has shaken hands, and the program that it speaks to."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.taken: list[dict[str, Any]] = []
        self.goes_on = asyncio.Event()
        config = Config(
            self._app, interface="asgi3", log_config=None, ws_max_size=1 << 20, ws_per_message_deflate=False
        )
        config.load()
        self.server = WebsocketProtocol(config=config, server_state=ServerState(), app_state={})
        self.conn = ClientProtocol(parse_uri("ws://localhost/x"))

    async def _app(self, scope: object, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await self.goes_on.wait()
            message = await receive()
            self.taken.append(message)
            if message["type"] == "websocket.disconnect":
                return

    async def connect(self) -> None:
        self.server.connection_made(self.wire)
        self.conn.send_request(self.conn.connect())
        self.server.data_received(b"".join(self.conn.data_to_send()))
        await self.turns(5)
        self.hear()
        assert self.conn.handshake_exc is None

    def hear(self) -> list[Any]:
        self.conn.receive_data(bytes(self.wire.sent))
        self.wire.sent.clear()
        return self.conn.events_received()

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    def frames(self, *frames: tuple[Opcode, bytes, bool]) -> bytes:
        return b"".join(Frame(opcode, data, fin).serialize(mask=True) for opcode, data, fin in frames)

    async def end(self) -> None:
        self.goes_on.set()
        self.server.connection_lost(None)
        await self.turns(2000)


def run(test: Callable[[Client], Awaitable[None]]) -> None:
    async def whole() -> None:
        client = Client()
        await client.connect()
        try:
            await test(client)
        finally:
            await client.end()

    asyncio.run(whole())


def closed_with(client: Client) -> tuple[int, str]:
    client.hear()
    assert client.conn.close_rcvd is not None
    assert client.wire.closed
    return client.conn.close_rcvd.code, client.conn.close_rcvd.reason


def test_a_flood_of_tiny_messages_is_parsed_as_the_program_takes_them() -> None:
    async def test(client: Client) -> None:
        many = client.frames((Opcode.TEXT, b"x", True)) * 30_000
        client.server.data_received(many)
        await client.turns(50)
        assert client.server.queue.qsize() < 400
        assert not client.wire.reads, "nothing more is read meanwhile"
        client.goes_on.set()
        while not client.wire.reads:
            before = len(client.taken)
            await client.turns(1)
            assert len(client.taken) - before < 400
        assert len(client.taken) == 30_000

    run(test)


@pytest.mark.parametrize("size", [1, 1000, 1024, 1025, 70_000, 900_000])
def test_messages_of_any_size_come_whole_and_in_order(size: int) -> None:
    async def test(client: Client) -> None:
        client.goes_on.set()
        sent = [os.urandom(size) for _ in range(5)]
        wire = b"".join(client.frames((Opcode.BINARY, data[: size // 2], False), (Opcode.PING, b"p", True), (Opcode.CONT, data[size // 2 :], True)) for data in sent)  # fmt: skip
        while wire:
            assert client.wire.reads
            piece, wire = wire[:256_000], wire[256_000:]
            client.server.data_received(piece)
            while not client.wire.reads:
                await client.turns(1)
        await client.turns(5)
        assert [message["bytes"] for message in client.taken] == sent
        assert [event.opcode for event in client.hear()] == [Opcode.PONG] * 5

    run(test)


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
def test_a_flood_of_pings_or_pongs_is_ended(opcode: Opcode) -> None:
    async def test(client: Client) -> None:
        client.server.data_received(client.frames((opcode, b"", True)) * 40_000)
        assert len(client.wire.sent) < 4096
        await client.turns(100)
        assert closed_with(client) == (1008, "too many pings or pongs")

    run(test)


def test_a_client_that_reads_nothing_gets_one_pong() -> None:
    async def test(client: Client) -> None:
        client.server.pause_writing()
        for n in range(int(CONTROLS_AHEAD)):
            client.server.data_received(client.frames((Opcode.PING, b"%d" % n, True)))
        assert not client.wire.sent
        client.server.resume_writing()
        assert [event.data for event in client.hear()] == [b"%d" % (CONTROLS_AHEAD - 1)]

    run(test)


def test_empty_fragments_are_bounded() -> None:
    async def test(client: Client) -> None:
        client.server.data_received(client.frames((Opcode.TEXT, b"", False)))
        for _ in range(FRAGMENTS_MAX * 2):
            if not client.wire.closed:
                client.server.data_received(client.frames((Opcode.CONT, b"", False)))
        assert len(client.server.frames) <= FRAGMENTS_MAX
        assert closed_with(client)[0] == 1008

    run(test)


def test_what_is_no_handshake_is_told_so() -> None:
    async def test() -> None:
        client = Client()
        client.server.connection_made(client.wire)
        client.server.data_received(b"GET / HTTP/1.1\r\nno header\r\n\r\n")
        assert client.wire.sent.startswith(b"HTTP/1.1 400 ")
        assert client.wire.closed
        client.server.connection_lost(None)

    asyncio.run(test())
