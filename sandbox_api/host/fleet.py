"""The sandboxes that live on this machine: who uses them, and how they end."""

import asyncio
from collections import Counter

from common.tasks import TaskOwner
from isolation.errors import SandboxGone
from isolation.sandbox import End, Sandbox


class Fleet:
    """See the module."""

    def __init__(self, tasks: TaskOwner, *, silence_s: float) -> None:
        """A sandbox whose PID 1 answers nothing for silence_s seconds while it is used is given up."""
        self._silence_s = silence_s
        self.running: dict[str, Sandbox] = {}
        self.prepared: dict[str, Sandbox] = {}
        """Those that wait for a restore."""
        self.ends: asyncio.Queue[tuple[str, End]] = asyncio.Queue()
        self._holds: Counter[str] = Counter()
        self._tasks = tasks

    def get(self, id_: str) -> Sandbox:
        """A running one; SandboxGone."""
        sandbox = self.running.get(id_)
        if sandbox is None:
            raise SandboxGone("the sandbox has ended")
        return sandbox

    def adopt(self, sandbox: Sandbox) -> None:
        """It runs from now on."""
        self.running[sandbox.id] = sandbox
        for _ in range(self._holds[sandbox.id]):
            sandbox.begin_use()
        self._tasks.spawn(self._watch(sandbox), name=f"watch {sandbox.id}")

    async def _watch(self, sandbox: Sandbox) -> None:
        async with TaskOwner() as watching:
            watching.spawn(sandbox.watch_guest(self._silence_s), name=f"watch PID 1 of {sandbox.id}")
            await sandbox.watch()
        if sandbox.ended.done():
            sandbox.link.close()  # ends its execs
            self.ends.put_nowait((sandbox.id, sandbox.ended.result()))

    def hold(self, id_: str) -> None:
        """See `Host.hold`."""
        self._holds[id_] += 1  # counted here, because a pause ends the Sandbox and a resume makes another
        if (sandbox := self.running.get(id_)) is not None:
            sandbox.begin_use()

    def let_go(self, id_: str) -> None:
        """The other end of `hold`."""
        self._holds[id_] -= 1
        if not self._holds[id_]:
            del self._holds[id_]
        if (sandbox := self.running.get(id_)) is not None:
            sandbox.end_use()

    async def leave(self) -> None:
        """The server ends: what runs goes on, what was only prepared does not."""
        for sandbox in self.prepared.values():
            await sandbox.destroy()
        for sandbox in self.running.values():
            await sandbox.release()
