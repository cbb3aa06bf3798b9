"""The inputs of one function that wait: call by call in turn, so that a long one does not hold up a short one. Pure."""

from collections import OrderedDict, deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """An input that waits; not before a moment (seconds since the epoch). depth: so many calls wait for its call."""

    call: str
    index: int
    not_before: float = 0.0
    depth: int = 0


class InputQueue:
    """See the module."""

    def __init__(self) -> None:
        self._calls: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self._later: list[Waiting] = []

    def __len__(self) -> int:
        return sum(len(each) for each in self._calls.values())

    @property
    def later(self) -> int:
        """How many wait for their moment."""
        return len(self._later)

    def put(self, waiting: Waiting, *, first: bool = False) -> None:
        """Add one, at the end of its call's or in front."""
        if waiting.not_before:
            self._later.append(waiting)
            return
        mine = self._calls.setdefault(waiting.call, deque())
        if first:
            mine.appendleft(waiting)
        else:
            mine.append(waiting)

    def take(self, *, below: int = -1) -> Waiting | None:
        """The next, of the call whose turn it is among those that are deeper than below."""
        call = next((call for call, mine in self._calls.items() if mine[0].depth > below), None)
        if call is None:
            return None
        mine = self._calls[call]
        found = mine.popleft()
        if mine:
            self._calls.move_to_end(call)
        else:
            del self._calls[call]
        return found

    def ripen(self, now: float) -> float | None:
        """Those whose moment has come wait like others now; the next moment."""
        for each in [each for each in self._later if each.not_before <= now]:
            self._later.remove(each)
            self.put(Waiting(each.call, each.index, depth=each.depth), first=True)
        return min((each.not_before for each in self._later), default=None)

    def drop(self, call: str) -> list[Waiting]:
        """Take all of a call out."""
        found = [*self._calls.pop(call, ()), *(each for each in self._later if each.call == call)]
        self._later = [each for each in self._later if each.call != call]
        return found

    def drain(self) -> list[Waiting]:
        """Take all out."""
        found = [*(each for mine in self._calls.values() for each in mine), *self._later]
        self._calls.clear()
        self._later = []
        return found
