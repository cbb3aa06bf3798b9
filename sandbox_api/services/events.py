"""A sandbox's own events (state changes, warnings, its end), in a log like an exec's."""

import asyncio
import json
from pathlib import Path
from typing import Any, Final

from isolation.execlog import EventType, LogWriter

_LIMIT: Final = 4 << 20


class EventLog:
    """The events of one live sandbox; any number follow."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log = LogWriter(path, limit=_LIMIT)
        self._moved = asyncio.Event()
        self._closed = False

    def add(self, type_: str, *, last: bool = False, **data: Any) -> None:
        """Write an event; the last one ends the log."""
        if self._closed:
            return
        kind = EventType.EXIT if last else EventType.SANDBOX
        self._log.append(kind, json.dumps({"type": type_, **data}).encode())
        self._log.reclaim()
        self._wake()
        if last:
            self.close()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def close(self) -> None:
        """Write no more."""
        if not self._closed:
            self._closed = True
            self._log.close()
            self._wake()

    async def changed(self, after: int, _follower: str) -> None:
        """Wait for an event beyond after; at once when there will be none."""
        if not self._closed and self._log.last <= after:
            await self._moved.wait()
