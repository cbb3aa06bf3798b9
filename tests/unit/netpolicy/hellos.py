"""ClientHellos: of the standard library, and of our own."""

import ssl

import pytest


def hello(host: str | None, *, legacy: bool = False) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = host is not None
    if host is None:
        context.verify_mode = ssl.CERT_NONE
    if legacy:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=host).do_handshake()
    return outgoing.read()


def with_extensions(*extensions: tuple[int, bytes], more: bytes = b"", after: bytes = b"") -> bytes:
    """A ClientHello of our own with just these extensions; more: behind them, after: in the same record."""
    listed = b"".join(kind.to_bytes(2) + len(body).to_bytes(2) + body for kind, body in extensions)
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + len(listed).to_bytes(2) + listed + more
    message = b"\x01" + len(body).to_bytes(3) + body + after
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


def names(*hosts: bytes, kind: int = 0, more: bytes = b"") -> bytes:
    """The body of the extension server_name."""
    listed = b"".join(bytes([kind]) + len(host).to_bytes(2) + host for host in hosts)
    return len(listed).to_bytes(2) + listed + more
