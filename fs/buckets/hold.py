"""What is said with the program that holds a mount inside (isolation/guest/hold.c): packets in, packets out. Pure.

It is the guest's word: packets are bounded, and what they ask for is no more than a file system offers.
"""

import struct
from collections.abc import Iterator
from typing import Final

from fs import fuse

PACKET_MAX: Final = fuse.WRITE_MAX + 4096
NOTE_MAX: Final = 16 << 10
"""Bytes of a note: a path of 1 KiB, each of its characters written as JSON may write it, and an etag."""

_ORDER: Final = struct.Struct("<IiQ")
_NOTE, _DROP, _PING = 1, 2, 3


class HoldViolation(Exception):
    """What no program of ours says."""


class Packets:
    """Takes what comes apart."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[fuse.Request]:
        """The packets that are whole now; those with opcode 0 are notes. HoldViolation."""
        self._rest += data
        at = 0
        while len(self._rest) - at >= 4:
            size = int.from_bytes(self._rest[at : at + 4], "little")
            if not 40 <= size <= PACKET_MAX:
                raise HoldViolation(f"a packet of {size} bytes")
            if len(self._rest) - at < size:
                break
            packet = fuse.parse(bytes(self._rest[at : at + size]))
            if packet.opcode == 0 and len(packet.body) > NOTE_MAX:
                raise HoldViolation(f"a note of {len(packet.body)} bytes")
            yield packet
            at += size
        del self._rest[:at]


def note(key: int, text: bytes | None) -> bytes:
    """Let it keep a text under a number, or with None forget it."""
    body = key.to_bytes(8, "little") + (text or b"")
    return _ORDER.pack(_ORDER.size + len(body), _DROP if text is None else _NOTE, 0) + body


def ping() -> bytes:
    """Ask for a sign once all is said that has been asked inside so far."""
    return _ORDER.pack(_ORDER.size, _PING, 0)
