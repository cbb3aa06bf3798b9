"""Which address belongs to which name, for one sandbox: what its own questions were answered with. No I/O."""

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Final

SHORTEST_S: Final = 60.0
LONGEST_S: Final = 3600.0
NAMES_MAX: Final = 4096
_ADDRESSES_MAX: Final = 64


class Pins:
    """Pins of one sandbox, and the answers that they came with. Times in seconds on a clock that never goes back."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[float, float, tuple[IPv4Address, ...]]] = {}
        self._at: dict[IPv4Address, dict[str, float]] = {}

    def add(self, name: str, addresses: Iterable[IPv4Address], ttl: float, now: float) -> bool:
        """Pin a name for its time to live, a minute at least and an hour at most; False where there are too many."""
        kept = tuple(addresses)[:_ADDRESSES_MAX]
        if name not in self._names and len(self._names) >= NAMES_MAX:
            self._expire(now)
            if len(self._names) >= NAMES_MAX:
                return False
        until = now + min(max(ttl, SHORTEST_S), LONGEST_S)
        # What it was pinned to before stays so for its own time: a program may have it still.
        self._names[name] = now + min(ttl, LONGEST_S), until, kept
        for address in kept:
            names = self._at.setdefault(address, {})
            names[name] = max(until, names.get(name, 0.0))
        return True

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
        self._names = {name: each for name, each in self._names.items() if name in kept}
        for address in list(self._at):
            left = {name: until for name, until in self._at[address].items() if name in kept}
            if left:
                self._at[address] = left
            else:
                del self._at[address]

    def all(self) -> set[str]:
        """The names that have pins."""
        return {name for names in self._at.values() for name in names}

    def _expire(self, now: float) -> None:
        self.keep({name for names in self._at.values() for name, until in names.items() if until > now})
