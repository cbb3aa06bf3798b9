"""Output of something short-lived, passed on piece by piece instead of into a log; bounded by what is acknowledged."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from isolation.channel.link import GuestExec, Link
from isolation.errors import ChannelViolation

_HELD_BYTES: Final = 512 << 10
_ERRORS_MAX: Final = 64 << 10


class Inbox:
    """A sink (`isolation.channel.link.Sink`): stdout through a bounded queue, stderr kept whole."""

    def __init__(self) -> None:
        self.notes = bytearray()
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._moved = asyncio.Event()

    def write(self, stream: int, data: memoryview) -> None:
        """See `Sink`."""
        if stream == 1:
            self._pieces.append(bytes(data))
            self._size += len(data)
        elif len(self.notes) + len(data) <= _ERRORS_MAX:
            self.notes += data
        else:
            raise ChannelViolation("one that talks too much")
        self._moved.set()

    @property
    def holds(self) -> bool:
        """See `Sink`."""
        return self._size > _HELD_BYTES

    async def moved(self, guest: GuestExec) -> None:
        """Wait until something came, or the end."""
        self._moved.clear()
        if guest.complete.done():
            return
        guest.complete.add_done_callback(lambda _: self._moved.set())
        await self._moved.wait()

    async def pieces(self, link: Link, guest: GuestExec) -> AsyncIterator[bytes]:
        """What it prints, piece by piece; it waits while nobody takes it."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._size -= len(piece)
                link.acknowledge(guest)
                yield piece
            if guest.complete.done():
                guest.complete.result()
                return
            await self.moved(guest)
