"""Processes in this machine's sandboxes, and their logs."""

import contextlib
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from isolation import execlog
from isolation.channel.link import GuestExec
from isolation.errors import SandboxGone
from isolation.execlog import EventType
from isolation.execs import Exec, ExecEnd, ExecSpec
from isolation.memory_guard import killed_by_kernel
from isolation.sandbox import Sandbox
from sandbox_api.host.fleet import Fleet
from sandbox_api.host.interface import KnownExec

_START_TIMEOUT_S = 10.0


class LocalExecs:
    """See `sandbox_api.host.interface.Execs`."""

    def __init__(self, fleet: Fleet, logs: Path, *, working: Callable[[], None]) -> None:
        """`working` hears that somebody starts something."""
        self._fleet = fleet
        self._logs = logs
        self._working = working
        self._execs: dict[tuple[str, str], Exec] = {}

    def reserve(self, sandbox: str) -> int:
        return self._fleet.get(sandbox).link.reserve()

    async def start(self, sandbox: str, id_: str, number: int, spec: ExecSpec) -> None:
        owner = self._fleet.get(sandbox)
        self._working()
        await owner.named()
        path = self.log_path(sandbox, id_)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        started = self._execs[sandbox, id_] = Exec(spec, path)
        started.kernel_kills = owner.kernel_kills
        started.holds_sandbox.enter_context(owner.in_use())
        try:
            await started.start(owner.link, number=number, timeout=_START_TIMEOUT_S)
            if not spec.keeps_awake:
                started.holds_sandbox.close()
        except BaseException:
            del self._execs[sandbox, id_]
            started.close()
            execlog.remove(path)
            raise

    def _with(self, sandbox: str, id_: str, deed: Callable[[Exec], None]) -> None:
        if (each := self._execs.get((sandbox, id_))) is not None:
            with contextlib.suppress(SandboxGone):
                deed(each)

    async def wait(self, sandbox: str, id_: str) -> ExecEnd:
        exec_ = self._execs[sandbox, id_]
        end = await exec_.wait()
        if end.kind in ("exit", "signal") and end.code and not end.out_of_memory:
            owner = self._fleet.running.get(sandbox)
            if owner is not None and owner.cgroup.memory().kernel_kills > exec_.kernel_kills:
                return replace(end, out_of_memory=killed_by_kernel(owner.resources))
        return end

    def append(self, sandbox: str, id_: str, type_: EventType, payload: bytes) -> None:
        self._execs[sandbox, id_].append(type_, payload)

    def close(self, sandbox: str, id_: str) -> None:
        self._execs.pop((sandbox, id_)).close()

    def signal(self, sandbox: str, id_: str, signal: int, *, group: bool) -> None:
        self._with(sandbox, id_, lambda each: each.signal(signal, group=group))

    def resize(self, sandbox: str, id_: str, rows: int, cols: int) -> None:
        self._with(sandbox, id_, lambda each: each.resize(rows, cols))

    async def write_input(self, sandbox: str, id_: str, data: bytes) -> bool:
        each = self._execs.get((sandbox, id_))
        return each is not None and await each.write_input(data)

    def end_input(self, sandbox: str, id_: str) -> None:
        self._with(sandbox, id_, Exec.end_input)

    def input_offset(self, sandbox: str, id_: str) -> int:
        each = self._execs.get((sandbox, id_))
        return 0 if each is None or each.guest is None else each.guest.account.input.sent

    def log_path(self, sandbox: str, id_: str) -> Path:
        return self.folder(sandbox) / id_

    def remove_logs(self, sandbox: str) -> None:
        shutil.rmtree(self.folder(sandbox), ignore_errors=True)

    async def changed(self, sandbox: str, id_: str, after: int, follower: str) -> None:
        if (each := self._execs.get((sandbox, id_))) is not None:
            await each.changed(after, follower)

    def unfollow(self, sandbox: str, id_: str, follower: str) -> None:
        self._with(sandbox, id_, lambda each: each.unfollow(follower))

    # ---- for the machine's other rooms

    def folder(self, sandbox: str) -> Path:
        """Where the logs of its execs lie."""
        return self._logs / sandbox

    def of(self, sandbox: str) -> list[Exec]:
        """Those of one sandbox."""
        return [each for (owner, _), each in self._execs.items() if owner == sandbox]

    def get(self, sandbox: str, id_: str) -> Exec:
        """One that lives."""
        return self._execs[sandbox, id_]

    def add(self, sandbox: str, id_: str, exec_: Exec) -> None:
        """One that began elsewhere."""
        self._execs[sandbox, id_] = exec_

    def drop(self, sandbox: str, id_: str) -> None:
        """One that is not to go on."""
        self._execs.pop((sandbox, id_)).log.close()

    def drop_all(self, sandbox: str) -> None:
        """Those of a sandbox that nobody has claimed."""
        for key in [key for key in self._execs if key[0] == sandbox]:
            self.drop(*key)

    def close_logs(self) -> None:
        """The server ends; they go on."""
        for each in self._execs.values():
            each.log.close()

    def offsets(self, sandbox: str) -> dict[str, tuple[int, int]]:
        """How far each has come: bytes of stdout and stderr that its guest has sent."""
        return {id_: each.received for (of, id_), each in self._execs.items() if of == sandbox and each.guest}

    def known(self, sandbox: str, each: KnownExec) -> GuestExec:
        """One of an earlier server or of a paused sandbox, as the link takes it."""
        known = self._execs.get((sandbox, each.id))
        if known is None:
            path = self.log_path(sandbox, each.id)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            known = self._execs[sandbox, each.id] = Exec(each.spec, path)
        return known.guest or known.prepare_resume(each.number)

    def go_on(self, sandbox: Sandbox, execs: list[KnownExec], missing: set[int]) -> set[str]:
        """The sandbox is there again; returns the ids of those whose numbers are missing in it."""
        for each in execs:
            if each.number in missing:
                self.drop(sandbox.id, each.id)
            else:
                exec_ = self._execs[sandbox.id, each.id]
                exec_.kernel_kills = sandbox.kernel_kills
                exec_.resumed(sandbox.link, sandbox.in_use() if exec_.spec.keeps_awake else nullcontext())
        return {each.id for each in execs if each.number in missing}
