"""Whether sandboxes can be created here now, and if not, why: looked at, not remembered, as far as that is cheap.

What cannot be looked at is tried: when a creation has failed, a plain one follows at once. If that fails as well, the
server is not ready until one has succeeded, and tries again by itself, less and less often.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

from common.errors import IsoboxError
from common.owners import read_identity
from isolation.sandbox import Machine

_log = structlog.get_logger(__name__)
_FREE_MIN: Final = 8 << 20
_TRY_AFTER_S: Final = 1.0
_TRY_MAX_S: Final = 30.0


class Readiness:
    """See the module."""

    def __init__(
        self,
        machine: Machine,
        state: Path,
        owner: str,
        network: Callable[[], str | None],
        probe: Callable[[], Awaitable[None]],
    ) -> None:
        """Look through network at what is wrong there; try through probe, which raises what prevents a creation."""
        self._machine = machine
        self._state = state
        self._owner = owner
        self._network = network
        self._probe = probe

    def problems(self) -> list[str]:
        """Say why no sandbox can be created; empty where nothing speaks against it."""
        found = []
        if read_identity(self._state) != self._owner:
            found.append(f"the state directory {self._state} was removed or replaced")
        if not os.access(self._machine.runsc.path, os.X_OK):
            found.append(f"runsc is gone: {self._machine.runsc.path}")
        if (free := _free(self._state)) is not None and free < _FREE_MIN:
            found.append(f"the disk of {self._state} is full")
        if (trouble := self._network()) is not None:
            found.append(trouble)
        if (failure := self._machine.attempts.failure) is not None:
            found.append(f"a sandbox could not be created: {failure or type(failure).__name__}")
        return found

    async def run(self) -> None:
        """Try whenever a creation failed, until one succeeds, for ever."""
        attempts = self._machine.attempts
        while True:
            await attempts.doubted.wait()
            pause = _TRY_AFTER_S
            while not await self._try():
                await asyncio.sleep(pause)
                pause = min(pause * 2, _TRY_MAX_S)
            attempts.doubted.clear()
            await asyncio.sleep(_TRY_AFTER_S)  # a tenant whose creations fail costs one of ours a second

    async def _try(self) -> bool:
        try:
            await self._probe()
        except (IsoboxError, OSError, TimeoutError) as error:
            _log.warning("no sandbox can be created", error=str(error))
            self._machine.attempts.note(error)
            return False
        self._machine.attempts.note(None)
        return True


def _free(path: Path) -> int | None:
    try:
        facts = os.statvfs(path)
    except FileNotFoundError:
        return None
    return facts.f_bavail * facts.f_frsize
