"""What all mounts of one sandbox may take of the server's memory together, however much its programs ask for."""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from fs.buckets.folders import OpenFolders

_IN_FLIGHT_BYTES: Final = 16 << 20
_AHEAD_BYTES: Final = 32 << 20
_LISTINGS: Final = 2


class InFlight:
    """The bytes of questions and answers that are on their way: whoever wants more waits, the first to come first."""

    def __init__(self, limit: int = _IN_FLIGHT_BYTES) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.size = 0

    async def take(self, size: int) -> None:
        """Wait until there is room for so many bytes; what is larger than all waits until it is alone."""
        if not self._waiting and self._fits(size):
            self.size += size
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give(size)
            raise

    def _fits(self, size: int) -> bool:
        return not self.size or self.size + size <= self._limit

    def give(self, size: int) -> None:
        """They have arrived, or are not wanted any more."""
        self.size -= size
        while self._waiting and (self._waiting[0][1].done() or self._fits(self._waiting[0][0])):
            wanted, place = self._waiting.popleft()
            if not place.done():
                self.size += wanted
                place.set_result(None)


class Ahead:
    """The bytes that readers of open files have fetched ahead; those that were not read for longest make room.

    From any thread. What a reader waits for at the moment is not taken from it by others, only forgotten afterwards.
    """

    def __init__(self, limit: int = _AHEAD_BYTES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[object, tuple[int, Callable[[], None]]] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes that all hold now."""
        return self._size

    def hold(self, reader: object, size: int, forget: Callable[[], None]) -> None:
        """A reader holds so many bytes from now on; `forget` is called once that is too much."""
        gone = []
        with self._lock:
            before, _ = self._held.pop(reader, (0, forget))
            self._size += size - before
            if size:
                self._held[reader] = (size, forget)
            while self._size > self._limit and len(self._held) > 1:
                _, (least, forget_least) = self._held.popitem(last=False)
                self._size -= least
                gone.append(forget_least)
        for forget_least in gone:
            forget_least()


class Share:
    """See the module; one for each sandbox that has buckets."""

    def __init__(self) -> None:
        self.in_flight = InFlight()
        self.ahead = Ahead()
        self.folders = OpenFolders()
        self._listings = asyncio.Semaphore(_LISTINGS)

    @asynccontextmanager
    async def listing(self) -> AsyncIterator[None]:
        """A folder is listed: a few at once, for each holds all its names."""
        async with self._listings:
            yield
