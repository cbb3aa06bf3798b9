"""Freezes the sandboxes that nobody uses: an idle sentry of 2024 polls, 3 % of a core each (newer ones park).

Nobody uses a sandbox when no exec, file operation, connection or context run holds it, and what runs in the
background inside has no connection to the outside and sleeps: between two looks no process came, went or was charged
time, and the whole control group used little (a task that makes no system call is charged when it next makes one; an
idle sentry polls). Whoever uses the sandbox next thaws it, in a tenth of a millisecond. What is to go on by its own
clock has to be an exec.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from common.errors import IsoboxError
from isolation.sandbox import Sandbox

_log = structlog.get_logger(__name__)
_IDLE_CORES: Final = 0.2
"""An idle sentry of 20240729 with some sleeping processes uses 0.03 to 0.07."""


@dataclass(frozen=True, slots=True)
class _Look:
    """A sandbox at a moment: its background processes with their time, and the group's CPU seconds."""

    at: float
    inside: frozenset[tuple[int, str]]
    cpu_s: float


class Freezer:
    """See the module."""

    def __init__(
        self,
        after_s: float,
        sandboxes: Callable[[], Iterable[Sandbox]],
        *,
        connections: Callable[[str], Awaitable[int]],
    ) -> None:
        """after_s: how long nobody has used a sandbox before it is frozen, in seconds.

        connections tells how many a sandbox has to the outside: whoever is at their other end waits for an answer.
        """
        self._connections = connections
        self._after_s = after_s
        self._sandboxes = sandboxes
        self._seen: dict[str, _Look] = {}

    async def run(self) -> None:
        """Look at all of them again and again, for ever."""
        while True:
            await asyncio.sleep(self._after_s / 2)
            idle = [each for each in self._sandboxes() if self._idle(each)]
            self._seen = {each.id: self._seen[each.id] for each in idle if each.id in self._seen}
            for each in idle:
                try:
                    if await self._quiet(each) and self._idle(each):
                        each.freeze()
                        self._seen.pop(each.id, None)
                except (IsoboxError, TimeoutError, OSError) as error:  # it has just ended, or will soon be found so
                    _log.info("not frozen", sandbox=each.id, error=str(error))

    def _idle(self, sandbox: Sandbox) -> bool:
        return not sandbox.frozen and not sandbox.used and time.monotonic() - sandbox.idle_since >= self._after_s

    async def _quiet(self, sandbox: Sandbox) -> bool:
        inside = await sandbox.control.processes()
        background = frozenset((each.pid, each.cpu_time) for each in inside if each.pid != 1)
        now = _Look(time.monotonic(), background, sandbox.usage().cpu_s)
        before, self._seen[sandbox.id] = self._seen.get(sandbox.id), now
        if not background:
            return True
        if await self._connections(sandbox.id):
            return False
        if before is None or before.inside != now.inside:
            return False
        return now.cpu_s - before.cpu_s < _IDLE_CORES * (now.at - before.at)
