"""A sandbox's transitions: its state, its record, its events and who waits for its end, always together."""

import time

from sandbox_api.lifecycle import FINAL, after
from sandbox_api.lifecycle import Event as LifeEvent
from sandbox_api.metrics import Metrics
from sandbox_api.models.sandboxes import Termination
from sandbox_api.services.registry import Live, Registry


class Life:
    """See the module."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry = registry
        self._metrics = metrics

    async def move(self, live: Live, event: LifeEvent, termination: Termination | None = None) -> None:
        """Let event happen to it; IllegalTransition where it cannot."""
        record = live.record
        record.state = after(record.state, event)
        if termination is not None:
            record.termination = termination.model_dump()
        if record.state not in FINAL:
            await self._registry.store.save_sandbox(record)
            live.events.add("state", state=record.state)
            return
        record.ended_at = time.time()
        record.expires_at = None
        await self._registry.store.save_sandbox(record)
        if (record.termination or {}).get("reason") == "oom":
            live.events.add("oom", detail=(record.termination or {}).get("detail", ""))
        live.over.set()
        live.events.add("end", last=True, state=record.state, termination=record.termination)
        self._registry.live.pop(record.id, None)
        self._metrics.ended.labels((record.termination or {}).get("reason", "")).inc()

    async def started(self, live: Live, began: float) -> None:
        """It runs, asked for at `began` seconds since the epoch; its time counts from now."""
        record = live.record
        record.started_at = time.time()
        record.expires_at = record.started_at + record.timeout_s
        await self.move(live, LifeEvent.STARTED)
        self._metrics.created.inc()
        self._metrics.create_seconds.observe(record.started_at - began)
