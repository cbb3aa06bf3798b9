"""How many containers a function should have. Pure: numbers and times in, a plan out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_WEIGHT: Final = 0.2


@dataclass(frozen=True, slots=True)
class Bounds:
    """What its author asks for; scaledown_s is how long one waits without work before it goes."""

    least: int = 0
    most: int = 8
    buffer: int = 0
    concurrency: int = 1
    scaledown_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Container:
    """One that there is: inputs in hand, whether it is still starting, and since when it has no work."""

    name: str
    busy: int = 0
    starting: bool = False
    idle_since: float = 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long an input takes, as far as that can be said now, and how long a container takes to start; seconds."""

    input_s: float
    start_s: float


class Lately:
    """How long inputs and starts took, what is newer counting more."""

    def __init__(self) -> None:
        self._input_s: float | None = None
        self._start_s: float | None = None

    def done(self, input_s: float) -> None:
        """An input took so long."""
        self._input_s = _smoothed(self._input_s, input_s)

    def started(self, start_s: float) -> None:
        """A container took so long to start."""
        self._start_s = _smoothed(self._start_s, start_s)

    def pace(self, oldest_s: float) -> Pace | None:
        """What to reckon with, where one is in hand for oldest_s by now; None before there is anything to go by."""
        if self._input_s is None or self._start_s is None:
            return None
        return Pace(max(self._input_s, oldest_s), self._start_s)


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else before + _WEIGHT * (now - before)


@dataclass(frozen=True, slots=True)
class Plan:
    """So many to start; those to stop; the moment to look again, None if only work changes anything."""

    start: int = 0
    stop: list[str] = field(default_factory=list)
    look_at: float | None = None


def plan(bounds: Bounds, queued: int, containers: Sequence[Container], now: float, pace: Pace | None = None) -> Plan:
    """What to do now.

    Enough for what is queued and in hand, and buffer more while there is any of that; no more than most, no fewer than
    least. Where the pace is known none is started for a queue that those which are there have done before it would be
    ready: this is looked at again by then. One that has had no work for scaledown_s goes, the longest idle first.
    """
    busy = sum(each.busy for each in containers)
    needed = math.ceil((queued + busy) / bounds.concurrency)
    look_at = None
    if pace is not None and containers and needed > len(containers):
        worth = max(len(containers), math.ceil(queued * pace.input_s / (bounds.concurrency * max(pace.start_s, 0.001))))
        if worth < needed:
            needed, look_at = worth, now + pace.start_s
    if needed:
        needed += bounds.buffer
    wanted = min(bounds.most, max(bounds.least, needed))
    if wanted > len(containers):
        return Plan(start=wanted - len(containers), look_at=look_at)
    idle = sorted(
        (each for each in containers if not each.busy and not each.starting), key=lambda each: each.idle_since
    )
    spare = idle[: len(containers) - wanted]
    due = [each for each in spare if each.idle_since + bounds.scaledown_s <= now]
    later = [each.idle_since + bounds.scaledown_s for each in spare if each not in due]
    return Plan(stop=[each.name for each in due], look_at=min([*later, *([look_at] if look_at else [])], default=None))
