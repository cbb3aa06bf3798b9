"""An exec whose end PID 1 does not tell."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from isolation.channel.frames import ExitReport
from isolation.channel.link import GuestExec
from isolation.errors import SandboxGone
from isolation.execs import Exec, ExecSpec


class Silent:
    """A link to a PID 1 that takes everything and tells nothing."""

    def __init__(self) -> None:
        self.is_quiet = False
        self.signals: list[int] = []
        self.abandoned: list[GuestExec] = []

    def signal(self, guest: GuestExec, signal: int, *, group: bool) -> None:
        self.signals.append(signal)

    def abandon(self, guest: GuestExec) -> None:
        self.abandoned.append(guest)

    def forget(self, guest: GuestExec) -> None:
        """Nothing to forget."""


def with_exec(tmp_path: Path, work: Callable[[Exec, Silent], Awaitable[None]]) -> None:
    async def run() -> None:
        exec_, link = Exec(ExecSpec(["sleep"], "user", deadline=time.time()), tmp_path / "e"), Silent()
        exec_.kill_grace_s = 0.01
        exec_.prepare_resume(1)
        exec_.resumed(link, nullcontext())  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(60):
                await work(exec_, link)
        finally:
            exec_.close()

    asyncio.run(run())


def test_at_its_deadline_it_is_killed_and_left_to_pid_1_when_that_says_nothing(tmp_path: Path) -> None:
    async def work(exec_: Exec, link: Silent) -> None:
        end = await exec_.wait()
        assert (end.kind, end.code, end.timed_out) == ("signal", 9, True)
        assert link.signals == [9]
        assert link.abandoned == [exec_.guest]

    with_exec(tmp_path, work)


def test_it_is_not_given_up_while_its_sandbox_is_being_copied(tmp_path: Path) -> None:
    async def work(exec_: Exec, link: Silent) -> None:
        link.is_quiet = True
        waiting = asyncio.get_running_loop().create_task(exec_.wait())
        while not link.signals:
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        looked = loop.create_future()
        loop.call_later(0.05, looked.set_result, None)  # several times its grace
        await looked
        assert not waiting.done()
        assert exec_.guest is not None
        exec_.guest.account.report = ExitReport(True, 9, 0, 0, (0, 0))
        exec_.guest.exited.set_result(None)
        exec_.guest.complete.set_result(None)
        end = await waiting
        assert (end.kind, end.timed_out) == ("signal", True)
        assert not link.abandoned

    with_exec(tmp_path, work)


@pytest.mark.parametrize("which", ["exited", "complete"])
def test_a_sandbox_that_has_gone_is_an_end(tmp_path: Path, which: str) -> None:
    async def work(exec_: Exec, link: Silent) -> None:
        assert exec_.guest is not None
        if which == "complete":
            exec_.guest.exited.set_result(None)
        exec_.guest.fail(SandboxGone("it broke its channel"))
        assert (await exec_.wait()).kind == "sandbox"

    with_exec(tmp_path, work)
