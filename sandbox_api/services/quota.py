"""How many bytes of one kind each tenant has on this machine's disk. No I/O."""

from collections import Counter
from typing import Final

from sandbox_api.problems import Problem

ROW: Final = 256
"""Bytes that something costs however little is in it."""


class Quota:
    """The bytes of one kind, for each tenant no more than the limit; `what` they are, for people."""

    def __init__(self, limit_bytes: int, what: str, *, setting: str) -> None:
        self._limit = limit_bytes
        self._what = what
        self._setting = setting
        self._used: Counter[str] = Counter()

    def used(self, tenant: str) -> int:
        """Bytes that a tenant has."""
        return self._used[tenant]

    def take(self, tenant: str, size: int) -> None:
        """Let a tenant have so many bytes more; Problem (507) beyond the limit."""
        if self._used[tenant] + size > self._limit:
            raise Problem(
                507,
                "quota_full",
                f"{self._what} take {self._used[tenant] >> 20} MiB, and {self._limit >> 20} are the most",
                hint=f"wait until some are forgotten, or have the operator raise {self._setting}",
            )
        self._used[tenant] += size

    def add(self, tenant: str, size: int) -> None:
        """Count what is there already, whether that is too much or not."""
        self._used[tenant] += size

    def give(self, tenant: str, size: int) -> None:
        """They are gone."""
        self._used[tenant] = max(0, self._used[tenant] - size)
        if not self._used[tenant]:
            del self._used[tenant]
