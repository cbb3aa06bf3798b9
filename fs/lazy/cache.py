"""Parts of packs on this machine's disk: fetched once, shared by all images, the longest unused first to go.

    FOLDER/PACK/NUMBER     a segment of SEGMENT bytes, the last of a pack shorter

A segment is fetched by one thread, however many want it. One that the store does not give in time is an error for those
that wait, and asked for again by the next. Contents are checked where they are unpacked (`fs.store.chunks`).
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from common.ids import new_id
from fs.errors import StoreUnreachable

SEGMENT: Final = 512 << 10
Fetch = Callable[[str, int, int], bytes]
"""Reads a part of a pack from the store, shorter only at its end."""

Key = tuple[str, int]
_FETCHERS: Final = 8
_WAIT_S: Final = 1.5
"""So long a reader waits. Not longer, though the fetch goes on: the sentry, whose mapping this is, stands still
meanwhile, and all that is in it. It asks again at once."""
_DOWN_S: Final = 10.0
"""So long nobody asks a store again that gave no answer."""


class SegmentCache:
    """See the module; used from many threads."""

    def __init__(self, folder: Path, fetch: Fetch, *, limit_bytes: int) -> None:
        self._folder = folder
        self._fetch = fetch
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, int] = OrderedDict()
        self._size = 0
        self._coming: dict[Key, Future[bytes]] = {}
        self._down_until = 0.0
        self._pool = ThreadPoolExecutor(_FETCHERS, "fetch")
        self.fetched_bytes = 0
        self.fetches = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._look()

    def _look(self) -> None:
        found = []
        for path in self._folder.glob("*/*"):
            if path.name.isdecimal():
                facts = path.stat()
                found.append((facts.st_mtime, (path.parent.name, int(path.name)), facts.st_size))
            else:  # half-written, by a process that died
                path.unlink(missing_ok=True)
        for _, key, size in sorted(found):
            self._kept[key] = size
            self._size += size

    def close(self) -> None:
        """Fetch no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def has(self, key: Key) -> bool:
        """Whether it is here."""
        with self._lock:
            return key in self._kept

    def read(self, pack: str, offset: int, length: int, *, seen: Callable[[Key], None]) -> bytes:
        """A part of a pack; seen is told of each segment that it lies in."""
        parts = []
        for number in range(offset // SEGMENT, (offset + length - 1) // SEGMENT + 1):
            seen((pack, number))
            data = self._segment((pack, number))
            begin = max(0, offset - number * SEGMENT)
            parts.append(data[begin : offset + length - number * SEGMENT])
        return b"".join(parts)

    def prefetch(self, key: Key) -> None:
        """Fetch a segment in the background, unless it is here or on its way."""
        with self._lock:
            if key not in self._kept and key not in self._coming and time.monotonic() >= self._down_until:
                self._begin(key)

    def _segment(self, key: Key) -> bytes:
        for _ in range(2):
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    coming = None
                else:
                    coming = self._coming.get(key) or self._begin(key)
            if coming is not None:
                try:
                    return coming.result(_WAIT_S)
                except TimeoutError as error:
                    raise StoreUnreachable("the store has not answered yet") from error
            try:
                return self._path(key).read_bytes()
            except OSError:  # somebody deleted it, or the disk fails: the store has it still
                with self._lock:
                    self._size -= self._kept.pop(key, 0)
        raise StoreUnreachable("the cache cannot be read", hint="see its disk")

    def _begin(self, key: Key) -> Future[bytes]:
        if time.monotonic() < self._down_until:
            raise StoreUnreachable("the store does not answer")
        coming = self._coming[key] = self._pool.submit(self._get, key)
        return coming

    def _get(self, key: Key) -> bytes:
        pack, number = key
        try:
            data = self._fetch(pack, number * SEGMENT, SEGMENT)
            self.fetches += 1
            self.fetched_bytes += len(data)
            self._keep(key, data)
            return data
        except StoreUnreachable:
            self._down_until = time.monotonic() + _DOWN_S
            raise
        finally:
            with self._lock:
                self._coming.pop(key, None)

    def _keep(self, key: Key, data: bytes) -> None:
        path = self._path(key)
        partial = path.with_name(f"{new_id('req')}.partial")
        try:
            path.parent.mkdir(exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError:  # a full disk: what was fetched serves all the same
            partial.unlink(missing_ok=True)
            return
        gone = []
        with self._lock:
            self._kept[key] = len(data)
            self._size += len(data)
            while self._size > self._limit and len(self._kept) > 1:
                old, size = self._kept.popitem(last=False)
                self._size -= size
                gone.append(old)
        for old in gone:
            self._path(old).unlink(missing_ok=True)

    def _path(self, key: Key) -> Path:
        return self._folder / key[0] / str(key[1])
