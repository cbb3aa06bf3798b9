"""The sandboxes that live now: what the server knows of them beyond their records."""

import asyncio
import time
from dataclasses import dataclass, field

from sandbox_api.lifecycle import FINAL, USABLE
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
    warned: bool = False

    @property
    def idle_deadline(self) -> float | None:
        """When it ends for want of use; None while something runs or where nothing was asked for."""
        if self.record.idle_timeout_s is None or self.execs:
            return None
        return self.used_at + self.record.idle_timeout_s


class Registry:
    """Looks sandboxes up, dead or alive; a foreign id is an absent one."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.live: dict[str, Live] = {}
        self.reserved = 0
        """Places taken by those being created."""

    async def record(self, tenant: str, id_: str) -> SandboxRecord:
        """The sandbox's record; 404."""
        live = self.live.get(id_)
        record = live.record if live is not None else await self.store.sandbox(tenant, id_)
        if record is None or record.tenant != tenant:
            raise not_found("sandbox")
        return record

    async def usable(self, tenant: str, id_: str) -> Live:
        """A sandbox to work in; 404, or 409 with the reason why not. Counts as use."""
        record = await self.record(tenant, id_)
        live = self.live.get(id_)
        if live is None or record.state in FINAL or record.state not in USABLE:
            reason = (record.termination or {}).get("reason")
            if record.state == "paused":
                raise _paused()
            raise sandbox_ended(record.state, reason)
        live.used_at = time.time()
        return live


def _paused() -> Problem:
    return Problem(409, "sandbox_paused", "the sandbox is paused", hint="resume it first: POST …/resume")
