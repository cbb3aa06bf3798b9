"""A sandbox's own events (state changes, warnings, its end), in a log like an exec's."""

import json
from pathlib import Path
from typing import Any, Final

from isolation.execlog import EventType
from sandbox_api.services.openlog import OpenLog

_LIMIT: Final = 4 << 20
EVENTS: Final = "events"
"""The log's name among those of the sandbox's execs."""


class EventLog:
    """The events of one live sandbox; any number follow."""

    def __init__(self, path: Path) -> None:
        self._log = OpenLog(path, limit=_LIMIT)

    def add(self, type_: str, *, last: bool = False, **data: Any) -> None:
        """Write an event; the last one ends the log."""
        kind = EventType.EXIT if last else EventType.SANDBOX
        self._log.append(kind, json.dumps({"type": type_, **data}).encode())
        if last:
            self._log.close()

    async def changed(self, after: int, _follower: str) -> None:
        """Wait for an event beyond after; at once when there will be none."""
        await self._log.changed(after)
