"""One container: a sandbox in which a runner waits for inputs. What it says is handed on; it decides nothing."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from common.errors import IsoboxError
from common.turns import turn_budget
from isolation.execlog import EventType, Gap
from sandbox_api.functions import protocol
from sandbox_api.functions.protocol import Frame, Lines, RunnerViolation
from sandbox_api.host.interface import Host
from sandbox_api.lifecycle import FINAL
from sandbox_api.services.execs import ExecService
from sandbox_api.services.registry import Live
from sandbox_api.store.functions import ContainerRecord, InputRecord
from sandbox_api.store.records import ExecRecord

_log = structlog.get_logger(__name__)
_HAVE_S: Final = 20.0
_WORDS_MAX: Final = 2048

OnFrames = Callable[["Container", list[Frame], int], None]
"""Hears some of what came, and how many bytes of the log that makes in all; all of it is dealt with on return."""


class Container:
    """See the module; made once its runner was started, or after a restart."""

    def __init__(self, host: Host, execs: ExecService, live: Live, exec_: ExecRecord, record: ContainerRecord) -> None:
        self._host = host
        self._execs = execs
        self.live = live
        self.exec = exec_
        self.record = record
        self.hand: dict[str, InputRecord] = {}
        self.deadlines: dict[str, float] = {}
        self.ready = False
        self.stopping = False
        self.idle_since = time.time()
        self.started_at: float | None = None
        """When its start began; None for one of an earlier server."""
        self.broken: Frame | None = None
        self.violation = ""
        """What its runner said that no runner of ours says."""
        self.snap = asyncio.Event()
        """Set when the runner says that its memory can be copied; it waits then."""
        self.words = b""
        """The last that was said before the runner was there: why it is not."""
        self.fetching = 0
        """Bytes of large values that are being read out of it."""
        self.visits = 0
        """Requests to a web function that it answers."""
        self.beside: set[str] = set()
        """Inputs that run where another one waits for its own call."""
        self.waits: Counter[str] = Counter()
        """By input, how many calls of its own it waits for."""
        self.asked: set[int] = set()
        """Questions that the runner has open, as far as what it says tells."""
        self.answered: set[int] = set()
        """Those of them that were answered since: what it said before it had the answers counts them still."""
        self._have: dict[int, asyncio.Future[list[str]]] = {}
        self._asked = 0
        self._held = False

    @property
    def sandbox(self) -> str:
        """Its sandbox's id."""
        return self.live.record.id

    @property
    def gone(self) -> bool:
        """Whether its sandbox has ended."""
        return self.live.record.state in FINAL

    # ---- inputs

    @property
    def busy(self) -> int:
        """How much it does at once."""
        return len(self.hand) + self.visits

    @property
    def waiting(self) -> int:
        """How many inputs in its hand do nothing but wait for calls of their own."""
        return sum(1 for each in self.hand if self.waits[each])

    def take(self, record: InputRecord, deadline: float) -> None:
        """This input is in its hand from now on."""
        self.hand[record.id] = record
        self.deadlines[record.id] = deadline
        self._hold()

    def let_go(self, id_: str) -> InputRecord | None:
        """That input is over, as far as this container goes."""
        self.deadlines.pop(id_, None)
        self.beside.discard(id_)
        found = self.hand.pop(id_, None)
        self._rest()
        return found

    def visit(self) -> None:
        """A request to a web function begins."""
        self.visits += 1
        self._hold()

    def leave(self) -> None:
        """It is over."""
        self.visits -= 1
        self._rest()

    def _rest(self) -> None:
        if not self.busy:
            self.idle_since = time.time()
            self._release()

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._host.hold(self.sandbox)

    def _release(self) -> None:
        if self._held:
            self._held = False
            self._host.let_go(self.sandbox)

    def starts(self) -> None:
        """It is not to be frozen until it is ready."""
        self._hold()

    async def send(self, line: bytes) -> None:
        """Tell the runner something; one that has died takes nothing, and its end is told elsewhere."""
        with contextlib.suppress(IsoboxError):
            await self._host.execs.write_input(self.sandbox, self.exec.id, line)

    async def have(self) -> list[str]:
        """Ask the runner what it has in hand; what it said before that has been dealt with by then. TimeoutError."""
        self._asked += 1
        answered = self._have[self._asked] = asyncio.get_running_loop().create_future()
        self._hold()
        try:
            await self.send(protocol.have(self._asked))
            async with asyncio.timeout(_HAVE_S):
                found: list[str] = await answered
                return found
        finally:
            self._have.pop(self._asked, None)
            if not self.busy:
                self._release()

    # ---- what it says

    async def pump(self, on_frames: OnFrames) -> None:
        """Hand on what the runner says, until its end; RunnerViolation."""
        lines, seen, skip, turn = Lines(), 0, self.record.taken, turn_budget()
        try:
            async for event in self._execs.follow(self.exec, 0):
                if isinstance(event, Gap):
                    seen += event.stdout_bytes
                elif event.type == EventType.EXIT:
                    return
                elif event.type == EventType.STDERR:
                    self.words = (self.words + event.payload)[-_WORDS_MAX:]
                elif event.type == EventType.STDOUT:
                    data = event.payload[max(0, skip - seen) :]
                    taken = max(seen, skip) - lines.pending
                    self.asked -= self.answered
                    self.answered.clear()
                    seen += len(event.payload)
                    for batch in protocol.batches(lines.cut(data)):
                        await turn.take(protocol.cost(batch))
                        frames = [frame for frame in map(protocol.parse, batch) if self._not_ours(frame)]
                        taken += sum(len(line) + 1 for line in batch)
                        self.record.taken = taken
                        on_frames(self, frames, taken)
        finally:
            for each in self._have.values():
                if not each.done():
                    each.set_exception(RunnerViolation("the runner has ended"))
                    each.exception()
            self._release()

    def _not_ours(self, frame: Frame) -> bool:
        if frame.kind == "ready":
            self.ready = True
            self._rest()
            return True
        if frame.kind == "have":
            answered = self._have.get(frame.number)
            if answered is not None and not answered.done():
                self.ready = True
                answered.set_result(frame.ids)
            return False
        if frame.kind == "snap":
            self.snap.set()
            return False
        if frame.kind == "broken":
            self.broken = frame
            return False
        return True
