"""Which address belongs to which name, for one sandbox: what its own questions were answered with. No I/O."""

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import Final

SHORTEST_S: Final = 60.0
LONGEST_S: Final = 3600.0
NAMES_MAX: Final = 4096
PAIRS_MAX: Final = 16384
"""Names with their addresses: a name may have others each time that it is asked for."""
_ADDRESSES_MAX: Final = 64


class Pins:
    """Pins of one sandbox, and the answers that they came with. Times in seconds on a clock that never goes back."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[float, float, tuple[IPv4Address, ...]]] = {}
        self._at: dict[IPv4Address, dict[str, float]] = {}
        self._pairs = 0
        self._next_end = 0.0
        """When the first of them ends, as of the last time that there was no room."""

    def add(self, name: str, addresses: Iterable[IPv4Address], ttl: float, now: float) -> bool:
        """Pin a name for its time to live, a minute at least and an hour at most; False where there are too many."""
        kept = tuple(dict.fromkeys(addresses))[:_ADDRESSES_MAX]
        if not self._has_room(name, kept) and now >= self._next_end:
            self._expire(now)
        if not self._has_room(name, kept):
            return False
        until = now + min(max(ttl, SHORTEST_S), LONGEST_S)
        # What it was pinned to before stays so for its own time: a program may have it still.
        self._names[name] = now + min(ttl, LONGEST_S), until, kept
        for address in kept:
            names = self._at.setdefault(address, {})
            self._pairs += name not in names
            names[name] = max(until, names.get(name, 0.0))
        return True

    def _has_room(self, name: str, addresses: tuple[IPv4Address, ...]) -> bool:
        more = sum(name not in self._at.get(address, ()) for address in addresses)
        return (name in self._names or len(self._names) < NAMES_MAX) and self._pairs + more <= PAIRS_MAX

    def answer(self, name: str, now: float) -> tuple[tuple[IPv4Address, ...], int] | None:
        """The addresses of a name and for how many seconds yet, while its time to live lasts."""
        fresh, _, addresses = self._names.get(name, (0.0, 0.0, ()))
        return (addresses, max(1, int(fresh - now))) if fresh > now and addresses else None

    def names(self, address: IPv4Address, now: float) -> list[str]:
        """The names that are pinned to an address."""
        return [name for name, until in self._at.get(address, {}).items() if until > now]

    def keep(self, wanted: Iterable[str]) -> None:
        """Drop the pins of all other names."""
        kept = set(wanted)
        self._filter(lambda name, _: name in kept)

    def _filter(self, stays: Callable[[str, float], bool]) -> None:
        at = {
            address: {name: until for name, until in names.items() if stays(name, until)}
            for address, names in self._at.items()
        }
        self._at = {address: names for address, names in at.items() if names}
        self._pairs = sum(map(len, self._at.values()))
        left = self.all()
        self._names = {name: answer for name, answer in self._names.items() if name in left}

    def all(self) -> set[str]:
        """The names that have pins."""
        return {name for names in self._at.values() for name in names}

    def _expire(self, now: float) -> None:
        self._filter(lambda _, until: until > now)
        self._next_end = min((until for names in self._at.values() for until in names.values()), default=0.0)
