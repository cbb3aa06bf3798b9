import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolation.cgroups import Cgroup, Memory
from isolation.channel.link import Link, Relief
from isolation.errors import GuestUnresponsive, SandboxGone
from isolation.memory_events import MemoryEvents
from isolation.memory_guard import MemoryGuard, excess_bytes, guest_bytes, threshold_bytes
from isolation.spec import Resources

MIB = 1 << 20
SMALL = Resources(cpu=1, memory_mb=100, disk_mb=50, pids=50)


def memory(used_mb: int, *, cache_mb: int = 0, processes: int = 6) -> Memory:
    return Memory(used_mb * MIB, cache_mb * MIB, processes, 0)


def test_cache_and_the_sentry_are_not_the_guests() -> None:
    assert guest_bytes(memory(125)) == 100 * MIB
    assert excess_bytes(memory(125), SMALL) == 0
    assert excess_bytes(memory(130), SMALL) == 5 * MIB
    assert excess_bytes(memory(130, cache_mb=40), SMALL) < 0, "the kernel takes cache back by itself"
    assert excess_bytes(memory(130, processes=46), SMALL) < 0, "stubs are the sentry's"


@given(st.integers(0, 1000), st.integers(0, 200), st.integers(2, 300), st.integers(0, 50))
def test_at_the_threshold_the_guest_has_all_its_memory(used: int, cache: int, processes: int, root: int) -> None:
    now = memory(used, cache_mb=cache, processes=processes)
    threshold = threshold_bytes(now, SMALL, root * MIB)
    assert threshold > now.usage_bytes, "the kernel tells nothing of a threshold that was passed before"
    beyond_files = excess_bytes(Memory(threshold, now.cache_bytes, processes, 0), SMALL) - root * MIB
    assert beyond_files == max(0, excess_bytes(now, SMALL) - root * MIB) + (16 if root else 4) * MIB


def test_the_kernels_bound_leaves_room_to_act() -> None:
    assert SMALL.cgroup_memory_bytes - threshold_bytes(memory(30), SMALL, SMALL.disk_mb * MIB) >= 200 * MIB


def test_a_guest_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(Cgroup):
        def __init__(self) -> None: ...

        def memory(self) -> Memory:
            return memory(500)

        def memory_events(self, notice: Callable[[], None]) -> MemoryEvents:
            return Events()

    class Events:
        async def arm(self, threshold_bytes: int) -> None: ...

        def close(self) -> None: ...

    class Stopped(Link):
        can_relieve = True

        def __init__(self) -> None: ...

        async def relieve(self, *, spare: int, least_mb: int, timeout: float) -> Relief:
            raise failures.pop()

    failures = [GuestUnresponsive("frozen"), SandboxGone("not there yet"), GuestUnresponsive("frozen")]
    monkeypatch.setattr("isolation.memory_guard._FIRST_LOOK_S", 0)
    monkeypatch.setattr("isolation.memory_guard._LOOK_AGAIN_S", 0)

    async def run() -> None:
        asked = asyncio.Event()

        def spawn() -> None:
            if failures:
                tasks.append(asyncio.get_running_loop().create_task(guard.relieve()))
            else:
                asked.set()

        tasks: list[asyncio.Task[None]] = []
        guard = MemoryGuard(Group(), SMALL, Stopped, kernel_kills=0, spawn=spawn)
        guard.start()
        await asyncio.wait_for(asked.wait(), 30)
        guard.close()
        for task in tasks:
            await task

    asyncio.run(run())
