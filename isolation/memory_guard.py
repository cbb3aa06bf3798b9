"""Acts before the kernel does when a sandbox runs out of memory.

The kernel knows the sentry's processes alone: the one that it kills may hold a guest's threads, which then wait for
ever. So a sandbox's group may have more than its guest: where the guest has used up `memory_mb`, PID 1 kills its
largest process, whose parent sees SIGKILL and everything else goes on. Where the kernel was faster, PID 1 kills the
largest process all the same: that is the one which hangs.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from isolation.cgroups import Cgroup, Memory
from isolation.channel.link import Link, Relief
from isolation.errors import GuestUnresponsive, SandboxGone
from isolation.memory_events import MemoryEvents
from isolation.spec import Resources

_log = structlog.get_logger(__name__)
_MIB: Final = 1 << 20
_SENTRY_BYTES: Final = 16 * _MIB
_STUB_BYTES: Final = 3 * _MIB // 2
"""What a host process of the sentry's costs: a process inside has two (measured: 2.8 MiB)."""
_STEP_BYTES: Final = 4 * _MIB
_STEP_ON_DISK_BYTES: Final = 16 * _MIB
"""Larger where files are being written: PID 1 is asked at each."""
_RISING_BYTES: Final = 16 * _MIB
_LARGE_PART: Final = 8
"""The kernel kills what is large: what holds less than this part of the memory does not hang."""
_ANSWER_TIMEOUT_S: Final = 2.0
_FIRST_LOOK_S: Final = 0.05
_LOOK_S: Final = 0.005
_LOOKS: Final = 400
"""The sentry gives the memory of a process back some time after its end, later where the machine is busy: who is killed
meanwhile is killed for nothing."""
_LOOK_AGAIN_S: Final = 5.0


def guest_bytes(memory: Memory) -> int:
    """What the guest holds, its files included: usage less what the kernel can take back and what the sentry takes."""
    return memory.usage_bytes - memory.cache_bytes - _SENTRY_BYTES - memory.processes * _STUB_BYTES


def excess_bytes(memory: Memory, resources: Resources) -> int:
    """How much more the guest holds than its memory; its files on disk may account for that."""
    return guest_bytes(memory) - resources.memory_mb * _MIB


def threshold_bytes(memory: Memory, resources: Resources, root_bytes: int) -> int:
    """The usage at which to look again, above that of now, where the changes to the root occupy root_bytes."""
    own = memory.usage_bytes - guest_bytes(memory)
    step = _STEP_ON_DISK_BYTES if root_bytes else _STEP_BYTES
    return max(own + resources.memory_mb * _MIB + root_bytes, memory.usage_bytes) + step


def killed_by_kernel(resources: Resources) -> str:
    """Say why an exec failed that ran while the kernel killed a process of its sandbox."""
    return (
        "out of memory: the kernel killed a process of the sandbox, which used more than it may altogether;"
        f" memory_mb is {resources.memory_mb}"
    )


