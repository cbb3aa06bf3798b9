"""The sandboxes that live now: what the server knows of them beyond their records."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sandbox_api.host.interface import Resources
from sandbox_api.lifecycle import FINAL, USABLE, State
from sandbox_api.problems import Problem, not_found, sandbox_ended
from sandbox_api.services.events import EventLog
from sandbox_api.store.records import ExecRecord, SandboxRecord
from sandbox_api.store.store import Store


@dataclass(slots=True)
class Live:
    """A sandbox that has not ended."""

    record: SandboxRecord
    events: EventLog
    used_at: float = field(default_factory=time.time)
    execs: dict[str, ExecRecord] = field(default_factory=dict)
    """Those that run."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    ending: asyncio.Lock = field(default_factory=asyncio.Lock)
    moving: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is paused or resumed."""
    park_not_before: float = 0.0
    warned: bool = False

    @property
    def works(self) -> bool:
        """Whether something was asked of it that has not ended; a context that waits for code does not count."""
        return any(each.role != "context" for each in self.execs.values())

    @property
    def parked(self) -> bool:
        """Whether a copy on disk is all there is of it."""
        return self.record.state == State.PAUSED

    @property
    def idle_deadline(self) -> float | None:
        """When it ends for want of use; None while something runs or where nothing was asked for."""
        if self.record.idle_timeout_s is None or self.works:
            return None
        return self.used_at + self.record.idle_timeout_s


class Registry:
    """Looks sandboxes up, dead or alive; a foreign id is an absent one."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.live: dict[str, Live] = {}
        self.wake: Callable[[Live], Awaitable[None]] = _nobody_wakes
        """How a sandbox that was parked goes on; set where the server is composed."""
        self._reserved = 0

    @contextmanager
    def places(self, count: int, limit: int) -> Iterator[None]:
        """Count sandboxes that are on their way against the limit; 429 where there are too many."""
        if len(self.live) + self._reserved + count > limit:
            raise Problem(
                429,
                "too_many_sandboxes",
                f"the server's {limit} sandboxes are all in use",
                hint="terminate some, or try again later",
                retryable=True,
            )
        self._reserved += count
        try:
            yield
        finally:
            self._reserved -= count

    async def record(self, tenant: str, id_: str) -> SandboxRecord:
        """The sandbox's record; 404."""
        live = self.live.get(id_)
        record = live.record if live is not None else await self.store.sandbox(tenant, id_)
        if record is None or record.tenant != tenant:
            raise not_found("sandbox")
        return record

    async def usable(self, tenant: str, id_: str) -> Live:
        """A sandbox to work in, woken if it was parked; 404, or 409 with the reason why not. Counts as use."""
        record = await self.record(tenant, id_)
        live = self.live.get(id_)
        if live is not None:
            live.used_at = time.time()
            if live.moving.locked() or live.parked:
                await self.wake(live)
        if live is None or record.state in FINAL or record.state not in USABLE:
            reason = (record.termination or {}).get("reason")
            if record.state == "paused":
                raise _paused()
            raise sandbox_ended(record.state, reason)
        live.used_at = time.time()
        return live


async def _nobody_wakes(_: Live) -> None:
    raise RuntimeError("composed without a way to wake sandboxes")


def host_resources(record: SandboxRecord) -> Resources:
    """What it may use, as the host takes it."""
    given = {name: value for name, value in record.resources.items() if name != "gpu"}
    return Resources(**given, namespaces=record.namespaces)


def _paused() -> Problem:
    return Problem(
        409, "sandbox_paused", "the sandbox is paused", hint="resume it first: POST …/resume, or `isobox resume ID`"
    )
