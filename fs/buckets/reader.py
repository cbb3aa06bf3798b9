"""An object, read at any offset: what is read straight on is fetched ahead, in ever larger parts.

What all readers of a sandbox hold is bounded (`fs.buckets.share.Ahead`): a part that had to go is fetched again.
"""

from concurrent.futures import Executor, Future
from typing import Final

from fs.buckets.objects import Objects
from fs.buckets.pages import Facts
from fs.buckets.share import Ahead

_FIRST: Final = 256 << 10
_LARGEST: Final = 8 << 20


class Reader:
    """One open file. It may be used by one thread at a time; parts are fetched by the executor's."""

    def __init__(self, objects: Objects, key: str, facts: Facts, executor: Executor, ahead: Ahead) -> None:
        self._objects = objects
        self._key = key
        self.facts = facts
        self._executor = executor
        self._ahead = ahead
        self._parts: list[tuple[int, int, Future[bytes]]] = []
        """Those at hand or coming, two at most: offset, length, bytes."""
        self._next = 0
        self._step = _FIRST

    def read(self, offset: int, length: int) -> bytes:
        """Those bytes, fewer at its end; BucketFailed."""
        found = bytearray()
        end = min(offset + length, self.facts.size)
        while offset < end:
            begin, _, part = self._part(offset)
            self._ahead.hold(self, sum(length for _, length, _ in self._parts), self._forget)
            data = part.result()
            piece = data[offset - begin : end - begin]
            if not piece:  # shorter than it was said to be
                break
            found += piece
            offset += len(piece)
        return bytes(found)

    def _part(self, offset: int) -> tuple[int, int, Future[bytes]]:
        parts = self._parts  # another thread may forget them meanwhile
        for at, part in enumerate(parts):
            if part[0] <= offset < part[0] + part[1]:
                parts = parts[at:]
                break
        else:
            self._step = min(self._step * 2, _LARGEST) if offset == self._next else _FIRST
            parts = [self._fetch(offset)]
        here = parts[0]
        if part_failed(here[2]):
            self._parts = [self._fetch(offset)]
            return self._parts[0]
        self._next = here[0] + here[1]
        if len(parts) < 2 and self._next < self.facts.size and offset >= here[0] + here[1] // 2:
            self._step = min(self._step * 2, _LARGEST)
            parts = [*parts, self._fetch(self._next)]
        self._parts = parts
        return here

    def _forget(self) -> None:
        """Others need the room: who waits for a part has it still."""
        self._parts = []

    def _fetch(self, offset: int) -> tuple[int, int, Future[bytes]]:
        size = min(self._step, self.facts.size - offset)
        asked = self._executor.submit(self._objects.read, self._key, offset, size, self.facts.etag)
        return offset, size, asked

    def close(self) -> None:
        """What is still coming is not waited for."""
        for _, _, part in self._parts:
            part.cancel()
        self._parts = []
        self._ahead.hold(self, 0, self._forget)


def part_failed(part: "Future[bytes]") -> bool:
    """Whether it came, and came to nothing: it is asked for again."""
    return part.done() and (part.cancelled() or part.exception() is not None)
