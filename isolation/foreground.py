"""Work that somebody waits for, and the background's courtesy towards it."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Final

_CALM_S: Final = 0.05
_CALM_WITHIN_S: Final = 1.0


class Foreground:
    """Whoever serves a caller says so here; what can wait asks `calm` first."""

    def __init__(self) -> None:
        self._busy_at = 0.0
        self._working = 0

    def note(self) -> None:
        """Somebody works now."""
        self._busy_at = time.monotonic()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Somebody waits for what the block does."""
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            self.note()

    async def calm(self) -> None:
        """Wait until nobody has worked for a moment; not longer than a second."""
        deadline = time.monotonic() + _CALM_WITHIN_S
        while (now := time.monotonic()) < deadline:
            if not self._working and now >= self._busy_at + _CALM_S:
                return
            await asyncio.sleep(max(_CALM_S / 5, self._busy_at + _CALM_S - now))