class MemoryGuard:
    """Guards one sandbox from `start` to `close`."""

    def __init__(
        self,
        cgroup: Cgroup,
        resources: Resources,
        link: Callable[[], Link],
        *,
        kernel_kills: int,
        spawn: Callable[[], None],
    ) -> None:
        """kernel_kills: how many were dealt with before; spawn runs `relieve` as a task."""
        self.kernel_kills = kernel_kills
        self._cgroup = cgroup
        self._resources = resources
        self._link = link
        self._spawn = spawn
        self._events: MemoryEvents | None = None
        self._later: asyncio.TimerHandle | None = None
        self._usage_seen = 0
        self._busy = False
        self._unanswered = False
        """Whether PID 1 has not answered the last time, which was logged."""

    def start(self) -> None:
        """Look at the memory soon, and from then on: who waits for the sandbox comes first."""
        self._events = self._cgroup.memory_events(self._noticed)
        self._later = asyncio.get_running_loop().call_later(_FIRST_LOOK_S, self._noticed)

    def close(self) -> None:
        """Look no more."""
        if self._later is not None:
            self._later.cancel()
        if self._events is not None:
            self._events.close()
            self._events = None

    def _notice_later(self) -> None:
        if self._events is not None:
            if self._later is not None:
                self._later.cancel()
            self._later = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._noticed)

    def _noticed(self) -> None:
        if not self._busy:
            self._busy = True
            self._spawn()

    async def _armed(self, root_bytes: int) -> bool:
        """Have the kernel tell of the next threshold; False if there is something to do already."""
        if self._events is None:
            return True
        threshold = threshold_bytes(self._cgroup.memory(), self._resources, root_bytes)
        try:
            await self._events.arm(threshold)
        except FileNotFoundError:
            return True  # the sandbox has ended meanwhile
        if self._later is not None:
            self._later.cancel()
        self._later = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._look_again) if root_bytes else None
        memory = self._cgroup.memory()  # the kernel tells nothing of a threshold that was passed before
        self._usage_seen = memory.usage_bytes
        return memory.usage_bytes < threshold and memory.kernel_kills <= self.kernel_kills

    def _look_again(self) -> None:
        """Take the credit for files on disk back once they are gone."""
        memory = self._cgroup.memory()
        if excess_bytes(memory, self._resources) <= 0 or abs(memory.usage_bytes - self._usage_seen) > _STEP_BYTES:
            self._noticed()
        else:  # nobody does anything, and PID 1 may be frozen
            self._later = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._look_again)

    async def relieve(self) -> None:
        """Kill the largest processes until the guest holds no more than its memory."""
        try:
            while True:
                if await self._armed(await self._relieve()):
                    return
                await asyncio.sleep(_LOOK_S)
        except GuestUnresponsive as error:
            if not self._unanswered:
                _log.warning("memory not freed", error=str(error))
            self._unanswered = True
            self._notice_later()
        except SandboxGone:
            self._notice_later()  # it is closed soon, unless it has another link by then
        finally:
            self._busy = False

    async def _relieve(self) -> int:
        """Kill what has to be killed; returns the bytes that the changes to the root account for."""
        while (relief := await self._relieve_once()) is not None and relief.pid:
            await self._see_it_end()
        return relief.root_bytes if relief is not None else 0

    async def _relieve_once(self) -> Relief | None:
        """Have one process killed if that is due; None if nothing is."""
        memory, link = self._cgroup.memory(), self._link()
        excess = excess_bytes(memory, self._resources)
        kernel_was_first = memory.kernel_kills > self.kernel_kills
        if not link.can_relieve or (excess <= 0 and not kernel_was_first):
            self.kernel_kills = memory.kernel_kills
            return None
        relief = await link.relieve(
            spare=0 if kernel_was_first else excess,
            least_mb=self._resources.memory_mb // _LARGE_PART if kernel_was_first else 0,
            timeout=_ANSWER_TIMEOUT_S,
        )
        self.kernel_kills = memory.kernel_kills
        self._unanswered = False
        if relief.pid:
            held = relief.resident_bytes // _MIB
            peak = (memory.usage_bytes - memory.cache_bytes) // _MIB
            words = (
                f"out of memory: the sandbox used {peak} MiB, memory_mb is {self._resources.memory_mb};"
                f" its largest process (pid {relief.pid}, {held} MiB) was killed"
            )
            _log.info("out of memory", pid=relief.pid, resident_mb=held, used_mb=peak)
            if relief.exec is not None:
                relief.exec.out_of_memory = words
        return relief

    async def _see_it_end(self) -> None:
        """Wait until the memory of what was killed is free, unless others take it faster."""
        before = self._cgroup.memory().usage_bytes
        for _ in range(_LOOKS):
            await asyncio.sleep(_LOOK_S)
            memory = self._cgroup.memory()
            if excess_bytes(memory, self._resources) <= 0 or memory.usage_bytes > before + _RISING_BYTES:
                return
