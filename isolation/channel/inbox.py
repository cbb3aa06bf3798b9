"""Output of something short-lived, passed on piece by piece instead of into a log; bounded by what is acknowledged."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from isolation.channel.link import GuestExec, Link

_HELD_BYTES: Final = 512 << 10
_ERRORS_MAX: Final = 64 << 10
_PIECE_MAX: Final = 64 << 10


class Inbox:
    """A sink (`isolation.channel.link.Sink`): stdout through a bounded queue, stderr kept whole."""

    def __init__(self) -> None:
        self.notes = bytearray()
        self.overflowed = False
        """Whether it wrote more to stderr than is kept: the rest is gone."""
        self.heard = 0
        """Bytes that came, of both streams."""
        self._pieces: deque[bytearray] = deque()
        self._size = 0
        self._moved = asyncio.Event()
        self._awaits_end = False

    def write(self, stream: int, data: memoryview) -> None:
        """See `Sink`."""
        self.heard += len(data)
        if stream == 1:
            self._size += len(data)
            if self._pieces and len(self._pieces[-1]) + len(data) <= _PIECE_MAX:
                self._pieces[-1] += data  # byte by byte a queue of bytes would be one of objects
            else:
                self._pieces.append(bytearray(data))
        elif len(self.notes) + len(data) <= _ERRORS_MAX:
            self.notes += data
        else:
            self.overflowed = True
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
        if not self._awaits_end:
            self._awaits_end = True
            guest.complete.add_done_callback(lambda _: self._moved.set())
        await self._moved.wait()

    async def pieces(self, link: Link, guest: GuestExec) -> AsyncIterator[bytes]:
        """What it prints, piece by piece; it waits while nobody takes it."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._size -= len(piece)
                link.acknowledge(guest)
                yield bytes(piece)
            if guest.complete.done():
                guest.complete.result()
                return
            await self.moved(guest)
