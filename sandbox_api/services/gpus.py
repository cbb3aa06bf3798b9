"""Who has which GPU, in whose turn, and what becomes of one when it is given back.

    free ──▶ used ──▶ cleaning ──▶ free
               ╲         ╲──────▶ quarantined ──(cleared)──▶ cleaning
                ╲────────────────▶ (once its sandbox has ended)

Records of living sandboxes say what is theirs; the store says of each device whether somebody had it since it was
cleaned last, and whether it is quarantined. What a crash leaves follows from these: nothing is given to two.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from common.errors import IsoboxError
from common.tasks import TaskOwner
from gpu import allocate, outfit
from gpu.device import Device, Inventory, Sample
from gpu.errors import GpuBusy
from sandbox_api.host.interface import Host
from sandbox_api.models.gpus import AskedGpu, Gpu, GpuPage
from sandbox_api.problems import Problem, not_found, sandbox_ended
from sandbox_api.services.registry import Registry
from sandbox_api.store.records import SandboxRecord

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Waiter:
    """An ask that waits."""

    ask: allocate.Ask
    granted: "asyncio.Future[tuple[Device, ...]]"
    tell: Callable[[int], None]
    position: int = 0


@dataclass(slots=True)
class _Kept:
    """What the store knows of a device."""

    dirty: bool = False
    quarantined: str | None = None


class GpuService:
    """The use cases of GPUs."""

    def __init__(self, host: Host, registry: Registry, tasks: TaskOwner, *, look_s: float) -> None:
        self._host = host
        self._registry = registry
        self._store = registry.store
        self._tasks = tasks
        self._look_s = look_s
        self._used: dict[str, str] = {}
        self._cleaning: set[str] = set()
        self._kept: dict[str, _Kept] = {}
        self._waiting: dict[object, _Waiter] = {}
        """Those that wait, in their order, by their sandboxes' ids."""

    # ---- taking and giving back

    async def take(self, asked: AskedGpu) -> tuple[Device, ...] | None:
        """Devices for an ask if they can be had now; they are the caller's then (`note` says whose).

        None for one that waits (`wait`). GpuImpossible for what nobody has, GpuBusy for what cannot be had now.
        """
        inventory = self._host.gpus.inventory
        allocate.check(asked.ask, inventory.devices)
        mine, waiter = object(), self._waiter(asked)
        self._waiting[mine] = waiter
        try:
            self._serve()
        finally:
            del self._waiting[mine]
        if waiter.granted.done():
            return waiter.granted.result()
        if asked.wait_s:
            return None
        raise allocate.busy(asked.ask, inventory.devices, self._why_not(inventory))

    @staticmethod
    def _waiter(asked: AskedGpu, tell: Callable[[int], None] = lambda _: None) -> _Waiter:
        return _Waiter(asked.ask, asyncio.get_running_loop().create_future(), tell)

    async def wait(self, asked: AskedGpu, sandbox: str, tell: Callable[[int], None]) -> tuple[Device, ...]:
        """The same in its turn, at most asked.wait_s seconds; tell hears the place in the queue. GpuBusy after that."""
        waiter = self._waiting[sandbox] = self._waiter(asked, tell)
        try:
            self._serve()
            async with asyncio.timeout(asked.wait_s):
                return await waiter.granted
        except TimeoutError:
            inventory = self._host.gpus.inventory
            error = allocate.busy(asked.ask, inventory.devices, self._why_not(inventory))
            detail = f"{error.detail}; waited {asked.wait_s:g} s, and was number {waiter.position}"
            raise GpuBusy(detail, hint=error.hint) from None
        except BaseException:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                await self.give_back([each.uuid for each in waiter.granted.result()])
            raise
        finally:
            del self._waiting[sandbox]
            self._serve()

    def _serve(self) -> None:
        """Give what is free to those who wait, in their turn."""
        inventory = self._host.gpus.inventory
        why_not = self._why_not(inventory)
        free = [each for each in inventory.devices if each.uuid not in why_not]
        waiting = [each for each in self._waiting.values() if not each.granted.done()]
        for waiter, devices in zip(waiting, allocate.serve([each.ask for each in waiting], free), strict=True):
            if devices is not None:
                for device in devices:
                    self._used[device.uuid] = ""  # nobody else's; whose, is said when the sandbox has a name
                waiter.granted.set_result(devices)
        left = [each for each in waiting if not each.granted.done()]
        for position, each in enumerate(left, 1):
            if each.position != position:
                each.position = position
                each.tell(position)

    async def note(self, devices: tuple[Device, ...], sandbox: str) -> None:
        """These are that sandbox's: written down before it can use one."""
        for each in devices:
            self._used[each.uuid] = sandbox
            kept = self._kept.setdefault(each.uuid, _Kept())
            kept.dirty = True
            await self._save(each.uuid)

    async def give_back(self, uuids: list[str]) -> None:
        """Nobody has them any more: they are cleaned, and then free. No error for what is not in use."""
        for uuid in uuids:
            if self._used.pop(uuid, None) is not None:
                self._begin_cleaning(uuid)
        self._serve()

    async def leave(self, sandbox: SandboxRecord) -> None:
        """It has ended."""
        if (waiter := self._waiting.get(sandbox.id)) is not None and not waiter.granted.done():
            waiter.granted.set_exception(sandbox_ended(sandbox.state, "requested"))
        if sandbox.gpus:
            await self.give_back([each["uuid"] for each in sandbox.gpus])

    def _begin_cleaning(self, uuid: str) -> None:
        kept = self._kept.setdefault(uuid, _Kept())
        if kept.dirty and uuid not in self._cleaning:
            self._cleaning.add(uuid)
            self._tasks.spawn(self._clean(uuid), name=f"clean {uuid}")

    async def _clean(self, uuid: str) -> None:
        kept = self._kept[uuid]
        device = next((each for each in self._host.gpus.inventory.devices if each.uuid == uuid), None)
        try:
            if device is not None:  # one that is gone is cleaned when it comes back
                await self._host.gpus.clean(device)
                kept.dirty = False
        except IsoboxError as error:
            kept.quarantined = error.detail
            _log.error("a GPU is quarantined", uuid=uuid, reason=error.detail)
        finally:
            self._cleaning.discard(uuid)
        await self._save(uuid)
        self._serve()

    async def _save(self, uuid: str) -> None:
        kept = self._kept[uuid]
        await self._store.save_gpu(uuid, {"dirty": kept.dirty, "quarantined": kept.quarantined})

    def _why_not(self, inventory: Inventory) -> dict[str, str]:
        """Of each device that is not free, what it does."""
        found = {}
        for each in inventory.devices:
            kept = self._kept.get(each.uuid, _Kept())
            if each.slices:
                found[each.uuid] = "sliced"
            elif kept.quarantined is not None or each.uuid in inventory.sick:
                found[each.uuid] = "quarantined"
            elif each.uuid in self._used:
                found[each.uuid] = "used"
            elif each.uuid in self._cleaning or kept.dirty:
                found[each.uuid] = "cleaning"
        return found

    # ---- looking

    async def all(self, tenant: str) -> GpuPage:
        """All of the machine's."""
        inventory = await self._host.gpus.look()
        why_not = self._why_not(inventory)
        gpus = [self._describe(each, inventory, why_not.get(each.uuid, "free"), tenant) for each in inventory.devices]
        return GpuPage(driver=inventory.driver, problem=inventory.problem, waiting=len(self._waiting), gpus=gpus)

    def _describe(self, device: Device, inventory: Inventory, state: str, tenant: str) -> Gpu:
        live = self._registry.live.get(self._used.get(device.uuid, ""))
        own = live is not None and live.record.tenant == tenant
        # How hard another tenant's GPU works is that tenant's affair.
        sample = inventory.samples.get(device.uuid, Sample()) if own or state != "used" else Sample()
        kept = self._kept.get(device.uuid, _Kept())
        return Gpu(
            uuid=device.uuid,
            kind=device.kind,
            name=device.name,
            memory_mb=device.memory_mb,
            pci=device.pci,
            numa=None if device.numa < 0 else device.numa,
            nvlinks=sorted(device.links),
            parent=device.parent,
            state=state,  # type: ignore[arg-type]  # one of its states
            reason=kept.quarantined or inventory.sick.get(device.uuid),
            sandbox=live.record.id if live is not None and own else None,
            memory_used_mb=sample.memory_used_mb,
            utilization=sample.utilization,
            temperature=sample.temperature,
            power_w=sample.power_w,
        )

    def usage_of(self) -> list[tuple[Device, Sample, str]]:
        """For the metrics: each device, how it does, and the sandbox that has it or ""."""
        inventory = self._host.gpus.inventory
        return [
            (each, inventory.samples.get(each.uuid, Sample()), self._used.get(each.uuid, ""))
            for each in inventory.devices
            if each.parent is None
        ]

    async def clear(self, uuid: str) -> None:
        """Somebody says that a quarantined one is well: it is cleaned, and then free."""
        if all(each.uuid != uuid for each in self._host.gpus.inventory.devices):
            raise not_found("gpu")
        if uuid in self._used:
            raise Problem(409, "gpu_used", "a sandbox has it", hint="end that sandbox first")
        await self._host.gpus.forgive(uuid)
        kept = self._kept.setdefault(uuid, _Kept())
        kept.quarantined, kept.dirty = None, True
        await self._save(uuid)
        await self._host.gpus.look()
        self._begin_cleaning(uuid)

    # ---- by themselves

    async def recover(self) -> None:
        """After a start: who has what, what has to be cleaned."""
        for uuid, doc in await self._store.gpus():
            self._kept[uuid] = _Kept(dirty=bool(doc["dirty"]), quarantined=doc["quarantined"])
        for live in self._registry.live.values():
            for each in live.record.gpus:
                self._used[each["uuid"]] = live.record.id
        await self._host.gpus.look()
        self._clean_what_is_left()

    def _clean_what_is_left(self) -> None:
        there = {each.uuid for each in self._host.gpus.inventory.devices}
        for uuid, kept in self._kept.items():
            if kept.dirty and kept.quarantined is None and uuid not in self._used and uuid in there:
                self._begin_cleaning(uuid)

    async def watch(self) -> None:
        """Look at the devices every so often, for ever."""
        told: dict[str, str] = {}
        while True:
            before = self._host.gpus.inventory
            inventory = await self._host.gpus.look()
            for uuid, reason in inventory.sick.items():
                kept = self._kept.setdefault(uuid, _Kept())
                if kept.quarantined is None:
                    kept.quarantined = reason
                    _log.error("a GPU is quarantined", uuid=uuid, reason=reason)
                    await self._save(uuid)
                    self._tell(uuid, reason, told)
            there = {each.uuid for each in inventory.devices}
            for each in before.devices:
                if each.uuid not in there:
                    self._tell(each.uuid, "it is gone", told)
            self._clean_what_is_left()
            self._serve()
            await asyncio.sleep(self._look_s)

    def _tell(self, uuid: str, reason: str, told: dict[str, str]) -> None:
        """Its sandbox hears of it, once."""
        if told.get(uuid) == reason:
            return
        told[uuid] = reason
        live = self._registry.live.get(self._used.get(uuid, ""))
        if live is not None:
            live.events.add("gpu_failed", uuid=uuid, detail=reason)


def described(devices: tuple[Device, ...]) -> list[dict[str, Any]]:
    """As a sandbox's record has them."""
    return [{"uuid": each.uuid, "kind": each.kind, "memory_mb": each.memory_mb} for each in devices]


def environment(record: SandboxRecord) -> dict[str, str]:
    """Defaults of what runs in a sandbox that has GPUs."""
    return outfit.environment([each["uuid"] for each in record.gpus]) if record.gpus else {}


def refuse_copies(record: SandboxRecord) -> None:
    """409 for a sandbox whose memory cannot be copied, because some of it lies in a GPU."""
    if record.gpus:
        raise Problem(
            409,
            "gpu_not_copied",
            "a sandbox with a GPU cannot be copied or paused: runsc does not save what lies in a GPU",
            hint="keep its files: a snapshot with kind=filesystem; or end it, and create another one",
        )


def seconds(record: SandboxRecord, now: float) -> dict[str, float]:
    """GPU seconds of a sandbox by kind."""
    if record.started_at is None:
        return {}
    took = (record.ended_at or now) - record.started_at
    found: dict[str, float] = {}
    for each in record.gpus:
        found[each["kind"]] = found.get(each["kind"], 0.0) + took
    return found
