"""Heads and bodies of strangers: what is refused, with what, and how much of it is kept. The wire is faked."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState

from sandbox_api.auth import Caller
from sandbox_api.listener.http import (
    HEAD_MAX,
    HEADERS_MAX,
    PIPELINE_MAX,
    TARGET_MAX,
    UNWANTED_MAX,
    HttpProtocol,
    protocol,
)
from sandbox_api.listener.websocket import WebsocketProtocol


class Wire(asyncio.Transport):
    """A connection's transport."""

    def __init__(self, host: str = "192.0.2.1") -> None:
        super().__init__({"peername": (host, 1), "sockname": ("192.0.2.2", 2)})
        self.sent = bytearray()
        self.closed = self.aborted = self.ended = False
        self.unsent = 0
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        self.sent += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol


class Timer:
    def __init__(self, loop: "Loop", delay: float, run: Callable[[], None]) -> None:
        self.loop, self.delay, self.run = loop, delay, run

    def cancel(self) -> None:
        if self in self.loop.timers:
            self.loop.timers.remove(self)


class Loop:
    """A loop whose time passes when the test says so."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []
        self.tasks: list[Coroutine[Any, Any, None]] = []

    def time(self) -> float:
        return 0.0

    def call_later(self, delay: float, run: Callable[..., None], *args: Any) -> Timer:
        self.timers.append(timer := Timer(self, delay, lambda: run(*args)))
        return timer

    def create_task(self, work: Coroutine[Any, Any, None]) -> Any:
        self.tasks.append(work)
        work.close()
        return _Task()

    def pass_(self, delay: float) -> None:
        for timer in [each for each in self.timers if each.delay == delay]:
            self.timers.remove(timer)
            timer.run()


class _Task:
    def add_done_callback(self, _: object) -> None: ...


class Door:
    def __init__(self, most: int = 8, per_address: int = 4) -> None:
        self.config = Config(_app, interface="asgi3", log_config=None, ws=WebsocketProtocol)
        self.config.load()
        self.make = protocol(most=most, per_address=per_address, head_timeout_s=7.0)
        self.loop = Loop()

    def connect(self, host: str = "192.0.2.1") -> tuple[HttpProtocol, Wire]:
        made = self.make(config=self.config, server_state=ServerState(), app_state={}, _loop=self.loop)
        wire = Wire(host)
        made.connection_made(wire)
        return made, wire


async def _app(scope: object, receive: object, send: object) -> None: ...


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    found = Door()
    monkeypatch.setattr(asyncio, "get_event_loop", lambda: found.loop)  # where a websocket finds it
    return found


def answer(wire: Wire) -> tuple[int, dict[str, Any]]:
    head, _, body = bytes(wire.sent).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    document = json.loads(body)
    status = int(head.split()[1])
    assert document["status"] == status
    assert document["hint"]
    return status, document


def in_pieces(made: HttpProtocol, data: bytes, size: int) -> int:
    """How much was sent before it was refused."""
    for begin in range(0, len(data), size):
        if made.transport.is_closing() or made.transport.ended:  # type: ignore[attr-defined]
            return begin
        made.data_received(data[begin : begin + size])
    return len(data)


GET = b"GET /v1/sandboxes HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize("size", [1000, 16384, 65536, 256000, 1 << 20])
@pytest.mark.parametrize("begin", [b"", b"GET /", GET, GET + b"a: ", GET + b"a"])
def test_a_head_that_grows_is_refused_at_its_bound(door: Door, begin: bytes, size: int) -> None:
    made, wire = door.connect()
    read = in_pieces(made, begin + b"\r\n" * 500 + b"x" * (1 << 20) if not begin else begin + b"x" * (1 << 20), size)
    status, document = answer(wire)
    assert status in ((400, 414, 431) if begin in (b"", b"GET /") else (431,)), document
    assert read <= HEAD_MAX + size
    assert sum(len(value) for pair in made.headers or [] for value in pair) <= HEAD_MAX
    assert not door.loop.tasks


def test_the_bounds_themselves_are_let_through(door: Door) -> None:
    made, wire = door.connect()
    head = b"GET /" + b"x" * (TARGET_MAX - 1) + b" HTTP/1.1\r\nhost: x\r\na: "
    made.data_received(head + b"y" * (HEAD_MAX - len(head) - 4) + b"\r\n\r\n")
    assert len(door.loop.tasks) == 1, wire.sent
    made, _ = door.connect()
    made.data_received(GET + b"".join(b"a%d: b\r\n" % n for n in range(HEADERS_MAX - 1)) + b"\r\n")
    assert len(door.loop.tasks) == 2


def test_too_many_headers_too_long_a_target(door: Door) -> None:
    made, wire = door.connect()
    made.data_received(GET + b"".join(b"a%d: b\r\n" % n for n in range(HEADERS_MAX)) + b"\r\n")
    assert answer(wire)[1]["code"] == "head_too_large"
    made, wire = door.connect()
    made.data_received(b"GET /" + b"x" * TARGET_MAX + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer(wire)[0] == 414
    assert not door.loop.tasks


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", "GET /ü HTTP/1.1\r\n\r\n".encode(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
     b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n"],
)  # fmt: skip
def test_what_is_not_http_is_told_so(door: Door, data: bytes) -> None:
    made, wire = door.connect()
    made.data_received(data)
    assert answer(wire) == (400, answer(wire)[1])
    assert not door.loop.tasks


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_no_bytes_raise(pieces: list[bytes]) -> None:
    door = Door()
    made, wire = door.connect()
    for piece in pieces:
        if not wire.closed:
            made.data_received(piece)


# ---- time


def test_half_a_head_has_its_time(door: Door) -> None:
    made, wire = door.connect()
    made.data_received(GET)
    made.data_received(b"a: b\r\n")
    door.loop.pass_(7.0)
    assert answer(wire)[1]["code"] == "head_timeout"
    assert wire.ended
    door.loop.pass_(2.0)
    assert wire.aborted


def test_nobody_waits_with_nothing(door: Door) -> None:
    _, wire = door.connect()
    door.loop.pass_(7.0)
    assert wire.closed
    assert not wire.sent


@pytest.mark.parametrize("dribble", [b"\r\n", b"GET /", GET])
def test_a_second_head_has_its_time_too(door: Door, dribble: bytes) -> None:
    made, wire = door.connect()
    made.data_received(GET + b"\r\n")
    assert not door.loop.timers
    _complete(made)
    made.data_received(dribble)
    made.data_received(dribble[:0])
    assert [timer.delay for timer in door.loop.timers] == [7.0]
    door.loop.pass_(7.0)
    assert wire.ended or wire.closed


def test_who_reads_nothing_is_cut_off(door: Door) -> None:
    made, wire = door.connect()
    made.data_received(GET + b"\r\n")
    wire.unsent = 1000
    made.pause_writing()
    wire.unsent = 900
    door.loop.pass_(120.0)
    assert not wire.aborted, "some of it was read"
    door.loop.pass_(120.0)
    assert wire.aborted


# ---- bodies


def _complete(made: HttpProtocol) -> None:
    made.cycle.response_started = made.cycle.response_complete = True
    made.on_response_complete()


def test_the_body_of_a_stranger_is_not_read(door: Door) -> None:
    made, wire = door.connect()
    made.data_received(b"POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
    _complete(made)
    in_pieces(made, b"x" * UNWANTED_MAX, 8192)
    assert not wire.closed
    made.data_received(b"x")
    assert wire.closed
    assert not made.cycle.body


def test_a_small_body_of_a_stranger_keeps_the_connection(door: Door) -> None:
    made, wire = door.connect()
    made.data_received(b"POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
    _complete(made)
    made.data_received(b"x" * 10)
    for _ in range(2):
        made.data_received(GET + b"\r\n")
        _complete(made)
    assert not wire.closed


def test_the_body_of_a_tenant_is_read_to_its_end(door: Door) -> None:
    made, wire = door.connect()
    made.data_received(b"PUT /v1/uploads/x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
    made.cycle.scope["state"]["caller"] = Caller("acme")
    _complete(made)
    in_pieces(made, b"x" * 1000000, 65536)
    assert not wire.closed


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("begin", [b"5;", b"5;a=", b"0\r\na: ", b"0\r\n", b"5\r\nhello\r\n0\r\na: b\r\nc", b"0000"])
def test_what_brings_no_body_is_bounded(door: Door, begin: bytes) -> None:
    made, wire = door.connect()
    made.data_received(CHUNKED + begin)
    read = in_pieces(made, (b"0" if begin == b"0000" else b"x") * (1 << 20), 10000)
    assert wire.closed
    assert read <= HEAD_MAX + 20000
    assert len(made.headers) == 2


def test_a_trailer_changes_nothing_of_the_head(door: Door) -> None:
    made, wire = door.connect()
    made.data_received(CHUNKED + b"5\r\nhello\r\n0\r\nauthorization: Bearer x\r\n\r\n")
    assert [name for name, _ in made.headers] == [b"host", b"transfer-encoding"]
    assert bytes(made.cycle.body) == b"hello"
    assert not wire.closed
    made, wire = door.connect()
    made.data_received(CHUNKED + b"0\r\n" + b"a: b\r\n" * (HEADERS_MAX + 1) + b"\r\n")
    assert wire.closed


def test_requests_sent_ahead_are_bounded(door: Door) -> None:
    made, wire = door.connect()
    made.data_received((GET + b"\r\n") * 5000)
    assert len(made.pipeline) <= PIPELINE_MAX
    assert wire.closed


# ---- connections


def test_connections_are_counted_by_address(door: Door) -> None:
    wires = []
    for _ in range(4):
        made, wire = door.connect()
        made.data_received(GET + b"\r\n")
        wires.append(wire)
    _, refused = door.connect()
    assert answer(refused)[:1] == (429,)
    _, other = door.connect("192.0.2.9")
    assert not other.sent
    assert not any(wire.closed for wire in wires)


def test_who_only_waits_makes_room(door: Door) -> None:
    busy, wire = door.connect()
    busy.data_received(GET + b"\r\n")
    waiting = [door.connect()[1] for _ in range(20)]
    assert not wire.closed
    assert sum(not each.aborted for each in waiting) == 3
    made, last = door.connect()
    made.data_received(GET + b"\r\n")
    assert not last.closed
    assert len(door.loop.tasks) == 2


def test_a_full_server_says_so(door: Door) -> None:
    for n in range(8):
        made, _ = door.connect(f"192.0.2.{n}")
        made.data_received(GET + b"\r\n")
    _, refused = door.connect("198.51.100.1")
    status, document = answer(refused)
    assert (status, document["code"], document["retryable"]) == (503, "server_full", True)
    made.connection_lost(None)
    _, after = door.connect("198.51.100.1")
    assert not after.sent


# ---- websockets' handshakes

UPGRADE = GET + (
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (UPGRADE + b"a: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (UPGRADE.replace(b"/v1", b"/" + b"x" * 9000) + b"\r\n", 431),
        (UPGRADE.replace(b"GET", b"POST") + b"content-length: 0\r\n\r\n", 405),
        (UPGRADE.replace(b"sec-websocket-key: x3", b"sec-websocket-key: x3 ") + b"\r\n", 400),
        (UPGRADE.replace(b"version: 13", b"version: 12") + b"\r\n", 400),
    ],
)
def test_a_handshake_that_fails_is_told_so(door: Door, head: bytes, status: int) -> None:
    made, wire = door.connect()
    made.data_received(head)
    assert int(wire.sent.split()[1]) == status, wire.sent
    assert wire.closed or wire.ended
    assert not door.loop.tasks


def test_a_websocket_counts_until_it_is_closed(door: Door) -> None:
    sockets = []
    for _ in range(4):
        made, wire = door.connect()
        made.data_received(UPGRADE + b"\r\n")
        assert isinstance(wire.protocol, WebsocketProtocol)
        sockets.append(wire.protocol)
    _, refused = door.connect()
    assert refused.sent.startswith(b"HTTP/1.1 429 ")
    sockets[0].connection_lost(None)
    _, after = door.connect()
    assert not after.sent
