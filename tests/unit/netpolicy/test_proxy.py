"""Connections through the proxy: real sockets on both sides, and no kernel that turns them there."""

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import pytest
from hellos import hello, names, with_extensions

from common.tasks import TaskOwner
from netpolicy.audit import Record
from netpolicy.gateway import proxy as proxy_module
from netpolicy.gateway.inject import Injector
from netpolicy.gateway.journal import Journal
from netpolicy.gateway.proxy import Proxy
from netpolicy.gateway.ward import Credentials, Ward
from netpolicy.match import Rules
from netpolicy.policy import parse

THERE = IPv4Address("203.0.113.1")
POLICY = {"allow": [{"host": "a.test", "ports": [80, 443, 7000]}, {"host": "b.test", "ports": [7000]}]}


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection, not blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for end in (near, far):
        end.setblocking(False)
    return near, far


@dataclass
class Line:
    """A connection through a proxy: what is sent at one end is looked at before it comes out at the other."""

    client: socket.socket
    server: socket.socket
    ward: Ward
    journal: Journal
    served: "asyncio.Task[None]"
    upstream: socket.socket

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.client, data)

    async def answer(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.server, data)

    async def arrived(self, size: int) -> bytes:
        """What comes out at the server's end: so many bytes, or all until the end."""
        return await self._read(self.server, size)

    async def came_back(self, size: int = 1 << 20) -> bytes:
        return await self._read(self.client, size)

    async def _read(self, end: socket.socket, size: int) -> bytes:
        data = b""
        with contextlib.suppress(ConnectionError):
            while len(data) < size and (piece := await asyncio.get_running_loop().sock_recv(end, size - len(data))):
                data += piece
        return data

    async def refused(self) -> Record:
        """Wait for the refusal of it all; returns its record."""
        self.client.shutdown(socket.SHUT_WR)
        await self.served
        self.upstream.close()  # it may not have been dialled
        return next(record for record in await self.journal.after(0, 99) if record.event == "refused")


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a test's coroutine with a Line to a port."""

    def run(work: Callable[[Line], Awaitable[None]], port: int = 7000, policy: dict[str, Any] = POLICY) -> None:
        async def both() -> None:
            client, inner = pair()
            upstream, server = pair()

            async def dial(*_: object) -> socket.socket:
                return upstream

            monkeypatch.setattr(proxy_module, "dial", dial)
            monkeypatch.setattr(proxy_module, "original_destination", lambda _: (THERE, port))
            ward, journal = Ward("sbx", IPv4Address("198.19.0.2"), 1), Journal()
            ward.guard(Rules(parse(policy)), Credentials(), 1)
            for name in ("a.test", "b.test"):
                ward.pins.add(name, [THERE], 60, time.monotonic())
            async with TaskOwner() as tasks:
                injector = Injector(ssl.create_default_context(), journal)
                proxy = Proxy(lambda _: ward, journal, injector, tasks)
                served = tasks.spawn(proxy._serve(ward, inner), name="flow")
                await work(Line(client, server, ward, journal, served, upstream))
                await tasks.cancel()
            for end in (client, server):
                end.close()
            assert ward.connecting == 0
            assert not ward.flows

        asyncio.run(both())

    return run


REQUEST = b"GET / HTTP/1.1\r\nHost: %b:7000\r\n\r\n"


