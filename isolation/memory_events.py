"""The kernel's notices of a control group's memory: a threshold passed, a process killed.

Version 1 has eventfds for both (cgroup-v1/memory.rst, sections 9 and 10). Version 2 has `memory.high`, above which it
reclaims and slows down, and tells by an inotify event of `memory.events`.
"""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

_IN_MODIFY: Final = 0x2
_IN_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK  # inotify(7): IN_CLOEXEC, IN_NONBLOCK
_libc: Final = ctypes.CDLL(None, use_errno=True)


class MemoryEvents(Protocol):
    """Calls back on each notice, from the first `arm` to `close`."""

    async def arm(self, threshold_bytes: int) -> None:
        """Notice when usage passes this threshold, which replaces the last one. OSError where the group is gone."""

    def close(self) -> None:
        """Notice nothing more."""


class EventsV1:
    """See `MemoryEvents`. Each registration waits for every processor (synchronize_rcu): that is left to a thread."""

    def __init__(self, folder: Path, notice: Callable[[], None]) -> None:
        """folder: the group's, of the memory controller."""
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._notice = notice
        self._kills: int | None = None
        self._threshold: int | None = None
        self._closed = False

    def _register(self, name: str, *arguments: int) -> int:
        """Have the kernel write to a new eventfd; closing that is what ends it."""
        events = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with open(self._folder / name, "rb") as file:
                words = " ".join(map(str, (events, file.fileno(), *arguments)))
                (self._folder / "cgroup.event_control").write_text(words)
        except BaseException:
            os.close(events)
            raise
        return events

    async def _registered(self, name: str, *arguments: int) -> int | None:
        """Register in a thread; None where `close` came first."""
        registering = self._loop.run_in_executor(None, self._register, name, *arguments)
        try:
            events = await asyncio.shield(registering)
        except asyncio.CancelledError:
            registering.add_done_callback(_close_result)
            raise
        if self._closed:
            os.close(events)
            return None
        self._loop.add_reader(events, self._readable, events)
        return events

    def _readable(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(events)
        self._notice()

    async def arm(self, threshold_bytes: int) -> None:
        """See `MemoryEvents`."""
        if self._kills is None:
            self._kills = await self._registered("memory.oom_control")
        self._drop(self._threshold)
        self._threshold = None
        self._threshold = await self._registered("memory.usage_in_bytes", threshold_bytes)

    def _drop(self, events: int | None) -> None:
        if events is not None:
            self._loop.remove_reader(events)
            os.close(events)

    def close(self) -> None:
        """See `MemoryEvents`."""
        self._closed = True
        for events in (self._threshold, self._kills):
            self._drop(events)


def _close_result(registering: "asyncio.Future[int]") -> None:
    if not registering.cancelled() and registering.exception() is None:
        os.close(registering.result())


class EventsV2:
    """See `MemoryEvents`."""

    def __init__(self, folder: Path, notice: Callable[[], None]) -> None:
        """folder: the group's."""
        self._high = folder / "memory.high"
        self._loop = asyncio.get_running_loop()
        self._notice = notice
        self._fd = _libc.inotify_init1(_IN_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        if _libc.inotify_add_watch(self._fd, os.fsencode(folder / "memory.events"), _IN_MODIFY) < 0:
            os.close(self._fd)
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 1 << 16)
        self._notice()

    async def arm(self, threshold_bytes: int) -> None:
        """See `MemoryEvents`."""
        self._high.write_text(str(threshold_bytes))

    def close(self) -> None:
        """See `MemoryEvents`."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
