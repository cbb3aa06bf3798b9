"""One exec on this machine: its process (through the link), its log on disk, its deadline."""

import asyncio
import contextlib
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from isolation import execlog
from isolation.channel.frames import EXECS_MAX as EXECS_MAX
from isolation.channel.frames import START_MAX, StartFlag, encode_request
from isolation.channel.link import GuestExec, Link, StartFailed
from isolation.errors import SandboxGone

Overflow = Literal["drop", "block"]
_SIGKILL = 9
_KILL_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class Terminal:
    """A pty of so many rows and columns."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """What to run. `deadline` is in seconds since the epoch; `user`, `workdir` "" mean the sandbox's own."""

    argv: list[str]
    user: str
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = ""
    terminal: Terminal | None = None
    stdin: bool = True
    allow_root: bool = True
    nproc: int = 0
    deadline: float | None = None
    overflow: Overflow = "drop"
    log_limit: int = execlog.DEFAULT_LIMIT
    keeps_awake: bool = True
    """Whether its sandbox stays thawed while it lives."""
    announcement: bytes = b""
    """What its log begins with once it has started, JSON; b"": nothing."""
    base: tuple[int, int] = (0, 0)
    """Bytes of stdout and stderr that were written before this log begins: of a copy, those of the original."""

    def request(self) -> bytes:
        """As PID 1 reads it; ValueError for a NUL or more than START_MAX bytes."""
        env = {"TERM": "xterm-256color", **self.env} if self.terminal else self.env
        argv = [argument.encode(errors="surrogateescape") for argument in self.argv]
        raw = encode_request(user=self.user, cwd=self.workdir, argv=argv, env=env, nproc=self.nproc)
        if len(raw) > START_MAX:
            raise ValueError(f"arguments and environment are {len(raw)} bytes; {START_MAX} is the most")
        return raw

    @property
    def flags(self) -> StartFlag:
        """How PID 1 is to start it."""
        return (
            (StartFlag.PTY if self.terminal else StartFlag(0))
            | (StartFlag.ROOT_OK if self.allow_root else StartFlag(0))
            | (StartFlag(0) if self.stdin or self.terminal else StartFlag.NO_STDIN)
        )


@dataclass(frozen=True, slots=True)
class ExecEnd:
    """How an exec ended.

    kind: `exit` (code), `signal` (code is its number), `failed` (stage and errno: it never ran), `sandbox` (it ended
    with its sandbox). cpu_s in seconds, max_rss_kib of the process and those it waited for.
    """

    kind: Literal["exit", "signal", "failed", "sandbox"]
    code: int = 0
    stage: int = 0
    errno: int = 0
    cpu_s: float = 0.0
    max_rss_kib: int = 0
    timed_out: bool = False
    killed: bool = False
    ended_at: float = 0.0
    out_of_memory: str = ""
    """Why a process of it was killed to relieve the sandbox, in words."""


