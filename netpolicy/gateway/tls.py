"""The ClientHello of TLS (RFC 8446, section 4.1.2): which host it is for. No I/O."""

from typing import Final

HELLO_MAX: Final = 16384
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0


class NotTls(ValueError):
    """What came is no ClientHello; the text says why."""


def looks_like(data: bytes) -> bool:
    """Whether these first bytes begin a TLS handshake."""
    return data[:1] == bytes([_HANDSHAKE]) and data[1:2] in (b"", b"\x03")


def server_name(data: bytes) -> str | bytes | None:
    """The host that a ClientHello names, None where it names none, b"" while it is not whole; NotTls.

    It may be spread over several records. At most HELLO_MAX bytes are looked at.
    """
    hello = bytearray()
    offset = 0
    while True:
        if len(data) > offset and data[offset] != _HANDSHAKE:
            raise NotTls("it is not a TLS handshake")
        if len(data) < offset + 5:
            return _more(data)
        if data[offset + 1] != 3:
            raise NotTls("it is not a TLS handshake")
        size = int.from_bytes(data[offset + 3 : offset + 5])
        if not 0 < size <= 16384 + 256:
            raise NotTls("a record of an impossible size")
        hello += data[offset + 5 : offset + 5 + size]
        if hello and hello[0] != _CLIENT_HELLO:
            raise NotTls("it does not begin with a ClientHello")
        if len(hello) >= 4:
            whole = 4 + int.from_bytes(hello[1:4])
            if whole > HELLO_MAX:
                raise NotTls("its ClientHello is too long")
            if len(hello) >= whole:
                return _from_hello(_Reader(bytes(hello[4:whole])))
        if len(data) < offset + 5 + size:
            return _more(data)
        offset += 5 + size


def _more(data: bytes) -> bytes:
    if len(data) >= HELLO_MAX:
        raise NotTls("its ClientHello is not whole within 16 KiB")
    return b""


class _Reader:
    """Takes length-prefixed parts off a piece of a message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise NotTls("its ClientHello is cut")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def part(self, size: int) -> "_Reader":
        return _Reader(self.take(self.number(size)))


def _from_hello(hello: _Reader) -> str | None:
    hello.take(2 + 32)  # version, random
    hello.part(1)  # session id
    hello.part(2)  # cipher suites
    hello.part(1)  # compression methods
    if not hello:
        return None
    extensions = hello.part(2)
    while extensions:
        kind = extensions.number(2)
        body = extensions.part(2)
        if kind == _SERVER_NAME:
            names = body.part(2)
            found = []
            while names:
                if names.number(1) == _HOST_NAME:
                    found.append(names.take(names.number(2)))
                else:
                    names.part(2)
            if len(found) != 1:
                raise NotTls("it names more than one host, or none")
            try:
                return found[0].decode("ascii")
            except UnicodeDecodeError:
                raise NotTls("the name of its host is not ASCII") from None
    return None
