"""Audit records on their way to the server: kept until it has written them down, bounded.

While the server is away they wait here. When there is no room for another, the gateway lets nothing new begin.
"""

import asyncio
import secrets
from collections import Counter, deque
from typing import Final

from netpolicy.audit import Record

LIMIT: Final = 8192
_SHARES: Final = 4
_LEAST: Final = 16
"""Refusals that every sandbox may have waiting, while there is room at all."""
_RESERVE: Final = 1024
"""Places that only ends and refusals may take, so that what goes on can still be accounted for."""


class Journal:
    """See the module."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.boot = secrets.token_hex(4)
        self.lost = 0
        """Records of ends and refusals that found no room."""
        self._limit = limit
        self._seq = 0
        self._waiting: deque[Record] = deque()
        self._of: Counter[str] = Counter()
        self._moved = asyncio.Event()

    def full(self, sandbox: str) -> bool:
        """Whether nothing new may begin for a sandbox: there is no room, or it has taken its share of it."""
        return self._of[sandbox] >= min(self._limit // _SHARES, self._limit - _RESERVE - len(self._waiting))

    @property
    def last(self) -> int:
        """The newest record's number."""
        return self._seq

    def add(self, record: Record) -> None:
        """Write a record down; refusals, which a sandbox makes at will, while it leaves room for others'."""
        room = self._limit - len(self._waiting)
        greedy = record.verdict == "refuse" and self._of[record.sandbox] > max(_LEAST, room // _SHARES)
        if not room or greedy:
            self.lost += 1
            return
        self._seq += 1
        record.boot, record.seq = self.boot, self._seq
        self._waiting.append(record)
        self._of[record.sandbox] += 1
        self._moved.set()

    def acknowledged(self, seq: int) -> None:
        """The server has those up to seq."""
        while self._waiting and self._waiting[0].seq <= seq:
            sandbox = self._waiting.popleft().sandbox
            self._of[sandbox] -= 1
            if not self._of[sandbox]:
                del self._of[sandbox]

    async def after(self, seq: int, most: int) -> list[Record]:
        """Wait for records beyond seq, and return the first of them."""
        while True:
            self._moved.clear()
            if found := [each for each in self._waiting if each.seq > seq][:most]:
                return found
            await self._moved.wait()