class Exec:
    """A live exec. The log is its own; closing it is the end of the exec's life here."""

    def __init__(self, spec: ExecSpec, log: Path) -> None:
        self.spec = spec
        self.log = execlog.LogWriter(log, limit=spec.log_limit)
        self.kill_grace_s = _KILL_GRACE_S
        """How long, in seconds, PID 1 may take to tell that what was killed at its deadline has ended."""
        self.guest: GuestExec | None = None
        self.kernel_kills = 0
        """How many processes of the sandbox the kernel had killed for want of memory when it began."""
        self._link: Link | None = None
        self._killed = False
        self._timed_out = False
        self._waiters: set[asyncio.Future[None]] = set()
        self._followers: dict[str, int] = {}
        self._consumed = 0
        self.holds_sandbox = contextlib.ExitStack()
        """What keeps its sandbox thawed until it is closed."""

    # ---- the sink

    def write(self, stream: int, data: memoryview) -> None:
        """See `isolation.channel.link.Sink`."""
        self.log.append(execlog.EventType(stream), data)
        self._reclaim()
        self._wake()

    @property
    def holds(self) -> bool:
        """Whether the process must wait: `block`, the log full, and its followers not yet through."""
        return self.spec.overflow == "block" and self.log.full

    def _reclaim(self) -> None:
        if self.log.full:
            self.log.reclaim(keep_from=self._consumed + 1 if self.spec.overflow == "block" else None)

    # ---- its life

    async def start(self, link: Link, *, number: int, timeout: float) -> None:
        """Start it; what `Link.start` raises."""
        self._link = link
        terminal = self.spec.terminal or Terminal(0, 0)
        self.guest = await link.start(
            self,
            self.spec.request(),
            flags=self.spec.flags,
            rows=terminal.rows,
            cols=terminal.cols,
            timeout=timeout,
            number=number,
            announce=self._announce if self.spec.announcement else None,
        )

    def _announce(self) -> None:
        self.append(execlog.EventType.STARTED, self.spec.announcement)

    def prepare_resume(self, number: int) -> GuestExec:
        """After a restart: what to give to `Link.open`."""
        out, err = self.spec.base
        self.guest = GuestExec(number, self, received=(out + self.log.stdout, err + self.log.stderr))
        return self.guest

    @property
    def received(self) -> tuple[int, int]:
        """Bytes of stdout and stderr that the guest has sent so far, in its own count."""
        assert self.guest is not None
        out, err = self.guest.account.out
        return out.received, err.received

    def resumed(self, link: Link, sandbox: AbstractContextManager[None]) -> None:
        """The link is open and knows this exec; `sandbox` keeps the sandbox thawed."""
        self._link = link
        self.holds_sandbox.enter_context(sandbox)
        if self._timed_out:  # while it was paused
            self.signal(_SIGKILL, group=True)

    def suspend(self) -> None:
        """The sandbox is paused: wait for `resumed`."""
        self._link = None
        self.holds_sandbox.close()

    def fail(self, error: Exception) -> None:
        """The sandbox ended while it was paused."""
        if self.guest is not None:
            self.guest.fail(error)

    async def wait(self) -> ExecEnd:
        """Wait until the process has ended and all its output is in the log; enforces the deadline."""
        assert self.guest is not None
        try:
            if self.spec.deadline is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, self.spec.deadline - time.time())):
                        await asyncio.shield(self.guest.exited)
                if not self.guest.exited.done():
                    self._timed_out = True
                    self.signal(_SIGKILL, group=True)
                    if not await self._dies():
                        return ExecEnd("signal", code=_SIGKILL, timed_out=True, ended_at=time.time())
            await asyncio.shield(self.guest.complete)
        except StartFailed as error:
            return ExecEnd("failed", stage=error.stage, errno=error.errno, ended_at=time.time())
        except SandboxGone:
            return ExecEnd("sandbox", timed_out=self._timed_out, ended_at=time.time())
        report = self.guest.account.report
        assert report is not None
        return ExecEnd(
            "signal" if report.signalled else "exit",
            code=report.code,
            cpu_s=report.cpu_us / 1e6,
            max_rss_kib=report.max_rss_kib,
            timed_out=self._timed_out,
            killed=self._killed,
            ended_at=time.time(),
            out_of_memory=self.guest.out_of_memory or "",
        )

    async def _dies(self) -> bool:
        """Whether PID 1 tells of its end soon after it was killed. If not it is left to PID 1, to kill when it can."""
        assert self.guest is not None
        while True:
            link = self._link
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.kill_grace_s):
                    await asyncio.shield(self.guest.exited)
                return True
            if link is not None and link is self._link and not link.is_quiet:  # else it was paused meanwhile
                link.abandon(self.guest)
                return False

    def signal(self, signal: int, *, group: bool) -> None:
        """Send a signal to the process or its group; GuestUnresponsive as `Link.signal`."""
        if self.guest is not None and self._link is not None:
            self._killed = self._killed or signal == _SIGKILL
            self._link.signal(self.guest, signal, group=group)

    def resize(self, rows: int, cols: int) -> None:
        """Resize its terminal."""
        if self.guest is not None and self._link is not None:
            self._link.resize(self.guest, rows, cols)

    async def write_input(self, data: bytes) -> bool:
        """Feed it; False if it takes no more."""
        if self.guest is None or self._link is None:
            return False
        return await self._link.write_input(self.guest, data)

    def end_input(self) -> None:
        """End its input."""
        if self.guest is not None and self._link is not None and not self.guest.account.input.closed:
            self._link.end_input(self.guest)

    def append(self, type_: execlog.EventType, payload: bytes) -> None:
        """Add an event of the service's own to the log."""
        self.log.append(type_, payload)
        self._wake()

    def close(self) -> None:
        """The log says how it ended: PID 1 may forget it."""
        if self.guest is not None and self._link is not None:
            self._link.forget(self.guest)
        self._wake()
        self.log.close()
        self.holds_sandbox.close()

    # ---- followers

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def changed(self, after: int, follower: str) -> None:
        """Wait until the log has events beyond seq after; says as well that this follower has had those up to it."""
        self._followers[follower] = after
        self._note_progress()
        if self.log.last > after:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def unfollow(self, follower: str) -> None:
        """This follower is gone."""
        self._followers.pop(follower, None)
        self._note_progress()

    def _note_progress(self) -> None:
        if self._followers:
            self._consumed = max(self._consumed, min(self._followers.values()))
        if self.spec.overflow == "block" and self.guest is not None and self._link is not None:
            self._reclaim()
            self._link.acknowledge(self.guest)
