"""Cuts off clients that read nothing of what they were sent."""

import asyncio


class UnreadWatch:
    """Aborts a connection of whose unsent bytes none went out for so many seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Watch from now on; nothing changes if that is so already."""
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._look, seconds, self._unsent())

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, seconds: float, before: int) -> None:
        unsent = self._unsent()
        if unsent >= before:
            self._timer = None
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(seconds, self._look, seconds, unsent)

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size()
