"""Netlink's messages and attributes (netlink(7)), as little of them as its two readers here need. No I/O.

What comes from the kernel is bounded all the same: a length that does not fit ends the reading.
"""

import struct
from collections.abc import Iterator
from typing import Final

NETFILTER: Final = 12
"""The protocol of nfnetlink (linux/netlink.h)."""

SO_RCVBUFFORCE: Final = 33
REQUEST, ACK, DUMP = 1, 4, 0x300
ERROR, DONE = 2, 3
NESTED: Final = 0x8000
_KIND: Final = 0x3FFF


def messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """The kind and body of each message in a datagram; a body begins with the family's own head."""
    offset = 0
    while offset + 16 <= len(datagram):
        size, kind = struct.unpack_from("=IH", datagram, offset)
        if size < 16 or offset + size > len(datagram):
            return
        yield kind, datagram[offset + 16 : offset + size]
        offset += (size + 3) & ~3


def message(kind: int, flags: int, body: bytes) -> bytes:
    """A message as it is sent."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by their kind."""
    found, offset = {}, 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4 or offset + size > len(data):
            break
        found[kind & _KIND] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute as it is sent."""
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def refusal(body: bytes) -> int:
    """The errno of an ERROR message's body; 0 where it acknowledges."""
    return int(-struct.unpack_from("=i", body)[0])
