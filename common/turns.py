"""A budget of work for each turn of the event loop, shared by all that have plenty of work at hand.

Everything runs in one loop, so whoever works off a long log or a full pipe without a pause keeps everybody else
waiting. Such work is cut into pieces. A piece is done when the turn has budget left, otherwise it waits in line for a
later turn; meanwhile the loop serves whatever else is ready. Short work asks nobody.

A piece that costs more than a turn has is done nevertheless; the turns that follow pay for it before others like it
come. Costs are counted in bytes, and whatever costs time without being bytes (a frame, a line, an event) counts as so
many.
"""

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

LIMIT: Final = 512 << 10
"""Bytes of work a turn."""


class TurnBudget:
    """The budget of one loop; see the module."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.largest = 0
        """The most that one turn has done so far, in bytes."""
        self._loop = asyncio.get_running_loop()
        self._spent = 0
        self._done = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._turning = False

    @property
    def exhausted(self) -> bool:
        """Whether a newcomer has to wait: nothing is left, or others stand in line."""
        return self._spent >= self.limit or bool(self._waiting)

    def spend(self, cost: int) -> None:
        """Count work of this turn."""
        self._spent += cost
        self._done += cost
        self.largest = max(self.largest, self._done)
        self._turn_over()

    def later(self, piece: Callable[[], None]) -> None:
        """Call piece, which spends, in a later turn: behind all that stand in line."""
        self._waiting.append(piece)
        self._turn_over()

    async def take(self, cost: int) -> None:
        """Spend cost as soon as there is budget for it."""
        if not self.exhausted:
            self.spend(cost)
            return
        granted = self._loop.create_future()

        def grant() -> None:
            if not granted.done():
                self.spend(cost)
                granted.set_result(None)

        self.later(grant)
        await granted

    def _turn_over(self) -> None:
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        self._spent = max(0, self._spent - self.limit)
        self._done = 0
        while self._waiting and self._spent < self.limit:
            self._waiting.popleft()()
        if self._waiting or self._spent:
            self._turn_over()


_asides: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]" = weakref.WeakKeyDictionary()


async def aside(deed: Callable[[], T]) -> T:
    """Do long work in a thread, one at a time: several threads of Python would leave the loop a small share."""
    async with _asides.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        return await asyncio.to_thread(deed)


_budgets: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, TurnBudget]" = weakref.WeakKeyDictionary()


def turn_budget() -> TurnBudget:
    """The budget of the running loop."""
    loop = asyncio.get_running_loop()
    if (budget := _budgets.get(loop)) is None:
        budget = _budgets[loop] = TurnBudget()
    return budget
