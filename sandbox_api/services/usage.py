"""What sandboxes used: kept when they end, longer than their records."""

import time
from typing import Final

from sandbox_api.host.interface import Host
from sandbox_api.models.common import time_of
from sandbox_api.models.usage import FunctionUsage, Usage, UsagePage
from sandbox_api.services.gpus import seconds
from sandbox_api.services.registry import Registry
from sandbox_api.store.records import SandboxRecord, UsageRecord

LABEL: Final = "isobox.function"
"""What the sandboxes of a function are known by."""

_KEPT_S: Final = 90 * 86400.0
_MOST: Final = 10_000


class UsageService:
    """The use cases of usage."""

    def __init__(self, host: Host, registry: Registry) -> None:
        self._host = host
        self._registry = registry
        self._store = registry.store

    async def keep(self, record: SandboxRecord, cpu_s: float) -> None:
        """It has ended, having used that many CPU seconds since it was paused last."""
        if record.started_at is not None:
            await self._store.save_usage(_usage(record, cpu_s, record.ended_at or time.time()))

    async def forget_old(self) -> None:
        """Delete what is older than 90 days."""
        await self._store.forget_usage(time.time() - _KEPT_S)

    async def all(self, tenant: str, since: float, until: float) -> UsagePage:
        """Of the tenant's sandboxes that ran at some moment between, those that still run too; 10,000 at most."""
        now = time.time()
        running = [
            (_usage(each.record, self._cpu_s(each.record), now), True)
            for each in self._registry.live.values()
            if each.record.tenant == tenant and each.record.started_at is not None and each.record.started_at < until
        ]
        ended = [(each, False) for each in await self._store.usage(tenant, since, until, _MOST)]
        found = sorted([*running, *ended], key=lambda each: each[0].started_at, reverse=True)[:_MOST]
        records = [each for each, _ in found]
        return UsagePage(
            usage=[_describe(each, runs) for each, runs in found],
            total_cpu_s=round(sum(each.cpu_s for each in records), 3),
            total_gpu_s=_gpu_s(records),
            functions=_by_function(records),
        )

    def _cpu_s(self, record: SandboxRecord) -> float:
        return self._host.usage(record.id).cpu_s if record.state == "running" else 0.0


def _usage(record: SandboxRecord, cpu_s: float, now: float) -> UsageRecord:
    assert record.started_at is not None
    return UsageRecord(
        sandbox=record.id,
        tenant=record.tenant,
        name=record.name,
        labels=record.labels,
        started_at=record.started_at,
        ended_at=now,
        cpu_s=round(record.cpu_s + cpu_s, 3),
        gpu_s={kind: round(used, 3) for kind, used in seconds(record, now).items()},
    )


def _gpu_s(records: list[UsageRecord]) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in records:
        for kind, used in each.gpu_s.items():
            total[kind] = round(total.get(kind, 0.0) + used, 3)
    return total


def _by_function(records: list[UsageRecord]) -> list[FunctionUsage]:
    by: dict[str, list[UsageRecord]] = {}
    for each in records:
        if (function := each.labels.get(LABEL)) is not None:
            by.setdefault(function, []).append(each)
    return [
        FunctionUsage(
            function=function,
            name=mine[0].name,
            containers=len(mine),
            seconds=round(sum(each.ended_at - each.started_at for each in mine), 3),
            cpu_s=round(sum(each.cpu_s for each in mine), 3),
            gpu_s=_gpu_s(mine),
        )
        for function, mine in by.items()
    ]


def _describe(record: UsageRecord, runs: bool) -> Usage:
    return Usage(
        sandbox=record.sandbox,
        name=record.name,
        labels=record.labels,
        started_at=time_of(record.started_at),  # type: ignore[arg-type]  # not None
        ended_at=None if runs else time_of(record.ended_at),
        seconds=round(record.ended_at - record.started_at, 3),
        cpu_s=record.cpu_s,
        gpu_s=record.gpu_s,
    )
