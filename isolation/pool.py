"""Ready sandboxes, frozen while they wait: a claim takes milliseconds where a creation takes a tenth of a second.

A shelf for each shape (image, memory, disk; started, created for a restore, or restored from a copy that is asked for).
Processors and processes are limited at the claim. Made in the background one at a time, with a small share of the
processor, and only as far as the demand of late asks for it (shelf.py). A server that is killed leaves them to the next
one's `reclaim`.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from common.errors import IsoboxError
from common.ids import new_id
from common.tasks import TaskOwner
from isolation.foreground import Foreground
from isolation.sandbox import Machine, Sandbox
from isolation.shelf import Demand, Shelf
from isolation.spec import BARE, DEFAULT, Equipment

_log = structlog.get_logger(__name__)
_MAX_AGE_S: Final = 1800.0
_LOOK_EVERY_S: Final = 5.0
_EXPECTED_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """What cannot be changed once a sandbox is created."""

    image: Path
    memory_mb: int
    disk_mb: int
    started: bool = True
    namespaces: bool = False
    equipment: Equipment = BARE
    copy: str = ""
    """The name of the copy that it goes on from, if it does."""

    @property
    def plain(self) -> bool:
        """Whether it is made of nothing but an image."""
        return not self.copy and self.equipment == BARE

    @property
    def kind(self) -> str:
        """For the metrics."""
        if self.equipment != BARE:
            return "equipped"
        return "restored" if self.copy else "started" if self.started else "created"


@dataclass(frozen=True, slots=True)
class Ready:
    """A sandbox that waits; of a restored one, its execs by the ids that they had in the original."""

    sandbox: Sandbox
    execs: Mapping[str, str]


Furnish = Callable[[Shape, Sandbox], Awaitable[Mapping[str, str]]]
"""Brings a created sandbox into its shape; what it returns is `Ready.execs`."""


@dataclass(frozen=True, slots=True)
class ShelfFacts:
    """A shelf as the metrics tell of it; age in seconds of its oldest."""

    shape: Shape
    ready: int
    hits: int
    misses: int
    age_s: float


class Pool:
    """See the module."""

    def __init__(
        self,
        machine: Machine,
        foreground: Foreground,
        *,
        floor: int,
        ceiling: int,
        furnish: Furnish,
        discard: Callable[[Sandbox], Coroutine[Any, Any, None]],
    ) -> None:
        """Floor holds for the shapes of `keep_warm`, ceiling for each shape; 0 makes no pool at all."""
        self._machine = machine
        self._foreground = foreground
        self._furnish = furnish
        self._end = discard
        self._floor = min(floor, ceiling)
        self._ceiling = ceiling
        self._shelves: dict[Shape, Shelf[Ready]] = {}
        self._expected: dict[Shape, None] = {}
        self._moved = asyncio.Event()
        self._discards = TaskOwner()

    def _shelf(self, shape: Shape) -> Shelf[Ready]:
        if (shelf := self._shelves.get(shape)) is None:
            # What has something of the host's for itself can be there once.
            ceiling = self._ceiling if shape.equipment == BARE else min(1, self._ceiling)
            shelf = self._shelves[shape] = Shelf(Demand(floor=0, ceiling=ceiling))
        return shelf

    def keep_warm(self, shape: Shape) -> None:
        """Hold at least the floor of this shape from now on; an older image loses its own."""
        for other, shelf in self._shelves.items():
            if other.started and not other.copy and not shape.copy:
                shelf.demand.floor = 0
        self._shelf(shape).demand.floor = self._floor
        self._moved.set()

    def expect(self, shape: Shape) -> None:
        """One of this shape will be wanted, nobody knows when: hold one of each of the last few such shapes."""
        self._expected.pop(shape, None)
        self._expected[shape] = None
        self._shelf(shape).demand.floor = min(1, self._floor)
        self._moved.set()
        if len(self._expected) > _EXPECTED_MAX:
            oldest = next(iter(self._expected))
            del self._expected[oldest]
            self._shelf(oldest).demand.floor = 0

    def forget(self, copy: str) -> None:
        """That copy is gone: so is what was made of it, and not claimed."""
        for shape in [each for each in self._shelves if each.copy == copy]:
            self._discard(self._shelves.pop(shape).clear())

    def claim(self, shape: Shape) -> Ready | None:
        """A ready sandbox, still frozen, which is the caller's alone; None where there is none."""
        if not self._ceiling:
            return None
        self._foreground.note()
        found, doubtful = self._shelf(shape).claim(time.monotonic(), lambda each: each.sandbox.alive)
        self._discard(doubtful)
        self._moved.set()
        return found

    def _discard(self, ready: list[Ready]) -> None:
        for each in ready:
            self._discards.spawn(self._end(each.sandbox), name=f"discard {each.sandbox.id}")

    async def run(self) -> None:
        """Keep the shelves as the demand wants them, for ever."""
        while True:
            self._moved.clear()
            now = time.monotonic()
            for shape, shelf in list(self._shelves.items()):
                self._discard(shelf.surplus(now, max_age_s=_MAX_AGE_S))
                if not len(shelf) and not shelf.demand.floor and not shelf.demand.target(now):
                    del self._shelves[shape]
            short = max(self._shelves.items(), key=lambda each: each[1].shortage(now), default=None)
            if short is None or not short[1].shortage(now):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._moved.wait()
            else:
                await self._foreground.calm()
                await self._make(*short)

    async def _make(self, shape: Shape, shelf: Shelf[Ready]) -> None:
        resources = replace(DEFAULT, memory_mb=shape.memory_mb, disk_mb=shape.disk_mb, namespaces=shape.namespaces)
        try:
            sandbox = await Sandbox.prepare(
                self._machine,
                new_id("sbx"),
                image=shape.image,
                resources=resources,
                equipment=shape.equipment,
                in_background=True,
            )
            try:
                execs = await self._furnish(shape, sandbox)
                sandbox.freeze()
            except BaseException:
                await self._end(sandbox)
                raise
        except Exception as error:  # whatever it was, the pool goes on, and backs off
            pause = shelf.failed(time.monotonic())
            known = isinstance(error, IsoboxError | OSError | TimeoutError)
            say = _log.warning if known else _log.error
            say("could not fill the pool", error=str(error), pause_s=pause, exc_info=None if known else error)
            if shape.plain:
                self._machine.attempts.note(error)
            return
        if shape.plain:
            self._machine.attempts.note(None)
        if self._shelves.get(shape) is shelf:
            shelf.put(time.monotonic(), Ready(sandbox, execs))
        else:  # forgotten meanwhile; not ended here, where the end of the server would cut that short
            self._discard([Ready(sandbox, execs)])

    async def drain(self) -> None:
        """End everything that waits; `run` has been cancelled."""
        for shelf in self._shelves.values():
            self._discard(shelf.clear())
        self._shelves.clear()
        await self._discards.finished()

    def facts(self) -> list[ShelfFacts]:
        """What the metrics tell."""
        now = time.monotonic()
        return [
            ShelfFacts(shape, len(shelf), shelf.hits, shelf.misses, shelf.age_s(now))
            for shape, shelf in self._shelves.items()
        ]
