"""How many containers a function should have. Pure: numbers and times in, a plan out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


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
class Plan:
    """So many to start; those to stop; the moment to look again, None if only work changes anything."""

    start: int = 0
    stop: list[str] = field(default_factory=list)
    look_at: float | None = None


def plan(bounds: Bounds, queued: int, containers: Sequence[Container], now: float) -> Plan:
    """What to do now.

    Enough for what is queued and in hand, and buffer more while there is any of that; no more than most, no fewer than
    least. One that has had no work for scaledown_s goes, the longest idle first.
    """
    busy = sum(each.busy for each in containers)
    needed = math.ceil((queued + busy) / bounds.concurrency)
    if needed:
        needed += bounds.buffer
    wanted = min(bounds.most, max(bounds.least, needed))
    if wanted > len(containers):
        return Plan(start=wanted - len(containers))
    idle = sorted(
        (each for each in containers if not each.busy and not each.starting), key=lambda each: each.idle_since
    )
    spare = idle[: len(containers) - wanted]
    due = [each for each in spare if each.idle_since + bounds.scaledown_s <= now]
    later = [each.idle_since + bounds.scaledown_s for each in spare if each not in due]
    return Plan(stop=[each.name for each in due], look_at=min(later, default=None))
