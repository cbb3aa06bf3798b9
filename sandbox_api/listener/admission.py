"""Decides which connections are let in, and which one has to go for another. No I/O.

A connection is busy from the end of a request's head to the end of its answer, and idle otherwise. Where there are too
many, the one that has been idle longest makes room: those who open connections and send nothing push out each other,
and whoever sends a request at once is served. Where none is idle, the new one is refused.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address, ip_address
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)


class Full(Enum):
    """Why a connection is refused."""

    ADDRESS = "address"
    SERVER = "server"


@dataclass(slots=True)
class _Address(Generic[C]):
    """The connections of one address; the one that has been idle longest comes first."""

    connections: int = 0
    idle: dict[C, None] = field(default_factory=dict)


class Admission(Generic[C]):
    """The connections that are open."""

    def __init__(self, *, most: int, per_address: int) -> None:
        self.most = most
        self.per_address = per_address
        self._addresses: dict[str, _Address[C]] = {}
        self._open: dict[C, str] = {}
        self._idle: dict[C, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: C, address: str) -> C | Full | None:
        """Let a new connection in, idle at first.

        Returns None, or the connection that the caller must close for it (it counts no more), or why there is no room.
        """
        there = self._addresses.get(address)
        victim: C | None = None
        if there is not None and there.connections >= self.per_address:
            if (victim := next(iter(there.idle), None)) is None:
                return Full.ADDRESS
        elif len(self._open) >= self.most and (victim := next(iter(self._idle), None)) is None:
            return Full.SERVER
        if victim is not None:
            self.leave(victim)
        there = self._addresses.setdefault(address, _Address())
        there.connections += 1
        self._open[connection] = address
        there.idle[connection] = self._idle[connection] = None
        return victim

    def busy(self, connection: C) -> None:
        """A request of it is being served."""
        if (address := self._open.get(connection)) is not None:
            self._idle.pop(connection, None)
            self._addresses[address].idle.pop(connection, None)

    def idle(self, connection: C) -> None:
        """All its requests were answered."""
        if (address := self._open.get(connection)) is not None:
            self._idle[connection] = self._addresses[address].idle[connection] = None

    def leave(self, connection: C) -> None:
        """It is closed. Idempotent."""
        if (address := self._open.pop(connection, None)) is None:
            return
        self._idle.pop(connection, None)
        there = self._addresses[address]
        there.idle.pop(connection, None)
        there.connections -= 1
        if not there.connections:
            del self._addresses[address]


def address_of(host: str) -> str:
    """What counts as one address: an IPv4 address, or an IPv6 /64, which is what one customer of a network is given."""
    try:
        ip = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(ip, IPv6Address):
        return host
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(IPv6Address(int(ip) >> 64 << 64))
