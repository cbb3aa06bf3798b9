"""Following a log: who goes is noticed by what is read afterwards; who waits for an end reads nothing of the rest."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from common.turns import turn_budget
from isolation.execlog import EventType, LogReader, LogWriter
from sandbox_api.output.follow import follow, wait_end
from sandbox_api.routes.streams import sse

MIB = 1 << 20


def long_log(base: Path, mib: int) -> None:
    log = LogWriter(base)
    for _ in range(mib * 8):
        log.append(EventType.STDOUT, b"x" * (MIB // 8))
    log.append(EventType.EXIT, b"{}")
    log.close()


async def never(after: int, follower: str) -> None:
    raise AssertionError("the log is complete")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often logs were read."""
    counted: list[int] = []
    read = LogReader.read

    def counting(self: LogReader, after: int, *, budget: int = 0) -> Any:
        counted.append(after)
        return read(self, after, budget=budget)

    monkeypatch.setattr(LogReader, "read", counting)
    return counted


def test_a_follower_whose_client_goes_reads_no_further(tmp_path: Path, reads: list[int]) -> None:
    """As uvicorn has it: sending to who has gone is no error and never waits; `receive` tells of it."""
    long_log(tmp_path / "e", 64)

    async def run() -> None:
        sent = [0]
        gone = asyncio.Event()

        async def send(message: Any) -> None:
            sent[0] += len(message.get("body", b""))
            if sent[0] > MIB:
                gone.set()

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        response = sse(follow(tmp_path / "e", 0, never, lambda _: None))
        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
        assert sent[0] > MIB
        assert sent[0] < 4 * MIB, "it went on after its client had gone"

    asyncio.run(run())
    assert len(reads) < 32, "64 MiB take 256"


def test_followers_share_what_a_turn_may_do(tmp_path: Path) -> None:
    long_log(tmp_path / "e", 4)

    async def run() -> None:
        async def all_of_it() -> None:
            async for _ in follow(tmp_path / "e", 0, never, lambda _: None):
                pass

        await asyncio.gather(*(all_of_it() for _ in range(20)))
        assert turn_budget().largest <= 2 * turn_budget().limit

    asyncio.run(run())


def test_who_waits_for_an_end_reads_nothing_else(tmp_path: Path, reads: list[int]) -> None:
    base, left = tmp_path / "e", list[str]()
    log = LogWriter(base)

    async def run() -> None:
        moved = asyncio.Event()

        async def changed(after: int, follower: str) -> None:
            while log.last <= after:
                moved.clear()
                await moved.wait()

        waiting = asyncio.get_running_loop().create_task(wait_end(base, changed, left.append))
        for _ in range(5):
            log.append(EventType.STDOUT, b"x" * 1000)
            moved.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not waiting.done()
        log.append(EventType.EXIT, b"{}")
        moved.set()
        await waiting

    asyncio.run(run())
    log.close()
    assert not reads
    assert len(left) == 1


def test_a_log_that_nobody_writes_any_more_is_not_waited_for(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "e")
    log.append(EventType.STDOUT, b"x")
    log.close()

    async def changed(after: int, follower: str) -> None:
        return

    asyncio.run(wait_end(tmp_path / "e", changed, lambda _: None))
