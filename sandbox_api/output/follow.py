"""Following a log: from any point to its end, whoever writes it and whether or not that is over."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from common.turns import turn_budget
from isolation.execlog import Event, EventType, Gap, LogReader

_READ: Final = 256 << 10
_EVENT_COST: Final = 4 << 10

Changed = Callable[[int, str], Awaitable[None]]
"""Waits until there is more than seq for that follower, or the log is complete."""


async def follow(
    path: Path, after: int, changed: Changed, unfollow: Callable[[str], None]
) -> AsyncIterator[Event | Gap]:
    """Every event beyond after, once and in order, up to the one that ends the log.

    The file is the only buffer: a slow consumer costs nothing. A quick one takes its turn with others that read much
    (`common.turns`), and so hears of it when its client goes. FileNotFoundError if there is no such log.
    """
    follower, turn = secrets.token_hex(8), turn_budget()
    with LogReader(path) as reader:
        try:
            final_look = False
            while True:
                events = reader.read(after, budget=_READ)
                for event in events:
                    await turn.take(_cost(event))
                    yield event
                    after = event.seq
                    if isinstance(event, Event) and event.type == EventType.EXIT:
                        return
                if events:
                    final_look = False
                    continue
                if final_look:  # nobody writes it any more, and it has no end: its server was killed
                    return
                await changed(after, follower)
                final_look = reader.last <= after
        finally:
            unfollow(follower)


def _cost(event: Event | Gap) -> int:
    return _EVENT_COST + (len(event.payload) if isinstance(event, Event) else 0)


async def wait_end(path: Path, changed: Changed, unfollow: Callable[[str], None]) -> None:
    """Wait until the log has its last event, reading none of the others. FileNotFoundError if there is no such log."""
    follower = secrets.token_hex(8)
    with LogReader(path) as reader:
        try:
            while (last := reader.last) == 0 or reader.ending() is None:
                await changed(last, follower)
                if reader.last == last:  # nobody writes it any more, and it has no end: its server was killed
                    return
        finally:
            unfollow(follower)


def clip(path: Path, budget: int) -> tuple[bytes, bytes, tuple[int, int], dict[int, tuple[int, int]]]:
    """Stdout and stderr within budget bytes each, head and tail kept.

    Returns (stdout, stderr, their full sizes, {stream: (from, to)} of what was left out). Each stream has half of
    the budget, and what the other does not need.
    """
    with LogReader(path) as reader:
        totals = reader.totals()
        shares = _shares(totals, budget)
        parts: list[bytes] = []
        omitted: dict[int, tuple[int, int]] = {}
        for stream, (total, share) in enumerate(zip(totals, shares, strict=True), 1):
            if total <= share:
                begin, data = reader.stream(stream, 0, total)
                if begin == 0 and len(data) == total:
                    parts.append(data)
                    continue
            head = reader.stream(stream, 0, (share + 1) // 2)[1]
            begin, tail = reader.stream(stream, total - share // 2, share // 2)
            parts.append(head + tail)
            omitted[stream] = (len(head), begin if tail else total)
        return parts[0], parts[1], totals, omitted


def _shares(totals: tuple[int, int], budget: int) -> tuple[int, int]:
    half = budget // 2
    out = min(totals[0], max(half, budget - totals[1]))
    return out, min(totals[1], budget - out)
