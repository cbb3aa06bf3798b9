"""The ClientHello of TLS (RFC 8446, section 4.1.2): which host it is for. No I/O."""

from typing import Final

HELLO_MAX: Final = 16384
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_SERVER_HELLO: Final = 2
_CHANGE_CIPHER_SPEC, _APPLICATION_DATA = 20, 23
_RETRY: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a ServerHello that asks for another ClientHello (RFC 8446, section 4.1.3)."""
_ENCRYPTED_HELLOS: Final = frozenset({0xFE0D, 0xFFCE})
"""The extension of Encrypted Client Hello (RFC 9849), and of the draft before it."""


class NotTls(ValueError):
    """What came is no ClientHello; the text says why."""


def looks_like(data: bytes) -> bool:
    """Whether these first bytes begin a TLS handshake."""
    return data[:1] == bytes([_HANDSHAKE]) and data[1:2] in (b"", b"\x03")


def server_name(data: bytes) -> str | bytes | None:
    """The host that a ClientHello names, None where it names none, b"" while it is not whole; NotTls.

    It may be spread over several records. At most HELLO_MAX bytes are looked at.
    """
    hello = _whole(data)
    return b"" if hello is None else _named(_extensions(hello))


def hides_name(data: bytes) -> bool:
    """Whether a whole ClientHello carries another one, encrypted, that only the server can read; NotTls.

    One that browsers send for appearance (GREASE) cannot be told from a true one: that is its purpose.
    """
    hello = _whole(data)
    return hello is not None and not _ENCRYPTED_HELLOS.isdisjoint(_extensions(hello))


def asks_again(data: bytes) -> bool | None:
    """Whether a server's first bytes ask for another ClientHello, None while that cannot be told."""
    message, offset = bytearray(), 0
    while len(data) >= offset + 5 and data[offset] == _HANDSHAKE:
        size = int.from_bytes(data[offset + 3 : offset + 5])
        message += data[offset + 5 : offset + 5 + size]
        offset += 5 + size
    if message[:1] not in (b"", bytes([_SERVER_HELLO])) or data[offset : offset + 1] not in (b"", bytes([_HANDSHAKE])):
        return False
    if len(message) < 6 + len(_RETRY):
        return None if len(data) < HELLO_MAX else False
    return message[6 : 6 + len(_RETRY)] == _RETRY


def second_hello(data: bytes) -> bytes:
    """What a client sends when it is asked again, from its ClientHello on; b"" while that has not begun."""
    while data[:1] in (bytes([_CHANGE_CIPHER_SPEC]), bytes([_APPLICATION_DATA])):
        if len(data) < 5 or len(data) < 5 + int.from_bytes(data[3:5]):
            return b""
        data = data[5 + int.from_bytes(data[3:5]) :]
    return data


def _whole(data: bytes) -> bytes | None:
    """The body of the ClientHello, None while it is not whole."""
    hello = bytearray()
    offset = 0
    while True:
        if len(data) > offset and data[offset] != _HANDSHAKE:
            raise NotTls("it is not a TLS handshake")
        if len(data) < offset + 5:
            return _unfinished(data)
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
            if len(hello) > whole:
                raise NotTls("another message follows in the record of its ClientHello")
            if len(hello) == whole and len(data) >= offset + 5 + size:
                return bytes(hello[4:])
        if len(data) < offset + 5 + size:
            return _unfinished(data)
        offset += 5 + size


def _unfinished(data: bytes) -> bytes | None:
    if len(data) >= HELLO_MAX:
        raise NotTls("its ClientHello is not whole within 16 KiB")
    return None


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


def _extensions(body: bytes) -> dict[int, bytes]:
    """The extensions of a ClientHello by their kind, each of which comes once (RFC 8446, section 4.2)."""
    hello = _Reader(body)
    hello.take(2 + 32)  # version, random
    hello.part(1)  # session id
    hello.part(2)  # cipher suites
    hello.part(1)  # compression methods
    extensions: dict[int, bytes] = {}
    if not hello:
        return extensions
    listed = hello.part(2)
    if hello:
        raise NotTls("something follows the extensions of its ClientHello")
    while listed:
        kind = listed.number(2)
        if kind in extensions:
            raise NotTls(f"its ClientHello has the extension {kind} twice")
        extensions[kind] = listed.take(listed.number(2))
    return extensions


def _named(extensions: dict[int, bytes]) -> str | None:
    if _SERVER_NAME not in extensions:
        return None
    extension = _Reader(extensions[_SERVER_NAME])
    names = extension.part(2)
    if extension or not names or names.number(1) != _HOST_NAME:
        raise NotTls("it does not name one host")
    name = names.take(names.number(2))
    if names:
        raise NotTls("it names more than one host")
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise NotTls("the name of its host is not ASCII") from None
