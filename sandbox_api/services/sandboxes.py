"""The life of sandboxes: create, look, end; and what happens to them by themselves."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import structlog

from common.errors import IsoboxError
from common.ids import new_id
from common.tasks import TaskOwner
from fs.conveniences import with_user_programs
from isolation.errors import ChannelLost, SandboxGone
from isolation.execlog import Event, Gap
from sandbox_api.host.interface import BARE, Device, Egress, Equipment, Host, ImageFacts, KnownEgress
from sandbox_api.lifecycle import FINAL, State
from sandbox_api.lifecycle import Event as LifeEvent
from sandbox_api.models.common import time_of
from sandbox_api.models.execs import ExecRequest
from sandbox_api.models.sandboxes import (
    CreateSandbox,
    PatchSandbox,
    Resources,
    Sandbox,
    SandboxGpu,
    Stats,
    Termination,
)
from sandbox_api.output.follow import follow
from sandbox_api.problems import Problem, invalid
from sandbox_api.services.buckets import BucketService
from sandbox_api.services.catalog import Catalog
from sandbox_api.services.contexts import ContextService
from sandbox_api.services.cursor import decode_cursor, encode_cursor
from sandbox_api.services.egress import EgressService
from sandbox_api.services.events import EVENTS, EventLog
from sandbox_api.services.execs import ExecService
from sandbox_api.services.gpus import GpuService, described
from sandbox_api.services.life import Life
from sandbox_api.services.parking import Parking
from sandbox_api.services.registry import Live, Registry, host_resources
from sandbox_api.services.usage import UsageService
from sandbox_api.services.volumes import VolumeService
from sandbox_api.settings import Settings
from sandbox_api.store.records import SandboxRecord

_log = structlog.get_logger(__name__)
_WARN_BEFORE_S = 30.0


class SandboxService:
    """The use cases of sandboxes."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        registry: Registry,
        catalog: Catalog,
        volumes: VolumeService,
        buckets: BucketService,
        gpus: GpuService,
        usage: UsageService,
        life: Life,
        execs: ExecService,
        parking: Parking,
        contexts: ContextService,
        egress: EgressService,
        tasks: TaskOwner,
    ) -> None:
        self._settings = settings
        self._host = host
        self._registry = registry
        self._store = registry.store
        self._catalog = catalog
        self._volumes = volumes
        self._buckets = buckets
        self._gpus = gpus
        self._usage = usage
        self._life = life
        self._execs = execs
        self._parking = parking
        self._contexts = contexts
        self._egress = egress
        self._tasks = tasks
        self._clock_moved = asyncio.Event()

    # ---- creating

    async def create(self, tenant: str, request: CreateSandbox) -> SandboxRecord:
        """Create it and wait until it runs; on failure the record says why and nothing is left."""
        if not self._settings.allow_root and request.user.partition(":")[0] in ("root", "0"):
            raise Problem(403, "root_forbidden", "this server runs nothing as root", hint="leave `user` out")
        refuse_namespaces(self._settings, request.namespaces)
        with self._registry.places(1, self._settings.max_sandboxes):
            image = await self._catalog.find(tenant, request.image)
        return await self.create_of(tenant, request, image)

    async def create_of(self, tenant: str, request: CreateSandbox, image: ImageFacts) -> SandboxRecord:
        """The same, of an image that was found already."""
        began = time.time()
        record = SandboxRecord(
            id="",
            tenant=tenant,
            state=State.CREATING,
            image=request.image,
            image_digest=image.digest,
            created_at=began,
            resources=request.resources.model_dump(),
            timeout_s=request.timeout_s,
            user=request.user,
            name=request.name,
            labels=request.labels,
            env=_image_env(image) | request.env,
            workdir=request.workdir or image.config.get("workdir"),
            command=request.command,
            idle_timeout_s=request.idle_timeout_s,
            park_after_s=request.park_after_s,
            namespaces=request.namespaces,
        )
        with self._registry.places(1, self._settings.max_sandboxes):
            egress = await self._egress.begin(record, request.asked_network)
        wanted = request.resources.gpu
        devices = () if wanted is None else await self._gpus.take(wanted)
        claimed = None
        try:
            if devices is not None:
                equipment = await self._host.gpus.equip(devices)
                claimed = await self._host.claim_sandbox(image.name, host_resources(record), egress, equipment)
        except BaseException:
            await self._gpus.give_back([each.uuid for each in devices or ()])
            raise
        record.id = claimed or new_id("sbx")
        live = Live(record, EventLog(self._host.execs.log_path(record.id, EVENTS)))
        self._registry.live[record.id] = live
        # Shielded: a client that goes away leaves a sandbox with a record, never one without.
        starting = self._start(live, began, image.name, egress, request, devices, ready=claimed is not None)
        return await asyncio.shield(self._tasks.spawn(starting, name=f"create {record.id}"))

    async def _start(
        self,
        live: Live,
        began: float,
        image: str,
        egress: Egress,
        request: CreateSandbox,
        devices: tuple[Device, ...] | None,
        *,
        ready: bool,
    ) -> SandboxRecord:
        """With devices None it waits for those that it asked for."""
        record = live.record
        try:
            record.gpus = described(devices or ())
            await self._store.save_sandbox(record)
            equipment = await self._equipment(live, request, devices)
            await self._volumes.claim(record, request.volumes)
            await self._buckets.claim(record, request.buckets)
            if not ready:
                await self._host.create_sandbox(record.id, image, host_resources(record), egress, equipment)
            await self._egress.trust(record, egress)
            await self._volumes.fill(record)
            await self._buckets.mount(record)
        except BaseException as error:
            await self._host.destroy_sandbox(record.id)
            await self._buckets.leave(record)
            await self._gpus.leave(record)
            if record.state not in FINAL:  # nobody ended it meanwhile
                await self._life.move(live, LifeEvent.FAILED, Termination(reason="failed", detail=str(error)[:500]))
                self._host.execs.remove_logs(record.id)
            raise
        await self._life.started(live, began)
        self.begun(live)
        if record.command is not None:
            await self._start_job(live, record.command)
        return record

    async def _equipment(self, live: Live, request: CreateSandbox, devices: tuple[Device, ...] | None) -> Equipment:
        record, wanted = live.record, request.resources.gpu
        if wanted is None:
            return BARE
        if devices is None:
            devices = await self._gpus.wait(
                wanted, record.id, lambda position: live.events.add("gpu_waiting", position=position)
            )
            record.gpus = described(devices)
            await self._store.save_sandbox(record)
        await self._gpus.note(devices, record.id)
        return await self._host.gpus.equip(devices)

    async def _start_job(self, live: Live, command: list[str]) -> None:
        try:
            main = await self._execs.start_in(live, ExecRequest(argv=command))
        except IsoboxError as error:
            await self._end(live, Termination(reason="failed", detail=error.detail))
            raise
        live.record.main = main.id
        await self._store.save_sandbox(live.record)
        self._follow_main(live)

    def begun(self, live: Live) -> None:
        """It runs: its clock does too, and it ends with its command, if it has one that runs already."""
        self._clock_moved.set()
        self._follow_main(live)

    def _follow_main(self, live: Live) -> None:
        if live.record.main is not None:
            self._tasks.spawn(self._follow_job(live), name=f"job {live.record.id}")

    async def _follow_job(self, live: Live) -> None:
        assert live.record.main is not None
        main = live.execs.get(live.record.main) or await self._store.exec_by_id(live.record.id, live.record.main)
        assert main is not None
        await self._execs.wait(main)
        exit_code = (main.outcome or {}).get("exit_code")
        await self._end(live, Termination(reason="exited", exit_code=exit_code, detail="its command has ended"))

    # ---- looking

    async def get(self, tenant: str, id_: str) -> SandboxRecord:
        """Its record; 404."""
        return await self._registry.record(tenant, id_)

    async def search(
        self, tenant: str, *, state: State | None, labels: dict[str, str], cursor: str | None, limit: int
    ) -> tuple[list[SandboxRecord], str | None]:
        """The newest that match, and where the list goes on."""
        records = await self._store.sandboxes(
            tenant, state=state, labels=labels, before=decode_cursor(cursor), limit=limit + 1
        )
        more = len(records) > limit
        records = records[:limit]
        return records, encode_cursor(records[-1].created_at, records[-1].id) if more else None

    async def wait(self, tenant: str, id_: str, timeout_s: float) -> SandboxRecord:
        """Wait for its end, at most timeout_s seconds; answers with it as it is then."""
        record = await self._registry.record(tenant, id_)
        live = self._registry.live.get(id_)
        if live is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await live.over.wait()
        return record if live is None else live.record

    async def stats(self, tenant: str, id_: str) -> Stats:
        """What it uses now."""
        live = await self._registry.usable(tenant, id_)
        usage = self._host.usage(id_)
        sent, received = self._host.networks.traffic(id_)
        return Stats(
            cpu_s=usage.cpu_s,
            memory_bytes=usage.memory_bytes,
            memory_peak_bytes=usage.memory_peak_bytes,
            memory_limit_bytes=host_resources(live.record).cgroup_memory_bytes,
            processes=await self._host.processes(id_),
            tx_bytes=sent,
            rx_bytes=received,
        )

    def events(self, record: SandboxRecord, after: int) -> AsyncIterator[Event | Gap]:
        """Its own events beyond after."""
        live = self._registry.live.get(record.id)

        async def changed(seq: int, follower: str) -> None:
            if live is not None:
                await live.events.changed(seq, follower)

        return follow(self._host.execs.log_path(record.id, EVENTS), after, changed, lambda _: None)

    # ---- changing

    async def patch(self, tenant: str, id_: str, request: PatchSandbox) -> SandboxRecord:
        """Change what is given; timeout_s counts from now."""
        live = await self._registry.usable(tenant, id_)
        given = request.model_fields_set
        if "labels" in given:
            live.record.labels = request.labels or {}
        if "timeout_s" in given:
            if request.timeout_s is None:
                raise invalid("timeout_s cannot be taken away", "give a number of seconds")
            live.record.timeout_s, live.record.expires_at = request.timeout_s, time.time() + request.timeout_s
            live.warned = False
        if "idle_timeout_s" in given:
            live.record.idle_timeout_s = request.idle_timeout_s
        if "park_after_s" in given:
            live.record.park_after_s = request.park_after_s
        await self._store.save_sandbox(live.record)
        self._clock_moved.set()
        return live.record

    # ---- ending

    async def terminate(self, tenant: str, id_: str) -> SandboxRecord:
        """End it; the same answer however often."""
        record = await self._registry.record(tenant, id_)
        if (live := self._registry.live.get(id_)) is not None:
            ending = self._tasks.spawn(self._end(live, Termination(reason="requested")), name=f"terminate {id_}")
            await asyncio.shield(ending)
        return record

    async def _end(self, live: Live, termination: Termination) -> None:
        async with live.ending:  # the first to come gives the reason
            if live.record.state in FINAL:
                return
            if live.record.state != State.TERMINATING:
                live.record.termination = termination.model_dump()
                await self._life.move(live, LifeEvent.ENDING)
            await self._buckets.settle(live.record)
            used = await self._host.destroy_sandbox(live.record.id)
            await self._buckets.leave(live.record)
            await self._gpus.leave(live.record)
            if live.record.copy is not None:
                await self._host.copies.drop(live.record.id)
            await self._life.move(live, LifeEvent.ENDED)
            await self._usage.keep(live.record, used.cpu_s)
            self._contexts.forget(live.record.id)
            self._egress.forget(live.record.id)

    # ---- by themselves

    async def watch_ends(self) -> None:
        """Note the ends that nobody asked for, for ever."""
        while True:
            id_, end = await self._host.next_end()
            if (live := self._registry.live.get(id_)) is not None:
                self._tasks.spawn(self._end(live, Termination(reason=end.reason, detail=end.detail)), name=f"end {id_}")

    async def watch_clock(self) -> None:
        """End what is over its time or unused, warn ahead of it, for ever."""
        while True:
            self._clock_moved.clear()
            now = time.time()
            upcoming = [now + 60.0]
            for live in list(self._registry.live.values()):
                upcoming += self._due(live, now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.005, min(upcoming) - now)):
                    await self._clock_moved.wait()

    def _due(self, live: Live, now: float) -> list[float]:
        record, idle = live.record, live.idle_deadline
        if record.state not in (State.RUNNING, State.PAUSED):
            return []
        if record.expires_at is not None and record.expires_at <= now:
            why = Termination(reason="timeout", detail=f"it lived for timeout_s={record.timeout_s:g}")
        elif idle is not None and idle <= now:
            why = Termination(reason="idle", detail=f"nothing used it for idle_timeout_s={record.idle_timeout_s:g}")
        else:
            moments = [moment for moment in (record.expires_at, idle) if moment is not None]
            moments += self._parking.look(live, now)
            if record.idle_timeout_s is not None and idle is None:
                moments.append(now + min(record.idle_timeout_s, 1.0))  # an exec runs; look again
            if record.expires_at is not None and not live.warned:
                if record.expires_at - now <= _WARN_BEFORE_S:
                    live.warned = True
                    live.events.add("expiring", expires_in_s=round(record.expires_at - now, 1))
                else:
                    moments.append(record.expires_at - _WARN_BEFORE_S)
            return moments
        self._tasks.spawn(self._end(live, why), name=f"expire {record.id}")
        return []

    async def watch_retention(self) -> None:
        """Forget what ended long ago, and write the store back, for ever."""
        while True:
            horizon = time.time() - self._settings.retain_s
            for id_ in await self._store.ended_before(horizon, 100):
                self._host.execs.remove_logs(id_)
                await self._store.forget_sandbox(id_)
            await self._store.forget_answers(time.time() - 86400)
            await self._usage.forget_old()
            await self._store.checkpoint()
            await asyncio.sleep(min(30.0, self._settings.retain_s))

    # ---- after a restart

    async def recover(self) -> None:
        """Take over what an earlier server left running; what cannot be had back ends as `lost`."""
        records = await self._store.unfinished_sandboxes()
        await self._host.networks.begin([KnownEgress(each.id, await self._known_egress(each)) for each in records])
        for record in records:
            await self._recover(record)
        await self._host.reclaim({live.record.id for live in self._registry.live.values() if not live.parked})
        copies = {live.record.id for live in self._registry.live.values() if live.parked}
        await self._host.copies.reclaim(copies | set(await self._store.all_snapshots()))

    async def _known_egress(self, record: SandboxRecord) -> Egress:
        try:
            return await self._egress.again(record)
        except IsoboxError as error:  # a preset that is gone: whoever relied on it is told by what it cannot reach
            _log.warning("policy not recovered, closed", sandbox=record.id, error=str(error))
            return Egress(generation=record.network_generation)

    async def _recover(self, record: SandboxRecord) -> None:
        live = Live(record, EventLog(self._host.execs.log_path(record.id, EVENTS)))
        self._registry.live[record.id] = live
        execs = [each for each in await self._store.unfinished_execs(record.id) if each.role != "run"]
        known = [self._execs.known(each, record) for each in execs]
        try:
            if record.state in (State.CREATING, State.TERMINATING):
                raise ChannelLost(f"the server died while it was {record.state}")
            if record.state == State.PAUSED:
                unknown = await self._parking.recover(live, known)
            else:
                unknown = await self._host.recover_sandbox(record.id, host_resources(record), known)
        except SandboxGone as error:
            end = self._host.post_mortem(record.id, host_resources(record))
            lost = isinstance(error, ChannelLost) and end.reason != "oom"
            why = Termination(reason="lost" if lost else end.reason, detail=error.detail if lost else end.detail)
            await self._give_up(live, why)
            return
        except (IsoboxError, OSError) as error:
            await self._give_up(live, Termination(reason="lost", detail=str(error)))
            return
        for each in execs:
            if each.id in unknown:
                await self._execs.unknown(each)
            else:
                await self._execs.recovered(live, each)
        await self._contexts.recover(live)
        if not live.parked:
            await self._buckets.go_on(record)
        self._follow_main(live)

    async def _give_up(self, live: Live, why: Termination) -> None:
        record = live.record
        _log.warning("sandbox not recovered", sandbox=record.id, reason=why.reason, detail=why.detail)
        if record.state == State.TERMINATING or why.reason == "lost":
            event = LifeEvent.ENDED if record.state == State.TERMINATING else LifeEvent.FAILED
            used = await self._host.destroy_sandbox(record.id)
            await self._life.move(live, event, None if event == LifeEvent.ENDED else why)
            await self._usage.keep(record, used.cpu_s)
        else:
            await self._end(live, why)
        for each in await self._store.unfinished_execs(record.id):
            if each.state == "starting":
                await self._execs.unknown(each)
            else:
                await self._execs.lost(each, (record.termination or {})["reason"], why.detail)


