"""What is kept ready and how much of it: planning alone, no I/O.

A shelf holds ready things of one shape. Whoever claims takes one off; whoever makes puts one on; the demand says how
many there should be. A thing is handed out at most once, because taking it off is all that a claim does.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")
_HALF_LIFE_S: Final = 30.0
_CLAIMS_PER_PLACE: Final = 3.0
_BACK_OFF_S: Final = 0.5
_BACK_OFF_MAX_S: Final = 60.0


class Demand:
    """How many to keep ready, from how often they were asked for of late.

    The level is the count of claims with a half-life of 30 seconds: a burst raises it at once, silence lets it fall.
    """

    def __init__(self, *, floor: int, ceiling: int) -> None:
        self.floor = floor
        self.ceiling = ceiling
        self._level = 0.0
        self._at = 0.0

    def _decayed(self, now: float) -> float:
        return float(self._level * 0.5 ** (max(0.0, now - self._at) / _HALF_LIFE_S))

    def asked(self, now: float) -> None:
        """Somebody wanted one, at `now` seconds on a clock that never goes back."""
        self._level = self._decayed(now) + 1.0
        self._at = now

    def target(self, now: float) -> int:
        """How many there should be; between floor and ceiling."""
        level = self._decayed(now)
        wanted = math.ceil(level / _CLAIMS_PER_PLACE) if level > 0.5 else 0
        return min(self.ceiling, max(self.floor, wanted))


class Shelf(Generic[T]):
    """Ready things of one shape, the oldest first, with counts of hits and misses."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.hits = 0
        self.misses = 0
        self._stock: deque[tuple[float, T]] = deque()
        self._failures = 0
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._stock)

    def age_s(self, now: float) -> float:
        """Of the oldest; 0 where there is none."""
        return now - self._stock[0][0] if self._stock else 0.0

    def claim(self, now: float, usable: Callable[[T], bool]) -> tuple[T | None, list[T]]:
        """Take one that is usable: (it, or None; those found unusable on the way, to be discarded)."""
        self.demand.asked(now)
        doubtful: list[T] = []
        while self._stock:
            _, thing = self._stock.pop()  # the newest: its caches are the warmest
            if usable(thing):
                self.hits += 1
                return thing, doubtful
            doubtful.append(thing)
        self.misses += 1
        return None, doubtful

    def put(self, now: float, thing: T) -> None:
        """Add what was made."""
        self._failures = 0
        self._stock.append((now, thing))

    def failed(self, now: float) -> float:
        """Making one failed; returns how many seconds to wait before the next attempt, longer each time."""
        pause = min(_BACK_OFF_MAX_S, _BACK_OFF_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self._not_before = now + pause
        return pause

    def shortage(self, now: float) -> int:
        """How many to make now; 0 while backing off."""
        return 0 if now < self._not_before else max(0, self.demand.target(now) - len(self._stock))

    def surplus(self, now: float, *, max_age_s: float) -> list[T]:
        """Take off what is too old or too many, to be discarded."""
        found: list[T] = []
        while self._stock and (len(self._stock) > self.demand.target(now) + 1 or now - self._stock[0][0] > max_age_s):
            found.append(self._stock.popleft()[1])
        return found

    def clear(self) -> list[T]:
        """Take everything off."""
        found = [thing for _, thing in self._stock]
        self._stock.clear()
        return found
