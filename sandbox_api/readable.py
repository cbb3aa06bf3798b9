"""Lists of what is stored: an item that cannot be read is left out of its list, and does not spoil it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import structlog

Item = TypeVar("Item")
Result = TypeVar("Result")
_log = structlog.get_logger(__name__)
_UNREADABLE: Final = (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError)
"""What parsing a row, or describing a record to a client, fails with: pydantic's errors are ValueErrors."""


def readable(items: Iterable[Item], read: Callable[[Item], Result]) -> Iterator[Result]:
    """Read each item; one that fails is told in the server's log, with its id where it has one."""
    for item in items:
        try:
            result = read(item)
        except _UNREADABLE as error:
            named = getattr(item, "id", None) or str(item)[:200]
            _log.error("a stored record cannot be read", record=named, error=f"{type(error).__name__}: {error}"[:500])
            continue
        yield result
