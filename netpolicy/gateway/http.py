"""Requests of plain HTTP/1.1, each looked at before it goes on, and put together anew. No I/O.

What goes upstream is what was understood, not what came: no byte that two parsers could read in two ways gets through.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import h11

from netpolicy.names import NameInvalid, canonical

HEAD_MAX: Final = 16384

Headers = list[tuple[bytes, bytes]]


class RequestRefused(Exception):
    """A request that does not go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Head:
    """A request's head; `host` is canonical (or an address), `target` in origin form."""

    method: str
    target: str
    host: str
    headers: Headers

    @property
    def upgrades(self) -> bool:
        """Whether it asks for a websocket."""
        return any(name == b"upgrade" for name, _ in self.headers)


def head_of(request: h11.Request, port: int) -> Head:
    """What a request says of itself; RequestRefused where it is not plain."""
    names = [name for name, _ in request.headers]
    if names.count(b"host") != 1:
        raise RequestRefused("it needs exactly one Host header")
    if b"content-length" in names and b"transfer-encoding" in names:
        raise RequestRefused("it has both Content-Length and Transfer-Encoding")
    method = request.method.decode("ascii")
    if method.upper() == "CONNECT":
        raise RequestRefused("CONNECT is not allowed")
    host = _host(next(value for name, value in request.headers if name == b"host"), port)
    target = request.target.decode("ascii", errors="replace")
    if not target.startswith("/") and target != "*":
        absolute = re.fullmatch(r"(?i:https?)://([^/?#@]*)([/?].*)?", target)
        if absolute is None or _host(absolute[1].encode(), port) != host:
            raise RequestRefused("its target is for another host than its Host header")
        target = absolute[2] or "/"
        target = target if target.startswith("/") else "/" + target
    return Head(method, target, host, _without_other_protocols(list(request.headers)))


def _without_other_protocols(headers: Headers) -> Headers:
    """The headers that ask for websockets at most.

    HTTP/2 or TLS would bring requests that nobody looks at (RFC 9113, RFC 2817). A server may decline any
    upgrade, so a request goes on without one (RFC 9110, section 7.8).
    """
    asked = b", ".join(value for name, value in headers if name == b"upgrade")
    if not asked or asked.strip().lower() == b"websocket":
        return headers
    dropped = {b"upgrade", b"http2-settings"}
    left = [(name, value) for name, value in headers if name not in dropped]
    return [(name, _without_options(value, dropped) if name == b"connection" else value) for name, value in left]


def _without_options(value: bytes, dropped: set[bytes]) -> bytes:
    options = [option.strip() for option in value.split(b",")]
    return b", ".join(option for option in options if option.lower() not in dropped) or b"keep-alive"


def _host(value: bytes, port: int) -> str:
    name, colon, number = value.decode("ascii", errors="replace").partition(":")
    if colon and number != str(port):
        raise RequestRefused("its Host header is for another port")
    try:
        return canonical(name)
    except NameInvalid:
        return _address(name)


def _address(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise RequestRefused("its Host header is no host's name") from None


Check = Callable[[Head], Headers]
"""Says with which headers a request goes on; RequestRefused."""


class Requests:
    """The requests of one connection, one after the other."""

    def __init__(self, port: int, check: Check) -> None:
        self._port = port
        self._check = check
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        self._writer: h11.Connection | None = None
        self.count = 0
        self.upgrading = False
        """The last one asked to speak something else: what follows is not understood here."""

    def feed(self, data: bytes) -> bytes:
        """What goes on of what came; RequestRefused for what does not."""
        found = bytearray()
        try:
            self._parser.receive_data(data)
            while True:
                event = self._parser.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return bytes(found)
                if isinstance(event, h11.ConnectionClosed):
                    return bytes(found)
                if isinstance(event, h11.Request):
                    found += self._begin(event)
                elif self._writer is not None and isinstance(event, h11.Data | h11.EndOfMessage):
                    found += self._writer.send(event) or b""
                    if isinstance(event, h11.EndOfMessage) and not self.upgrading:
                        self._next()
        except h11.ProtocolError as error:
            raise RequestRefused(f"it is no plain HTTP/1.1: {error}") from None

    def _begin(self, request: h11.Request) -> bytes:
        head = head_of(request, self._port)
        if head.upgrades and self.count:
            raise RequestRefused("an Upgrade has to be a connection's first request")
        headers = self._check(head)
        self.count += 1
        self.upgrading = head.upgrades
        self._writer = h11.Connection(h11.CLIENT)
        again = h11.Request(method=request.method, target=head.target, headers=headers)
        return self._writer.send(again) or b""

    def _next(self) -> None:
        rest, _ = self._parser.trailing_data
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        if rest:
            self._parser.receive_data(rest)

    @property
    def rest(self) -> bytes:
        """What came behind a request that asks to speak something else."""
        return self._parser.trailing_data[0]


def refusal(reason: str, hint: str, *, answer: bool = False) -> bytes:
    """Word a refusal as a problem document, so that a program can read why; answer: the host's answer is refused."""
    status, phrase = (502, "Bad Gateway") if answer else (403, "Forbidden")
    code = "egress_answer_refused" if answer else "egress_refused"
    body = json.dumps(
        {
            "type": f"urn:isobox:problem:{code}",
            "title": "Refused by the sandbox's network policy",
            "status": status,
            "code": code,
            "detail": reason,
            "hint": hint,
        }
    ).encode()
    head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body
