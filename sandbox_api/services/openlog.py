"""A log that the service itself writes (a sandbox's events, a run in a context); any number follow it."""

import asyncio
from pathlib import Path

from isolation.execlog import EventType, LogWriter


class OpenLog:
    """An exec log that is being written; goes on where an earlier server left it."""

    def __init__(self, path: Path, *, limit: int) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log = LogWriter(path, limit=limit)
        self._moved = asyncio.Event()
        self.closed = False

    @property
    def totals(self) -> tuple[int, int]:
        """Bytes of stdout and stderr so far."""
        return self._log.stdout, self._log.stderr

    @property
    def last(self) -> int:
        """The newest seq."""
        return self._log.last

    def append(self, type_: EventType, payload: bytes) -> int:
        """Write an event and return its seq; nothing (0) once it is closed."""
        if self.closed:
            return 0
        seq = self._log.append(type_, payload)
        self._log.reclaim()
        self._wake()
        return seq

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def close(self) -> None:
        """Write no more."""
        if not self.closed:
            self.closed = True
            self._log.close()
            self._wake()

    async def changed(self, after: int) -> None:
        """Wait for an event beyond after; at once when there will be none."""
        if not self.closed and self._log.last <= after:
            await self._moved.wait()
