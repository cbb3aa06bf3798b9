"""Pausing to disk and going on from there: by request, and by itself for want of use.

    running ──pause──▶ paused (by request: until resume; by idle: until anybody uses it)

A pause copies the sandbox and ends it in one standstill, so that nothing happens twice and nothing is lost: its execs
go on in the copy, their followers wait. One lock a sandbox: whoever comes meanwhile waits for the one move.
"""

import time
from typing import Literal

import structlog

from common.errors import IsoboxError
from common.tasks import TaskOwner
from sandbox_api.host.interface import CopyFacts, Host, KnownExec
from sandbox_api.lifecycle import Event as LifeEvent
from sandbox_api.lifecycle import State
from sandbox_api.problems import Problem, sandbox_ended
from sandbox_api.services.buckets import BucketService
from sandbox_api.services.egress import EgressService
from sandbox_api.services.execs import ExecService
from sandbox_api.services.gpus import refuse_copies
from sandbox_api.services.life import Life
from sandbox_api.services.registry import Live, Registry, host_resources
from sandbox_api.settings import Settings
from sandbox_api.store.records import SandboxRecord

_log = structlog.get_logger(__name__)
_RETRY_S = 60.0


class Parking:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        registry: Registry,
        life: Life,
        execs: ExecService,
        egress: EgressService,
        buckets: BucketService,
        tasks: TaskOwner,
    ) -> None:
        self._settings = settings
        self._host = host
        self._registry = registry
        self._life = life
        self._execs = execs
        self._egress = egress
        self._buckets = buckets
        self._tasks = tasks
        registry.wake = self.wake

    # ---- by request

    async def pause(self, tenant: str, id_: str) -> SandboxRecord:
        """Copy it to disk and free its memory; idempotent."""
        record = await self._registry.record(tenant, id_)
        if (live := self._registry.live.get(id_)) is None:
            raise _ended(record)
        async with live.moving:
            if live.parked and record.paused_by == "idle":
                record.paused_by = "request"
                await self._registry.store.save_sandbox(record)
            elif not live.parked:
                await self._park(live, "request")
        return record

    async def resume(self, tenant: str, id_: str) -> SandboxRecord:
        """Let it go on; idempotent."""
        record = await self._registry.record(tenant, id_)
        if (live := self._registry.live.get(id_)) is None:
            raise _ended(record)
        async with live.moving:
            if live.parked:
                await self._go_on(live)
            elif record.state != State.RUNNING:
                raise _ended(record)
        return record

    # ---- by itself

    async def wake(self, live: Live) -> None:
        """Somebody uses it: let it go on if it was parked for want of that."""
        async with live.moving:
            if live.parked and live.record.paused_by == "idle":
                await self._go_on(live)

    def look(self, live: Live, now: float) -> list[float]:
        """Begin to park it if it is due; otherwise the moment to look again."""
        record = live.record
        after_s = self._settings.park_after_s if record.park_after_s is None else record.park_after_s
        if record.state != State.RUNNING or live.moving.locked() or record.gpus:
            return []
        due = max(live.used_at + after_s, live.park_not_before)
        if due > now:
            return [due]
        if live.works or not self._host.is_idle(record.id):
            if not live.works:
                self._tasks.spawn(self._say_what_holds(live), name=f"look at {record.id}")
            return [now + min(after_s, 1.0)]
        self._tasks.spawn(self._park_idle(live, live.used_at), name=f"park {record.id}")
        return [now + 1.0]

    async def _say_what_holds(self, live: Live) -> None:
        """It is due and nobody uses it, yet it is not still: if that is for its connections, say so."""
        if live.record.state == State.RUNNING and (count := await self._host.networks.connections(live.record.id)):
            live.park_not_before = time.time() + _RETRY_S
            live.events.add("not_parked", detail=f"{count} connections to the outside are open")

    async def _park_idle(self, live: Live, used_at: float) -> None:
        async with live.moving:
            if live.used_at != used_at or live.record.state != State.RUNNING:
                return
            try:
                await self._park(live, "idle")
            except (IsoboxError, OSError, TimeoutError) as error:
                if live.record.state == State.RUNNING:
                    live.park_not_before = time.time() + _RETRY_S
                    live.events.add("not_parked", detail=str(error)[:500])
                    _log.warning("not parked", sandbox=live.record.id, error=str(error)[:500])

    # ---- the two moves

    async def _park(self, live: Live, by: Literal["request", "idle"]) -> None:
        record = live.record
        if record.state != State.RUNNING:
            raise _ended(record)
        refuse_copies(record)
        cpu_s = self._host.usage(record.id).cpu_s
        copy = await self._host.copies.pause(record.id)
        if record.state != State.RUNNING:  # terminated meanwhile
            await self._host.copies.drop(record.id)
            raise _ended(record)
        record.copy = {"digest": copy.digest, "size": copy.size}
        record.paused_by = by
        record.cpu_s += cpu_s
        await self._life.move(live, LifeEvent.PAUSED)
        assert record.image_digest is not None
        await self._host.copies.park(record.id, record.image_digest)

    async def _go_on(self, live: Live) -> None:
        record = live.record
        execs = [each for each in live.execs.values() if each.state != "exited" and each.role != "run"]
        known = [self._execs.known(each, record) for each in execs]
        assert record.copy is not None
        assert record.image_digest is not None
        copy = CopyFacts(record.id, record.copy["digest"], record.copy["size"], {})
        egress = await self._egress.again(record)
        never = await self._host.copies.restore(
            record.id, copy, record.image_digest, host_resources(record), known, egress
        )
        await self._egress.trust(record, egress)
        for each in execs:
            if each.id in never:
                live.execs.pop(each.id, None)
                await self._execs.unknown(each)
        await self._resumed(live)

    async def _resumed(self, live: Live) -> None:
        record = live.record
        if record.state != State.PAUSED:  # terminated meanwhile
            await self._host.destroy_sandbox(record.id)
            raise _ended(record)
        record.copy = record.paused_by = None
        live.used_at = time.time()
        await self._buckets.go_on(record)
        await self._life.move(live, LifeEvent.RESUMED)
        await self._host.copies.drop(record.id)

    async def recover(self, live: Live, execs: list[KnownExec]) -> set[str]:
        """After a restart, of one that was paused: it stays so, unless the earlier server had resumed it already."""
        record = live.record
        if not self._host.recover_parked(record.id, execs):
            return set()
        try:
            never = await self._host.recover_sandbox(record.id, host_resources(record), execs)
        except (IsoboxError, OSError, TimeoutError) as error:
            _log.info("it had not gone on yet", sandbox=record.id, error=str(error))
            self._host.recover_parked(record.id, execs)
            return set()
        await self._resumed(live)
        return never


def _ended(record: SandboxRecord) -> Problem:
    return sandbox_ended(record.state, (record.termination or {}).get("reason"))
