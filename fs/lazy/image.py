"""One image, read at any offset: which pieces that takes, fetched and checked; what it is read for first, remembered.

The profile of an image is the list of segments that its first seconds touched, in order: fetched ahead the next time.
"""

import json
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Final

from common.ids import new_id
from fs.lazy.cache import SEGMENT, Key, SegmentCache
from fs.store import chunks
from fs.store.recipe import Recipe

_PROFILE_S: Final = 15.0
_PROFILE_MAX: Final = 4096
_AHEAD_MAX: Final = 8
_UNPACKED_BYTES: Final = 32 << 20


class LazyImage:
    """An image that the store holds; used from many threads."""

    def __init__(self, recipe: Recipe, cache: SegmentCache, profile: Path) -> None:
        self._layout = recipe.layout
        self._locations = recipe.locations
        self._offsets = [placed.offset for placed in recipe.layout.placed]
        self._cache = cache
        self._profile = profile
        self._lock = threading.Lock()
        self._unpacked: OrderedDict[int, bytes] = OrderedDict()
        self._unpacked_size = 0
        self._touched: dict[Key, None] = {}
        self._recording_until: float | None = None
        self._last: Key = ("", 0)
        self._ahead = 1
        self._ends: dict[str, int] = {}
        for location in recipe.locations:
            self._ends[location.pack] = max(self._ends.get(location.pack, 0), location.offset + location.length)
        self.size = recipe.layout.size

    def begin(self) -> None:
        """Somebody opens it: fetch ahead what the first time needed, or see what this one needs."""
        with self._lock:
            if self._recording_until is not None:
                return
            self._recording_until = time.monotonic() + _PROFILE_S
        try:
            keys = [(str(pack), int(number)) for pack, number in json.loads(self._profile.read_text())]
        except (FileNotFoundError, ValueError, TypeError):
            return
        for key in keys[:_PROFILE_MAX]:
            if key[0] in self._ends:
                self._cache.prefetch(key)

    def read(self, offset: int, size: int) -> bytes:
        """Its bytes there, zeros where no piece lies; a StoreError of `fs.errors` where they cannot be had."""
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        out = bytearray(end - offset)
        metadata = self._layout.metadata
        if offset < len(metadata):
            part = metadata[offset:end]
            out[: len(part)] = part
        index = max(0, bisect_right(self._offsets, offset) - 1)
        placed = self._layout.placed
        while index < len(placed) and placed[index].offset < end:
            begin, piece = placed[index].offset, placed[index].piece
            if begin + piece.size > offset:
                data = self._piece(index)
                low, high = max(begin, offset), min(begin + piece.size, end)
                out[low - offset : high - offset] = data[low - begin : high - begin]
            index += 1
        return bytes(out)

    def _piece(self, index: int) -> bytes:
        with self._lock:
            if (data := self._unpacked.get(index)) is not None:
                self._unpacked.move_to_end(index)
                return data
        at = self._locations[index]
        stored = self._cache.read(at.pack, at.offset, at.length, seen=self._seen)
        data = chunks.unpack(stored, self._layout.placed[index].piece)
        with self._lock:
            if index not in self._unpacked:
                self._unpacked[index] = data
                self._unpacked_size += len(data)
                while self._unpacked_size > _UNPACKED_BYTES:
                    self._unpacked_size -= len(self._unpacked.popitem(last=False)[1])
        return data

    def _seen(self, key: Key) -> None:
        """Remember it for the profile; where reading goes straight on, fetch ahead."""
        full = False
        with self._lock:
            pack, number = key
            if key != self._last:
                straight = self._last == (pack, number - 1)
                self._ahead = min(self._ahead * 2, _AHEAD_MAX) if straight else 1
                self._last = key
            ahead = self._ahead if self._ahead > 1 else 0
            if self._recording_until is not None and key not in self._touched:
                if time.monotonic() < self._recording_until and len(self._touched) < _PROFILE_MAX:
                    self._touched[key] = None
                else:
                    full = bool(self._touched) and self._recording_until > 0
                    self._recording_until = 0.0
        if full:
            self.save_profile()
        end = self._ends.get(pack, 0)
        for further in range(number + 1, number + 1 + ahead):
            if further * SEGMENT < end:
                self._cache.prefetch((pack, further))

    def save_profile(self) -> None:
        """Write down what was touched, for the next time."""
        with self._lock:
            touched = [list(key) for key in self._touched]
        if touched:
            partial = self._profile.with_name(f"{new_id('req')}.partial")
            partial.write_text(json.dumps(touched))
            partial.replace(self._profile)