@pytest.mark.parametrize("cut", [3, 5, 9, 20])
def test_a_request_on_a_port_of_its_own_is_put_together_anew(through: Any, cut: int) -> None:
    async def work(line: Line) -> None:
        whole = b"GET / HTTP/1.1\r\nhost: a.test:7000\r\n\r\n"
        await line.send(whole[:cut])
        await asyncio.sleep(0)
        await line.send(whole[cut:])
        assert (await line.arrived(len(whole))).lower() == whole.lower()
        await line.answer(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert await line.came_back(10) == b"HTTP/1.1 2"

    through(work)


@pytest.mark.parametrize(
    "data",
    [
        REQUEST % b"evil.test",
        b"\r\n" + REQUEST % b"evil.test",
        b"\n \n" + REQUEST % b"evil.test",
        b"get / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GeT / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET\t/\tHTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: evil.test\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: evil.test\r\n\r\n",
        b"GET / HTTP/1.1\nHost: evil.test\n\n",
        b"GET / HTTP/1.1\r\nX: y\r\n Host: a.test\r\nHost:\r\n evil.test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT evil.test:443 HTTP/1.1\r\nHost: a.test:7000\r\n\r\n",
    ],
)
def test_what_a_server_may_take_for_a_request_to_another_host_does_not_arrive(through: Any, data: bytes) -> None:
    async def work(line: Line) -> None:
        await line.send(data)
        await line.refused()
        assert await line.arrived(1) == b""

    through(work)


@pytest.mark.parametrize("data", [b"GET /\r\n", b"get http://evil.test/\n", b"\r\nGET /x\r\n"])
def test_a_request_without_version_does_not_arrive(through: Any, data: bytes) -> None:
    async def work(line: Line) -> None:
        await line.send(data)
        line.client.shutdown(socket.SHUT_WR)
        assert await line.arrived(1) == b""

    through(work)


def test_a_request_that_comes_bit_by_bit_does_not_arrive(through: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "_WORD_S", 0.0)

    async def work(line: Line) -> None:
        await line.send(b"GET")
        assert await line.arrived(3) == b"GET", "a word that a server may wait for"
        await line.send(b" / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
        assert "late" in (await line.refused()).reason
        assert await line.arrived(1) == b""

    through(work)


def test_words_without_end_of_line_arrive(through: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "_WORD_S", 0.0)

    async def work(line: Line) -> None:
        await line.send(b"PING")
        assert await line.arrived(4) == b"PING"
        await line.answer(b"PONG")
        assert await line.came_back(4) == b"PONG"
        await line.send(b"\nmore")
        assert await line.arrived(5) == b"\nmore"
        line.client.shutdown(socket.SHUT_WR)
        assert await line.arrived(1) == b""

    through(work)


@pytest.mark.parametrize("words", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", REQUEST % b"a.test", hello("a.test")])
def test_a_server_that_speaks_first_does_not_get_requests_unseen(through: Any, words: bytes) -> None:
    async def work(line: Line) -> None:
        settings = b"\0\0\0\x04\0\0\0\0\0"
        await line.answer(settings)
        assert await line.came_back(9) == settings
        await line.send(words)
        await line.refused()
        assert await line.arrived(1) == b""

    through(work)


def test_a_server_that_speaks_first_is_heard_and_answered(through: Any) -> None:
    async def work(line: Line) -> None:
        await line.answer(b"220 welcome\r\n")
        assert await line.came_back(13) == b"220 welcome\r\n"
        await line.send(b"EHLO me\r\n")
        assert await line.arrived(9) == b"EHLO me\r\n"

    through(work)


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (hello(None), "protocol"),
        (hello("evil.test"), "default"),
        (with_extensions((0, names(b"a.test")), (0, names(b"evil.test"))), "protocol"),
        (with_extensions((0, names(b"a.test", b"evil.test"))), "protocol"),
        (with_extensions((0, names(b"a.test")), (0xFE0D, b"\0" * 99)), "ech"),
        (b"\x80\x2e\x01\x03\x01" + bytes(43), "protocol"),
    ],
)
@pytest.mark.parametrize("port", [443, 7000])
def test_a_hello_that_does_not_show_one_allowed_name_does_not_arrive(
    through: Any, port: int, data: bytes, rule: str
) -> None:
    async def work(line: Line) -> None:
        await line.send(data)
        assert (await line.refused()).rule == rule
        assert await line.arrived(1) == b""

    through(work, port)


@pytest.mark.parametrize("port", [443, 7000])
def test_a_hello_with_an_allowed_name_arrives_as_it_is(through: Any, port: int) -> None:
    async def work(line: Line) -> None:
        data = hello("a.test")
        await line.send(data)
        assert await line.arrived(len(data)) == data

    through(work, port)


RETRY = bytes.fromhex("160303002c0200002803 03cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c00130100")
CHANGE = b"\x14\x03\x03\0\x01\x01"


@pytest.mark.parametrize("port", [443, 7000])
@pytest.mark.parametrize("cut", [1, 5, 30, len(RETRY)])
def test_a_server_that_asks_again_is_told_the_same_name(through: Any, port: int, cut: int) -> None:
    async def work(line: Line) -> None:
        data = hello("a.test")
        await line.send(data)
        assert await line.arrived(len(data)) == data
        await line.answer(RETRY[:cut])
        await asyncio.sleep(0)
        await line.answer(RETRY[cut:])
        assert await line.came_back(len(RETRY)) == RETRY
        second = CHANGE + with_extensions((0, names(b"A.test")))
        await line.send(second + b"more")
        assert await line.arrived(len(second) + 4) == second + b"more"

    through(work, port)


@pytest.mark.parametrize(
    "second",
    [
        with_extensions((0, names(b"evil.test"))),
        CHANGE + with_extensions((0, names(b"b.test"))),
        with_extensions(),
        with_extensions((0, names(b"a.test")), (0xFE0D, b"\0")),
        b"\x15\x03\x03\0\x02\x02\x28",
    ],
)
def test_a_second_hello_for_another_host_does_not_arrive(through: Any, second: bytes) -> None:
    async def work(line: Line) -> None:
        data = hello("a.test")
        await line.send(data)
        assert await line.arrived(len(data)) == data
        await line.answer(RETRY)
        assert await line.came_back(len(RETRY)) == RETRY
        await line.send(second)
        await line.refused()
        assert await line.arrived(1) == b""

    through(work, 443)


@pytest.mark.parametrize("answer", [b"\x15\x03\x03\0\x02\x02\x28", b"SSH", b"\x16\x03\x03\0\x04\x0b\0\0\0"])
def test_whatever_else_a_server_answers_comes_back(through: Any, answer: bytes) -> None:
    async def work(line: Line) -> None:
        await line.send(hello("a.test"))
        await line.answer(answer)
        assert await line.came_back(len(answer)) == answer

    through(work, 443)


def test_a_connection_is_for_one_host(through: Any) -> None:
    """Another name at the same address would go on when a new policy denies it."""

    async def work(line: Line) -> None:
        await line.send(REQUEST % b"b.test")
        arrived = await line.arrived(len(REQUEST % b"b.test"))
        assert b"b.test" in arrived
        assert [flow.name for flow in line.ward.flows] == ["b.test"]
        await line.send(REQUEST % b"a.test")
        assert "a.test" in (await line.refused()).reason
        assert await line.arrived(1) == b""

    through(work)


def test_an_upgrade_to_http_2_goes_on_without_it(through: Any) -> None:
    async def work(line: Line) -> None:
        await line.send(b"GET /1 HTTP/1.1\r\nHost: a.test\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n")
        await line.send(b"GET /2 HTTP/1.1\r\nHost: evil.test\r\n\r\n")
        await line.refused()
        arrived = await line.arrived(1 << 16)
        assert b"/2" not in arrived
        assert b"upgrade" not in arrived.lower()

    through(work, 80)


def test_one_sandbox_never_has_more_connections_than_are_left_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "original_destination", lambda _: (THERE, 443))

    async def run() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (800, hard))
        address = IPv4Address("127.0.0.1")
        hogs = [Ward(f"hog{n}", address, n) for n in range(3)]
        journal, hog = Journal(), hogs[0]
        try:
            async with TaskOwner() as tasks:
                injector = Injector(ssl.create_default_context(), journal)
                proxy = Proxy(lambda _: hog, journal, injector, tasks)
                with contextlib.ExitStack() as stack:
                    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=200))
                    listener.setblocking(False)
                    for hog in hogs:  # noqa: B007 - the proxy asks whose a connection is
                        for _ in range(60):
                            stack.enter_context(socket.create_connection(listener.getsockname()))
                            proxy._accept(listener)
                            await asyncio.sleep(0)
                    assert [each.connecting for each in hogs] == [50, 25, 13]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    asyncio.run(run())
