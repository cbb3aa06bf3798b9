"""The two ends of a connection that the gateway stands between: where it wanted to go, dialling there, last words."""

import asyncio
import socket
import struct
from ipaddress import IPv4Address
from typing import Final

_DIAL_S: Final = 10.0
_SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h


async def first_readable(*sockets: socket.socket) -> socket.socket:
    """The one that something comes from first (its end included)."""
    loop = asyncio.get_running_loop()
    first: asyncio.Future[socket.socket] = loop.create_future()

    def readable(each: socket.socket) -> None:
        if not first.done():
            first.set_result(each)

    for each in sockets:
        loop.add_reader(each.fileno(), readable, each)
    try:
        return await first
    finally:
        for each in sockets:
            loop.remove_reader(each.fileno())


async def dial(destination: IPv4Address, port: int) -> socket.socket:
    """A connection to that address; OSError, TimeoutError."""
    upstream = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(_DIAL_S):
            await asyncio.get_running_loop().sock_connect(upstream, (str(destination), port))
    except BaseException:
        upstream.close()
        raise
    return upstream


async def say(client: socket.socket, words: bytes) -> None:
    """Send last words, and let them arrive: unread input would turn the close into a reset."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, words)
    client.shutdown(socket.SHUT_WR)
    while await loop.sock_recv(client, 65536):
        pass


def original_destination(client: socket.socket) -> tuple[IPv4Address, int]:
    """Where a connection wanted to go, before the kernel turned it here."""
    raw = client.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
    _, port, address = struct.unpack(">HH4s8x", raw)
    return IPv4Address(address), port
