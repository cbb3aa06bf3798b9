"""The objects of one mount by path: asked for in threads, and remembered for a moment."""

import asyncio
import errno
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

from fs.buckets import names
from fs.buckets.objects import Facts, Objects
from fs.buckets.reader import Reader

T = TypeVar("T")
_AT_ONCE: Final = 8
"""Threads that one mount may hold: a store that does not answer is not to hold up everybody's."""

_CACHED_S: Final = 2.0
_CACHED_MAX: Final = 10_000


class Tree:
    """See the module. Whatever asks the store raises BucketFailed."""

    def __init__(self, objects: Objects, requests: Executor, fetches: Executor) -> None:
        """Fetches must be other threads than requests, which wait for them."""
        self._objects = objects
        self._requests = requests
        self._fetches = fetches
        self._prefix = objects.place.prefix.encode()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._cache: OrderedDict[bytes, tuple[float, Facts | None]] = OrderedDict()

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """What blocks, in one of the mount's threads."""
        async with self._places:
            return await asyncio.get_running_loop().run_in_executor(self._requests, work, *arguments)

    def _key(self, path: bytes) -> str:
        return (self._prefix + path).decode()

    def _folder_key(self, path: bytes) -> str:
        return self._key(path + b"/") if path else self._prefix.decode()

    async def facts(self, path: bytes, *, is_folder: bool = False) -> Facts | None:
        """What an object is; None for a folder, which it also is if the caller knows so. FileNotFoundError."""
        cached = self._cache.get(path)
        if cached is not None and cached[0] > time.monotonic():
            return cached[1]
        facts = await self.head(path)
        if facts is None and not is_folder and not await self._is_folder(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._remember(path, facts)
        return facts

    async def _is_folder(self, path: bytes) -> bool:
        return await self.in_thread(self._objects.has_below, self._folder_key(path))

    async def head(self, path: bytes) -> Facts | None:
        """What an object is as of now; None if there is none."""
        return await self.in_thread(self._objects.head, self._key(path))

    def _remember(self, path: bytes, facts: Facts | None) -> None:
        self._cache[path] = (time.monotonic() + _CACHED_S, facts)
        self._cache.move_to_end(path)
        if len(self._cache) > _CACHED_MAX:
            self._cache.popitem(last=False)

    async def list(self, path: bytes) -> dict[bytes, bool]:
        """The names in a folder, and whether each is one."""
        below = self._folder_key(path)
        found = await self.in_thread(self._objects.list, below)
        files, folders = names.shown(found.objects, found.folders, below)
        for name in files:
            self._remember(names.join(path, name.encode()), found.objects[below + name])
        return {each.encode(): False for each in files} | {each.encode(): True for each in folders}

    def reader(self, path: bytes, facts: Facts) -> Reader:
        """An object's bytes."""
        return Reader(self._objects, self._key(path), facts, self._fetches)

    async def put(self, path: bytes, file: int, size: int) -> None:
        """Make an object of an open file."""
        await self.in_thread(self._objects.put, self._key(path), file, size)
        self._cache.pop(path, None)

    async def copy(self, old: bytes, new: bytes) -> None:
        """Make an object of another."""
        await self.in_thread(self._objects.copy, self._key(old), self._key(new))
        self._cache.pop(new, None)

    async def delete(self, path: bytes) -> None:
        """Remove an object."""
        await self.in_thread(self._objects.delete, self._key(path))
        self._cache.pop(path, None)

    async def make_folder(self, path: bytes) -> None:
        """An object that stands for a folder with nothing in it."""
        await self.in_thread(self._objects.put_empty, self._folder_key(path))
        self._cache.pop(path, None)

    async def remove_folder(self, path: bytes) -> None:
        """OSError (ENOTEMPTY) if something is in it."""
        marker = self._folder_key(path)
        if await self.in_thread(lambda: self._objects.has_below(marker, besides=marker)):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        await self.in_thread(self._objects.delete, marker)
        self._cache.pop(path, None)

    async def close(self) -> None:
        """Let go of the store."""
        await asyncio.to_thread(self._objects.close)
