"""An object, read at any offset: what is read straight on is fetched ahead, in ever larger parts."""

from concurrent.futures import Executor, Future
from typing import Final

from fs.buckets.objects import Facts, Objects

_FIRST: Final = 256 << 10
_LARGEST: Final = 8 << 20


class Reader:
    """One open file. It may be used by one thread at a time; parts are fetched by the executor's."""

    def __init__(self, objects: Objects, key: str, facts: Facts, executor: Executor) -> None:
        self._objects = objects
        self._key = key
        self.facts = facts
        self._executor = executor
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
            data = part.result()
            piece = data[offset - begin : end - begin]
            if not piece:  # shorter than it was said to be
                break
            found += piece
            offset += len(piece)
        return bytes(found)

    def _part(self, offset: int) -> tuple[int, int, Future[bytes]]:
        for at, part in enumerate(self._parts):
            if part[0] <= offset < part[0] + part[1]:
                del self._parts[:at]
                break
        else:
            self._step = min(self._step * 2, _LARGEST) if offset == self._next else _FIRST
            self._parts = [self._fetch(offset)]
        here = self._parts[0]
        if part_failed(here[2]):
            self._parts = [self._fetch(offset)]
            return self._parts[0]
        self._next = here[0] + here[1]
        if len(self._parts) < 2 and self._next < self.facts.size and offset >= here[0] + here[1] // 2:
            self._step = min(self._step * 2, _LARGEST)
            self._parts.append(self._fetch(self._next))
        return here

    def _fetch(self, offset: int) -> tuple[int, int, Future[bytes]]:
        size = min(self._step, self.facts.size - offset)
        asked = self._executor.submit(self._objects.read, self._key, offset, size, self.facts.etag)
        return offset, size, asked

    def close(self) -> None:
        """What is still coming is not waited for."""
        for _, _, part in self._parts:
            part.cancel()
        self._parts = []


def part_failed(part: "Future[bytes]") -> bool:
    """Whether it came, and came to nothing: it is asked for again."""
    return part.done() and (part.cancelled() or part.exception() is not None)
