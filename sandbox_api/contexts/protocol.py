"""What a context's runner writes between the output of the code that it runs. No I/O.

The code's output is the interpreter's own stdout and stderr, so that what its children print is part of it, in order.
Between it stand frames, each written in one piece of at most PIPE_BUF bytes:

    MARK token(16 hex) kind(1) part(4 hex) more("+" or ".") length(4 hex) payload

A message larger than one frame comes in parts. The token is the context's own, so that no output looks like a frame by
accident; code that forges one deceives nobody but its own caller, and everything in a frame is bounded and checked.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from common.text import clean_json

MARK: Final = b"\x1eisobox:"
_TOKEN: Final = 16
_HEAD: Final = len(MARK) + _TOKEN + 1 + 4 + 1 + 4
PAYLOAD_MAX: Final = 4000
MESSAGE_MAX: Final = 16 << 20

READY: Final = "S"
RESULT: Final = "R"
DONE: Final = "D"


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message of the runner's: its kind and what it says, unchecked beyond being JSON."""

    kind: str
    data: Any


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
        data = self._pending + data
        while True:
            at = data.find(self._mark)
            if at < 0:
                keep = _overlap(data, self._mark)
                self._pending = data[len(data) - keep :]
                if out := data[: len(data) - keep]:
                    yield out
                return
            if at:
                yield data[:at]
                data = data[at:]
            frame = _frame(data, len(self._mark))
            if frame is None:  # not whole yet
                self._pending = data
                return
            size, kind, part, more, payload = frame
            if size == 0:  # no frame after all
                yield data[: len(self._mark)]
                data = data[len(self._mark) :]
                continue
            data = data[size:]
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
        try:
            return Message(kind, json.loads(whole) if whole else None)
        except (ValueError, RecursionError):
            return None


def _frame(data: bytes, mark: int) -> tuple[int, str, int, bool, bytes] | None:
    """(size, kind, part, more, payload) of the frame that data begins with; None if cut, size 0 if it is none."""
    none = (0, "", 0, False, b"")
    head = data[mark:_HEAD]
    if len(head) < _HEAD - mark:
        return None
    try:
        part, length = int(head[1:5], 16), int(head[6:10], 16)
    except ValueError:
        return none
    if head[5:6] not in (b"+", b".") or length > PAYLOAD_MAX:
        return none
    if len(data) < _HEAD + length:
        return None
    return _HEAD + length, chr(head[0]), part, head[5:6] == b"+", data[_HEAD : _HEAD + length]


def _overlap(data: bytes, mark: bytes) -> int:
    """How many bytes at the end of data may begin a mark."""
    for size in range(min(len(mark) - 1, len(data)), 0, -1):
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
