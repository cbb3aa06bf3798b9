"""The objects of one mount by path: asked for in threads, and remembered for a moment."""

import asyncio
import errno
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Set
from concurrent.futures import Executor
from contextlib import closing
from typing import Final, TypeVar

from fs.buckets import names
from fs.buckets.folders import Folder
from fs.buckets.objects import Objects
from fs.buckets.pages import Facts
from fs.buckets.reader import Reader
from fs.buckets.share import Share

T = TypeVar("T")
_AT_ONCE: Final = 8
"""Threads that one mount may hold: a store that does not answer is not to hold up everybody's."""

_CACHED_S: Final = 2.0
_CACHED_BYTES: Final = 2 << 20
_LISTED_MAX: Final = 4
_ENTRY_BYTES: Final = 400
"""What a path and what is known of it take beside its own bytes."""


class Tree:
    """See the module. Whatever asks the store raises BucketFailed."""

    def __init__(self, objects: Objects, requests: Executor, fetches: Executor, share: Share) -> None:
        """Fetches must be other threads than requests, which wait for them."""
        self._share = share
        self._objects = objects
        self._requests = requests
        self._fetches = fetches
        self._prefix = objects.place.prefix.encode()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._cache: OrderedDict[bytes, tuple[float, Facts | None]] = OrderedDict()
        self._cached = 0
        self._listed: deque[tuple[float, dict[bytes, Facts]]] = deque(maxlen=_LISTED_MAX)
        """What listings told of objects, the newest last."""

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
        now = time.monotonic()
        cached = self._cache.get(path)
        if cached is not None and cached[0] > now:
            return cached[1]
        while self._listed and self._listed[0][0] <= now:
            self._listed.popleft()
        if (listed := next((found[path] for _, found in reversed(self._listed) if path in found), None)) is not None:
            return listed
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
        self._forget(path)
        self._cache[path] = (time.monotonic() + _CACHED_S, facts)
        self._cached += len(path) + _ENTRY_BYTES
        while self._cached > _CACHED_BYTES:
            oldest, _ = self._cache.popitem(last=False)
            self._cached -= len(oldest) + _ENTRY_BYTES

    def _forget(self, path: bytes) -> None:
        """It changes, or changed."""
        if self._cache.pop(path, None) is not None:
            self._cached -= len(path) + _ENTRY_BYTES
        for _, listed in self._listed:
            listed.pop(path, None)

    async def open_folder(self, path: bytes, written: Callable[[], Set[bytes]]) -> Folder:
        """A folder as the kernel reads it; `written` gives the names of what is there and no object yet."""
        before = written()  # what becomes an object meanwhile may be in neither

        def work() -> tuple[list[bytes], list[bytes], dict[bytes, Facts]]:
            return self._list(path)

        async with self._share.listing():
            files, folders, listed = await self.in_thread(work)
            self._listed.append((time.monotonic() + _CACHED_S, listed))
            also = before | written()

            def pack() -> Folder:
                inside = dict.fromkeys(folders, True) | dict.fromkeys(files, False) | dict.fromkeys(also, False)
                dots = [(b".", names.number(path), True), (b"..", names.number(names.parent(path)), True)]
                rest = ((name, names.number(names.join(path, name)), inside[name]) for name in sorted(inside))
                return Folder([*dots, *rest])

            return await self.in_thread(pack)

    def _list(self, path: bytes) -> tuple[list[bytes], list[bytes], dict[bytes, Facts]]:
        """Names of files and of folders in one, and what is known of some of the files. Blocks."""
        below = self._folder_key(path)
        files: list[bytes] = []
        folders: list[bytes] = []
        listed: dict[bytes, Facts] = {}
        taken = 0
        with closing(self._objects.pages(below)) as pages:
            for page in pages:
                known = dict(page.objects)
                shown_files, shown_folders = names.shown(known, page.folders, below)
                files += [name.encode() for name in shown_files]
                folders += [name.encode() for name in shown_folders]
                for name in shown_files:
                    if taken < _CACHED_BYTES:
                        there = names.join(path, name.encode())
                        listed[there] = known[below + name]
                        taken += len(there) + _ENTRY_BYTES
        return files, folders, listed

    def reader(self, path: bytes, facts: Facts) -> Reader:
        """An object's bytes."""
        return Reader(self._objects, self._key(path), facts, self._fetches, self._share.ahead)

    async def put(self, path: bytes, file: int, size: int) -> None:
        """Make an object of an open file."""
        await self.in_thread(self._objects.put, self._key(path), file, size)
        self._forget(path)

    async def copy(self, old: bytes, new: bytes) -> None:
        """Make an object of another."""
        await self.in_thread(self._objects.copy, self._key(old), self._key(new))
        self._forget(new)

    async def delete(self, path: bytes) -> None:
        """Remove an object."""
        await self.in_thread(self._objects.delete, self._key(path))
        self._forget(path)

    async def make_folder(self, path: bytes) -> None:
        """An object that stands for a folder with nothing in it."""
        await self.in_thread(self._objects.put_empty, self._folder_key(path))
        self._forget(path)

    async def remove_folder(self, path: bytes) -> None:
        """OSError (ENOTEMPTY) if something is in it."""
        marker = self._folder_key(path)
        if await self.in_thread(lambda: self._objects.has_below(marker, besides=marker)):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        await self.in_thread(self._objects.delete, marker)
        self._forget(path)

    async def close(self) -> None:
        """Let go of the store."""
        await asyncio.to_thread(self._objects.close)