def refuse_namespaces(settings: Settings, wanted: bool) -> None:
    """Raise Problem(403) for a sandbox that may create namespaces, on a server that allows none to."""
    if wanted and not settings.allow_namespaces:
        raise Problem(
            403,
            "namespaces_forbidden",
            "this server lets nothing inside create namespaces",
            hint="leave `namespaces` out; of a copy, make another one of a sandbox without it",
        )


def describe(record: SandboxRecord) -> Sandbox:
    """As a client sees it."""
    return Sandbox(
        id=record.id,
        state=record.state,
        image=record.image,
        image_digest=record.image_digest,
        name=record.name,
        labels=record.labels,
        created_at=time_of(record.created_at),  # type: ignore[arg-type]  # not None
        started_at=time_of(record.started_at),
        ended_at=time_of(record.ended_at),
        expires_at=time_of(record.expires_at),
        idle_timeout_s=record.idle_timeout_s,
        resources=Resources(**record.resources),
        gpus=[SandboxGpu(**each) for each in record.gpus],
        parent=record.parent,
        snapshot=record.snapshot,
        park_after_s=record.park_after_s,
        paused_by=record.paused_by,
        namespaces=record.namespaces,
        network=record.network or {"default": "deny"},
        main=record.main,
        termination=Termination(**record.termination) if record.termination else None,
    )


def _image_env(image: ImageFacts) -> dict[str, str]:
    """Return an image's variables; its PATH, if it has one, finds what the default user installs too."""
    env: dict[str, str] = dict(image.config.get("env", {}))
    return env | {"PATH": with_user_programs(env["PATH"])} if "PATH" in env else env
