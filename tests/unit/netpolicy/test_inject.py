"""Requests and answers of a host with credentials, without TLS around them: what goes up, what comes back."""

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpolicy.gateway.inject import Injector, _Exchange
from netpolicy.gateway.journal import Journal
from netpolicy.gateway.ward import Credentials, Flow, Ward
from netpolicy.match import Rules
from netpolicy.policy import parse

SECRET = "sk-proj-T3BlbkFJ/abc+def<ghi>0123456789"
POLICY = {
    "allow": [{"host": "a.test"}],
    "inject": [{"host": "a.test", "header": "Authorization", "format": "Bearer {secret}", "secret": "s"}],
}
GET = b"GET /x HTTP/1.1\r\nHost: a.test\r\n"


class Stream:
    """One end of a connection, as `TlsStream` offers it."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.end = end

    async def read(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.end, 1 << 16)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.end, data)

    async def close(self) -> None:
        with contextlib.suppress(OSError):
            self.end.shutdown(socket.SHUT_WR)


@dataclass
class Sides:
    """The sandbox's side, the host's, and what was written down."""

    client: Stream
    host: Stream
    journal: Journal

    async def asked(self, end: bytes = b"\r\n\r\n") -> bytes:
        """What arrives at the host, up to the end of a head."""
        data = b""
        while end not in data:
            data += await self.host.read()
        return data

    async def came_back(self) -> bytes:
        """All that arrives at the client, once both sides have said all."""
        await self.client.close()
        await self.host.close()
        data = b""
        while piece := await self.client.read():
            data += piece
        return data


def exchange(work: Callable[[Sides], Awaitable[None]]) -> None:
    async def run() -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        with contextlib.ExitStack() as stack:
            for end in (end for pair in pairs for end in pair):
                stack.enter_context(end)
            client, inner, outer, host = (Stream(end) for end in (*pairs[0], *pairs[1]))
            ward, journal = Ward("sbx", IPv4Address("198.19.0.2"), 1), Journal()
            ward.guard(Rules(parse(POLICY)), Credentials({"s": SECRET}), 1)
            flow = Flow(1, "a.test", "a.test", None, IPv4Address("203.0.113.1"), 443, end=lambda: None)
            injector = Injector(ssl.create_default_context(), journal)
            serving: Any = _Exchange(injector, journal, ward, flow, inner, outer)  # type: ignore[arg-type]

            async def serve() -> None:
                with contextlib.suppress(ConnectionAbortedError):
                    await serving.run()
                for stream in (inner, outer):
                    await stream.close()

            task = asyncio.get_running_loop().create_task(serve())
            await work(Sides(client, host, journal))
            for side in (client, host):
                await side.close()
            await task

    asyncio.run(run())


def test_a_request_asks_for_nothing_that_could_not_be_read_here() -> None:
    async def work(sides: Sides) -> None:
        await sides.client.write(
            GET + b"Accept-Encoding: gzip, br\r\nRange: bytes=0-9\r\nIf-Range: x\r\nTE: trailers\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AA\r\nConnection: upgrade, authorization\r\nTrailer: X-Late\r\n\r\n"
        )
        head = (await sides.asked()).lower()
        assert b"authorization: bearer " + SECRET.lower().encode() in head
        assert b"accept-encoding: identity" in head
        for name in (b"range", b"te:", b"upgrade", b"http2", b"connection", b"trailer", b"gzip"):
            assert name not in head, name
        await sides.host.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert (await sides.came_back()).endswith(b"ok")

    exchange(work)


def test_trailers_of_a_request_do_not_go_on() -> None:
    async def work(sides: Sides) -> None:
        chunked = b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nAuthorization: mine\r\n\r\n"
        await sides.client.write(GET.replace(b"GET", b"POST") + chunked)
        assert (await sides.asked(b"0\r\n\r\n")).endswith(b"2\r\nhi\r\n0\r\n\r\n")

    exchange(work)


REFUSED = {
    "pieces": b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/2\r\nContent-Length: 2\r\n\r\nok",
    "a coding": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
    "two codings": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Length: 2\r\n\r\nok",
    "the second of two": b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\nok",
    "an unknown one": b"HTTP/1.1 200 OK\r\nContent-Encoding: x-mine\r\nContent-Length: 2\r\n\r\nok",
    "one of the transfer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
    + SECRET.encode(),
    "no HTTP": b"ICY 200 OK\r\n\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
}


@pytest.mark.parametrize("answer", REFUSED.values(), ids=REFUSED)
def test_an_answer_that_cannot_be_read_is_refused_in_words(answer: bytes) -> None:
    async def work(sides: Sides) -> None:
        await sides.client.write(GET + b"\r\n")
        await sides.asked()
        await sides.host.write(answer)
        back = await sides.came_back()
        assert back.startswith(b"HTTP/1.1 502 ")
        assert b"egress_answer_refused" in back
        assert SECRET.encode() not in back
        refused = next(record for record in await sides.journal.after(0, 9) if record.event == "refused")
        assert (refused.rule, refused.verdict) == ("answer", "refuse")

    exchange(work)


def test_of_what_comes_before_an_answer_only_the_leave_to_continue_goes_on() -> None:
    async def work(sides: Sides) -> None:
        await sides.client.write(GET + b"\r\n")
        await sides.asked()
        await sides.host.write(
            b"HTTP/1.1 103 Early Hints\r\nLink: <%b>\r\n\r\nHTTP/1.1 100 %b\r\nX: %b\r\n\r\n" % ((SECRET.encode(),) * 3)
        )
        await sides.host.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        back = await sides.came_back()
        assert back == b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"

    exchange(work)


PLACES = ("phrase", "name", "value", "body", "chunks", "trailer", "until the end")
WRITTEN = {
    SECRET.encode(),
    SECRET.upper().encode(),
    SECRET.replace("/", "\\/").replace("<", "\\u003c").encode(),
    SECRET.replace("<", "&lt;").replace(">", "&#62;").encode(),
    SECRET.replace("/", "%2f").replace("+", "%2B").replace("<", "%3c").encode(),
    SECRET.encode().hex().encode(),
    *(base64.b64encode(b"\0" * n + SECRET.encode()) for n in range(3)),
}


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(PLACES), st.sampled_from(sorted(WRITTEN)), st.lists(st.integers(1, 80), max_size=5))
def test_nowhere_in_an_answer_is_a_secret_left(place: str, written: bytes, sizes: list[int]) -> None:
    """Wherever it stands, however it is written and cut."""
    chunks, rest = [], b"x " + written + b" y"
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, rest] if chunk)
    answer = {
        "phrase": b"HTTP/1.1 200 %b\r\nContent-Length: 0\r\n\r\n" % written,
        "name": b"HTTP/1.1 200 OK\r\n%b: x\r\nContent-Length: 0\r\n\r\n" % SECRET.encode().hex().upper().encode(),
        "value": b"HTTP/1.1 200 OK\r\nX-You: a %b b\r\nContent-Length: 0\r\n\r\n" % written,
        "body": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(written), written),
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % chunked,
        "trailer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-You: %b\r\n\r\n" % written,
        "until the end": b"HTTP/1.1 200 OK\r\n\r\n" + written,
    }[place]

    async def work(sides: Sides) -> None:
        await sides.client.write(GET + b"\r\n")
        await sides.asked()
        cut = sum(sizes) % len(answer)
        await sides.host.write(answer[:cut])
        await asyncio.sleep(0)
        await sides.host.write(answer[cut:])
        back = (await sides.came_back()).lower()
        assert back.startswith(b"http/1.1 200 ok\r\n")
        for each in WRITTEN:
            assert each.lower().strip(b"=")[2:-2] not in back
        records = (
            [record.event for record in await sides.journal.after(0, 9)] if place not in ("phrase", "trailer") else []
        )
        assert ("secret" in records) == (place not in ("phrase", "trailer"))

    exchange(work)


def test_a_websocket_goes_through_and_its_secrets_do_not() -> None:
    async def work(sides: Sides) -> None:
        extensions = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
        await sides.client.write(GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + extensions + b"\r\n")
        assert b"extensions" not in (await sides.asked()).lower()
        switched = b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX-You: " + SECRET.encode()
        await sides.host.write(switched + b"\r\n\r\n\x81\x05hello")
        await sides.client.write(b"\x81\x80\0\0\0\0")
        assert await sides.host.read() == b"\x81\x80\0\0\0\0"
        half = len(SECRET) // 2
        await sides.host.write(b"\x01%c" % half + SECRET[:half].encode())
        await sides.host.write(b"\x80%c" % (len(SECRET) - half) + SECRET[half:].encode())
        back = await sides.came_back()
        assert b"\x81\x05hello" in back
        assert back.count(b"*" * len(SECRET)) == 2
        assert b"sk-proj" not in back

    exchange(work)


@pytest.mark.parametrize(
    "answer", [b"Upgrade: h2c\r\n", b"Upgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n", b""]
)
def test_a_websocket_that_cannot_be_read_is_refused(answer: bytes) -> None:
    async def work(sides: Sides) -> None:
        await sides.client.write(GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await sides.asked()
        await sides.host.write(b"HTTP/1.1 101 x\r\nConnection: upgrade\r\n" + answer + b"\r\n" + SECRET.encode())
        back = await sides.came_back()
        assert back.startswith(b"HTTP/1.1 502 ")
        assert b"sk-proj" not in back

    exchange(work)
