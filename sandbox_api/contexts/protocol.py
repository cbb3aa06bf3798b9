"""What a context's runner writes between the output of the code that it runs. No I/O.

The code's output is the interpreter's own stdout and stderr, so that what its children print is part of it, in order.
Between it stand frames, each written in one piece of at most PIPE_BUF bytes:

    MARK token(16 hex) kind(1) part(4 hex) more("+" or ".") length(4 hex) payload

A message larger than one frame comes in parts. The token is the context's own, so that no output looks like a frame by
accident; code that forges one deceives nobody but its own caller, and everything in a frame is bounded and checked.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from common.text import clean_json

MARK: Final = b"\x1eisobox:"
_TOKEN: Final = 16
_HEAD: Final = len(MARK) + _TOKEN + 1 + 4 + 1 + 4
PAYLOAD_MAX: Final = 4000
MESSAGE_MAX: Final = 16 << 20

ELEMENTS_MAX: Final = 500_000
"""Commas and brackets of one message; beyond them it is not read, for that would take too long."""

_ELEMENT_COST: Final = 100

READY: Final = "S"
RESULT: Final = "R"
DONE: Final = "D"
TOO_MUCH: Final = "-"
"""Stands for a message of more than ELEMENTS_MAX."""


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message of the runner's: its kind and what it says, unchecked beyond being JSON."""

    kind: str
    data: Any
    cost: int = field(default=0, compare=False)
    """What it took to read, as a size in bytes (`common.turns`)."""


class Splitter:
    """Takes one stream apart into output (bytes) and messages, wherever its pieces are cut."""

    def __init__(self, token: str) -> None:
        self._mark = MARK + token.encode()
        self._pending = b""
        self._kind = ""
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[bytes | Message]:
        """What data brings, in order; the rest of what may be a frame waits for more."""
        data, at = self._pending + data, 0
        while True:
            found = data.find(self._mark, at)
            if found < 0:
                end = len(data) - _overlap(data, self._mark, at)
                self._pending = data[end:]
                if end > at:
                    yield data[at:end]
                return
            if found > at:
                yield data[at:found]
                at = found
            frame = _frame(data, len(self._mark), at)
            if frame is None:  # not whole yet
                self._pending = data[at:]
                return
            size, kind, part, more, payload = frame
            if size == 0:  # no frame after all
                yield data[at : at + len(self._mark)]
                at += len(self._mark)
                continue
            at += size
            if (message := self._join(kind, part, more, payload)) is not None:
                yield message

    def _join(self, kind: str, part: int, more: bool, payload: bytes) -> Message | None:
        if part == 0:
            self._kind, self._parts, self._size = kind, [], 0
        elif part != len(self._parts) or kind != self._kind:  # its beginning was never seen
            self._kind = ""
            return None
        self._parts.append(payload)
        self._size += len(payload)
        if self._size > MESSAGE_MAX:
            self._kind, self._parts = "", []
            return None
        if more:
            return None
        whole, self._parts, self._kind = b"".join(self._parts), [], ""
        elements = sum(map(whole.count, (b",", b"[", b"{"))) if len(whole) > PAYLOAD_MAX else 0
        if elements > ELEMENTS_MAX:
            return Message(TOO_MUCH, None, len(whole))
        try:
            return Message(kind, json.loads(whole) if whole else None, len(whole) + elements * _ELEMENT_COST)
        except (ValueError, RecursionError):
            return None


def _frame(data: bytes, mark: int, at: int = 0) -> tuple[int, str, int, bool, bytes] | None:
    """(size, kind, part, more, payload) of the frame at that place; None if it is cut, size 0 if it is none."""
    none = (0, "", 0, False, b"")
    head = data[at + mark : at + _HEAD]
    if len(head) < _HEAD - mark:
        return None
    try:
        part, length = int(head[1:5], 16), int(head[6:10], 16)
    except ValueError:
        return none
    if head[5:6] not in (b"+", b".") or not 0 <= length <= PAYLOAD_MAX:
        return none
    end = at + _HEAD + length
    if len(data) < end:
        return None
    return _HEAD + length, chr(head[0]), part, head[5:6] == b"+", data[at + _HEAD : end]


def _overlap(data: bytes, mark: bytes, at: int = 0) -> int:
    """How many bytes at the end of data, from `at` on, may begin a mark."""
    for size in range(min(len(mark) - 1, len(data) - at), 0, -1):
        if data.endswith(mark[:size]):
            return size
    return 0


def unfinished(tail: bytes, token: str) -> bytes:
    """The part of a stream's end that belongs to a frame which is not whole there; tail holds at least one frame."""
    mark = MARK + token.encode()
    at = tail.rfind(mark)
    if at >= 0 and _frame(tail[at:], len(mark)) is None:
        return tail[at:]
    keep = _overlap(tail, mark)
    return tail[len(tail) - keep :]


def results(data: Any) -> dict[str, Any] | None:
    """A RESULT's payload as it may be told on: {mime: value}, cleaned; None for anything else."""
    if not isinstance(data, dict) or not data or len(data) > 32:
        return None
    if not all(isinstance(mime, str) and len(mime) <= 100 and "/" in mime for mime in data):
        return None
    cleaned: dict[str, Any] = clean_json(data)
    return cleaned
