"""Snapshots that are kept, sandboxes that start from one, and forks.

A copy holds whatever ran. Each sandbox that is made of it gets an id, a name and execs of its own (`forked_from` tells
whose they are); their output begins at the copy. The original goes on.
"""

import asyncio
import base64
import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from common.errors import IsoboxError
from common.ids import new_id
from common.tasks import TaskOwner
from sandbox_api.host.interface import CopyFacts, Egress, Host, Template, TemplateExec
from sandbox_api.lifecycle import Event as LifeEvent
from sandbox_api.lifecycle import State
from sandbox_api.models.common import time_of
from sandbox_api.models.sandboxes import CreateSandbox, Termination
from sandbox_api.models.snapshots import CreateSnapshot, ForkError, ForkRequest, Snapshot
from sandbox_api.problems import Problem, from_error, invalid, not_found
from sandbox_api.services.buckets import BucketService
from sandbox_api.services.contexts import TOUCH, ContextService
from sandbox_api.services.cursor import decode_cursor, encode_cursor
from sandbox_api.services.egress import EgressService
from sandbox_api.services.events import EVENTS, EventLog
from sandbox_api.services.execs import ExecService
from sandbox_api.services.gpus import refuse_copies
from sandbox_api.services.life import Life
from sandbox_api.services.registry import Live, Registry, host_resources
from sandbox_api.services.sandboxes import SandboxService, refuse_namespaces
from sandbox_api.settings import Settings
from sandbox_api.store.records import ContextRecord, ExecRecord, SandboxRecord, SnapshotRecord

_INHERITED: Final = (
    "buckets",
    "image",
    "image_digest",
    "resources",
    "timeout_s",
    "user",
    "namespaces",
    "labels",
    "env",
    "workdir",
)
_INHERITED_TIMES: Final = ("idle_timeout_s", "park_after_s")
_INHERITED_NETWORK: Final = ("network_asked", "network", "network_generation", "placeholders")
_SPARE_MEMORY: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a copied sandbox starts from: the fields of its record, and the execs that ran."""

    sandbox: dict[str, Any]
    execs: list[ExecRecord] = field(default_factory=list)
    contexts: list[ContextRecord] = field(default_factory=list)


class CopyService:
    """The use cases of snapshots and forks."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        registry: Registry,
        life: Life,
        execs: ExecService,
        contexts: ContextService,
        sandboxes: SandboxService,
        egress: EgressService,
        buckets: BucketService,
        tasks: TaskOwner,
    ) -> None:
        self._settings = settings
        self._host = host
        self._registry = registry
        self._buckets = buckets
        self._store = registry.store
        self._life = life
        self._execs = execs
        self._contexts = contexts
        self._sandboxes = sandboxes
        self._egress = egress
        self._tasks = tasks

    # ---- snapshots

    async def snapshot(self, tenant: str, sandbox_id: str, request: CreateSnapshot) -> SnapshotRecord:
        """Take one and keep it; the sandbox goes on, whether that succeeds or not."""
        if request.template and request.kind != "memory":
            raise invalid("only memory snapshots can be templates", "leave `template` out, or take kind=memory")
        live = await self._registry.usable(tenant, sandbox_id)
        quota = self._settings.snapshot_quota_mb << 20
        if await self._store.snapshot_bytes(None) >= quota:
            own = await self._store.snapshot_bytes(tenant)
            raise Problem(
                507,
                "snapshot_quota",
                f"the server's {quota >> 20} MiB for snapshots are full, {own >> 20} of them with yours",
                hint="delete some, or give them a ttl_s",
            )
        id_ = new_id("snp")
        taking = self._tasks.spawn(self._take(live, id_, tenant, request), name=f"snapshot {id_}")
        return await asyncio.shield(taking)

    async def _take(self, live: Live, id_: str, tenant: str, request: CreateSnapshot) -> SnapshotRecord:
        if request.kind == "filesystem":
            assert live.record.image_digest is not None
            copy = await self._host.copies.take_files(live.record.id, id_, live.record.image_digest)
            origin = _Origin(_fields(live.record))
        else:
            refuse_copies(live.record)
            runs = self._contexts.on(live)
            copy = await self._host.copies.take(live.record.id, id_, keep=True)
            origin = self._origin(live, copy, runs)
        now = time.time()
        record = SnapshotRecord(
            id=id_,
            tenant=tenant,
            sandbox_id=live.record.id,
            created_at=now,
            digest=copy.digest,
            size_bytes=copy.size,
            sandbox=origin.sandbox,
            execs=[asdict(each) for each in origin.execs],
            contexts=[asdict(each) for each in origin.contexts],
            kind=request.kind,
            name=request.name,
            template=request.template,
            expires_at=None if request.ttl_s is None else now + request.ttl_s,
        )
        await self._store.save_snapshot(record)
        if record.template:
            self._host.copies.keep_template(self._template(record))
        return record

    async def get(self, tenant: str, id_: str) -> SnapshotRecord:
        """One of the tenant's; 404."""
        record = await self._store.snapshot(tenant, id_)
        if record is None or (record.expires_at is not None and record.expires_at <= time.time()):
            raise not_found("snapshot")
        return record

    async def search(self, tenant: str, cursor: str | None, limit: int) -> tuple[list[SnapshotRecord], str | None]:
        """The newest, and where the list goes on."""
        records = await self._store.snapshots(tenant, before=decode_cursor(cursor), limit=limit + 1)
        more = len(records) > limit
        records = records[:limit]
        return records, encode_cursor(records[-1].created_at, records[-1].id) if more else None

    async def delete(self, tenant: str, id_: str) -> None:
        """Delete it; sandboxes made of it go on."""
        record = await self.get(tenant, id_)
        await self._store.forget_snapshot(record.id)
        await self._host.copies.drop(record.id)

    async def watch_expiry(self) -> None:
        """Delete those whose time is over, for ever."""
        while True:
            for id_ in await self._store.all_snapshots(expired_at=time.time()):
                await self._store.forget_snapshot(id_)
                await self._host.copies.drop(id_)
            await asyncio.sleep(1.0)

    async def create_from(self, tenant: str, request: CreateSandbox) -> SandboxRecord:
        """A sandbox that goes on where the snapshot was taken; `env` is added to that of the original."""
        assert request.snapshot is not None
        snapshot = await self.get(tenant, request.snapshot)
        fields = snapshot.sandbox | _given(request, snapshot)
        made = _record(fields, tenant)
        refuse_namespaces(self._settings, made.namespaces)
        if "network" in request.model_fields_set:
            egress = await self._egress.begin(made, request.asked_network)
        else:
            egress = await self._egress.again(made)
        fields |= {name: getattr(made, name) for name in _INHERITED_NETWORK}
        copy = CopyFacts(snapshot.id, snapshot.digest, snapshot.size_bytes, {})
        execs = [ExecRecord(**each) for each in snapshot.execs]
        origin = _Origin(fields, execs, [ContextRecord(**each) for each in snapshot.contexts])
        with self._registry.places(1, self._settings.max_sandboxes):
            if snapshot.kind == "filesystem":
                making = self._lay_out(tenant, origin, copy, egress)
            else:
                id_, own = await self._claim(snapshot, fields, egress) or (None, None)
                if id_ is None:
                    self._reserve_memory(snapshot.size_bytes)
                    id_ = await self._prepare(fields)
                making = self._make(id_, tenant, origin, copy, egress, snapshot=snapshot.id, own=own)
            live = await asyncio.shield(self._tasks.spawn(making, name=f"sandbox of {snapshot.id}"))
        return live.record

    async def _lay_out(self, tenant: str, origin: _Origin, copy: CopyFacts, egress: Egress) -> Live:
        fields = origin.sandbox
        resources = host_resources(_record(fields, ""))
        id_ = await self._host.copies.lay_out(copy, fields["image_digest"], resources, egress)
        return await self._make(id_, tenant, origin, copy, egress, snapshot=copy.name, own={}, laid_out=True)

    async def _claim(
        self, snapshot: SnapshotRecord, fields: dict[str, Any], egress: Egress
    ) -> tuple[str, dict[str, str]] | None:
        resources = host_resources(_record(fields, ""))
        return await self._host.copies.claim_template(self._template(snapshot), resources, egress)

    def _template(self, snapshot: SnapshotRecord) -> Template:
        made = _record(snapshot.sandbox, snapshot.tenant)
        assert made.image_digest is not None
        records = [ExecRecord(**each) for each in snapshot.execs]
        busy = {each.context for each in records if each.role == "run"}
        waiting = {each["exec"] for each in snapshot.contexts if each["id"] not in busy}
        execs = [
            TemplateExec(
                each.id,
                each.number,
                each.argv,
                # What the log is seeded with counts among the bytes that the log has.
                self._execs.known(each, made).spec,
                (base64.b64decode(each.rest[0]), base64.b64decode(each.rest[1])),
                touch=TOUCH if each.id in waiting else b"",
            )
            for each in records
            if each.role != "run"
        ]
        copy = CopyFacts(snapshot.id, snapshot.digest, snapshot.size_bytes, {})
        return Template(copy, made.image_digest, host_resources(made), execs)

    async def keep_templates(self) -> None:
        """After a start: have ready what was marked as a template."""
        for snapshot in await self._store.template_snapshots():
            if snapshot.sandbox["namespaces"] and not self._settings.allow_namespaces:
                continue
            self._host.copies.keep_template(self._template(snapshot))

    # ---- forks

    async def fork(
        self, tenant: str, sandbox_id: str, request: ForkRequest
    ) -> tuple[list[SandboxRecord], list[ForkError]]:
        """So many children that go on side by side with the sandbox: those that do, and why others do not."""
        live = await self._registry.usable(tenant, sandbox_id)
        refuse_copies(live.record)
        refuse_namespaces(self._settings, live.record.namespaces)
        forking = self._tasks.spawn(self._fork(live, tenant, request), name=f"fork {sandbox_id}")
        return await asyncio.shield(forking)

    async def _fork(self, live: Live, tenant: str, request: ForkRequest) -> tuple[list[SandboxRecord], list[ForkError]]:
        parent, name = live.record, new_id("snp")
        with self._registry.places(request.count, self._settings.max_sandboxes):
            self._reserve_memory(self._host.usage(parent.id).memory_bytes * request.count)
            preparing = [
                self._tasks.spawn(self._prepare(_fields(parent)), name=f"child of {parent.id}")
                for _ in range(request.count)
            ]
            runs = self._contexts.on(live)
            try:
                copy = await self._host.copies.take(parent.id, name, keep=False)
            except BaseException:
                await self._give_back(preparing)
                raise
            try:
                origin = self._origin(live, copy, runs)
                if request.labels is not None:
                    origin.sandbox["labels"] = request.labels
                if request.timeout_s is not None:
                    origin.sandbox["timeout_s"] = request.timeout_s
                egress = await self._egress.again(parent)
                found = await asyncio.gather(
                    *(self._child(each, tenant, origin, copy, egress, parent.id) for each in preparing),
                    return_exceptions=True,
                )
            finally:
                await self._host.copies.drop(name)
        return [each.record for each in found if isinstance(each, Live)], [_error(e) for e in found if _failed(e)]

    async def _child(
        self,
        preparing: "asyncio.Task[str]",
        tenant: str,
        origin: _Origin,
        copy: CopyFacts,
        egress: Egress,
        parent: str,
    ) -> Live:
        return await self._make(await preparing, tenant, origin, copy, egress, parent=parent)

    async def _give_back(self, preparing: "list[asyncio.Task[str]]") -> None:
        for each in await asyncio.gather(*preparing, return_exceptions=True):
            if isinstance(each, str):
                await self._host.destroy_sandbox(each)

    # ---- both

    def _origin(self, live: Live, copy: CopyFacts, on_before: set[str]) -> _Origin:
        """What the copy holds: what was there before it was taken and is still there now."""
        contexts, runs = self._contexts.copied(live, copy.offsets)
        execs = []
        for each in live.execs.values():
            if each.id in copy.offsets and each.state == "running":
                offsets = copy.offsets[each.id]
                rest = self._contexts.cut(each, offsets, contexts)
                sizes = [len(base64.b64decode(text)) for text in rest]
                base = [offset - size for offset, size in zip(offsets, sizes, strict=True)]
                execs.append(replace(each, base=base, rest=rest, results=[]))
        execs += [replace(each, results=[], first_seq=0) for each in runs if each.id in on_before]
        return _Origin(_fields(live.record) | {"main": live.record.main}, execs, [replace(each) for each in contexts])

    async def _prepare(self, fields: Mapping[str, Any]) -> str:
        record = _record(fields, "")
        assert record.image_digest is not None
        return await self._host.copies.prepare(record.image_digest, host_resources(record))

    def _reserve_memory(self, wanted: int) -> None:
        """Pages are not shared between copies: all of them must fit now, not some later."""
        free = _available_memory() - _SPARE_MEMORY
        if wanted > free:
            raise Problem(
                507,
                "not_enough_memory",
                f"the copies need {wanted >> 20} MiB, the machine has {max(0, free) >> 20}",
                hint="end some sandboxes, or make fewer copies",
                retryable=True,
            )

    async def _make(
        self,
        id_: str,
        tenant: str,
        origin: _Origin,
        copy: CopyFacts,
        egress: Egress,
        *,
        parent: str | None = None,
        snapshot: str | None = None,
        own: dict[str, str] | None = None,
        laid_out: bool = False,
    ) -> Live:
        """With own it runs already, its execs under these ids; else it is restored. Laid out it has files alone."""
        began = time.time()
        record = SandboxRecord(
            id=id_,
            tenant=tenant,
            state=State.CREATING,
            created_at=began,
            parent=parent,
            snapshot=snapshot,
            **origin.sandbox,
        )
        execs, contexts = _copied(origin, id_, own or {})
        record.main = next((e.id for e in execs if e.forked_from == origin.sandbox.get("main")), None)
        live = Live(record, EventLog(self._host.execs.log_path(id_, EVENTS)))
        self._registry.live[id_] = live
        await self._store.save_sandbox(record)
        try:
            if own is None:
                never = await self._restore(record, copy, execs, egress)
            else:
                never = {each.id for each in execs if each.forked_from not in own}
            for each in execs:
                if each.id not in never and each.role != "run":
                    await self._execs.adopted(live, each, announced=own is not None)
            await self._egress.trust(record, egress)
            await (self._buckets.mount(record) if laid_out else self._buckets.go_on(record))
            await self._contexts.adopt(live, contexts, [each for each in execs if each.role == "run"])
            await self._life.started(live, began)
        except BaseException as error:
            with contextlib.suppress(IsoboxError, OSError, TimeoutError):
                await self._host.destroy_sandbox(id_)
            await self._buckets.leave(record)
            await self._life.move(live, LifeEvent.FAILED, Termination(reason="failed", detail=str(error)[:500]))
            self._host.execs.remove_logs(id_)
            raise
        self._sandboxes.begun(live)
        return live

    async def _restore(
        self, record: SandboxRecord, copy: CopyFacts, execs: list[ExecRecord], egress: Egress
    ) -> set[str]:
        assert record.image_digest is not None
        for each in execs:
            self._execs.seed_log(each)
        known = [self._execs.known(each, record) for each in execs if each.role != "run"]
        return await self._host.copies.restore(
            record.id, copy, record.image_digest, host_resources(record), known, egress
        )


def _fields(record: SandboxRecord) -> dict[str, Any]:
    found = {name: getattr(record, name) for name in (*_INHERITED, *_INHERITED_TIMES, *_INHERITED_NETWORK)}
    return found | {"resources": found["resources"] | {"gpu": None}}  # GPUs are nobody's twice


def _record(fields: Mapping[str, Any], tenant: str) -> SandboxRecord:
    """A record of these fields that is nobody's yet."""
    return SandboxRecord(id="", tenant=tenant, state=State.CREATING, created_at=0.0, **fields)


def _copied(origin: _Origin, sandbox_id: str, own: dict[str, str]) -> tuple[list[ExecRecord], list[ContextRecord]]:
    """The origin's execs and contexts as the copy's own: new ids, and whose they were."""
    execs = [
        ExecRecord(
            **(
                asdict(each)  # a deep copy: children must not share their lists
                | {"id": own.get(each.id) or new_id("exe"), "sandbox_id": sandbox_id, "forked_from": each.id}
            )
        )
        for each in origin.execs
    ]
    exec_ids = {each.forked_from: each.id for each in execs}
    contexts, context_ids = [], {}
    for each in origin.contexts:
        copied = replace(each, id=new_id("ctx"), sandbox_id=sandbox_id, exec=exec_ids[each.exec], reseed=True)
        context_ids[each.id] = copied.id
        contexts.append(copied)
    for run in execs:
        if run.context is not None:
            run.context = context_ids.get(run.context)
    return execs, contexts


def _given(request: CreateSandbox, snapshot: SnapshotRecord) -> dict[str, Any]:
    """What a request changes of that which the snapshot's sandbox had; 422 for what cannot be changed."""
    given, had = request.model_fields_set, snapshot.sandbox
    if request.volumes or request.buckets:
        raise invalid("a copy has what its original had mounted", "leave `volumes` and `buckets` out, or the snapshot")
    if "image" in given and request.image != had["image"]:
        raise invalid(f"the snapshot was made of image {had['image']}", "leave `image` out")
    if "command" in given and request.command is not None:
        raise invalid("a snapshot goes on with what ran in it", "leave `command` out; run something by exec afterwards")
    fields: dict[str, Any] = {
        name: getattr(request, name)
        for name in ("timeout_s", "idle_timeout_s", "park_after_s", "labels", "name", "workdir", "user")
        if name in given
    }
    if "namespaces" in given:
        if snapshot.kind == "memory" and request.namespaces != had["namespaces"]:
            raise invalid("what runs in a memory snapshot keeps its `namespaces`", "leave `namespaces` out")
        fields["namespaces"] = request.namespaces
    fields["env"] = had["env"] | request.env
    if "resources" in given and request.resources.gpu is not None:
        raise invalid("a copy has no GPU", "leave `resources.gpu` out, or create a sandbox of an image")
    if "resources" in given:
        resources = had["resources"] | request.resources.model_dump(exclude_unset=True)
        for name in ("memory_mb", "disk_mb"):
            if resources[name] < had["resources"][name]:
                raise invalid(f"{name} is less than the {had['resources'][name]} that the snapshot was made with")
        fields["resources"] = resources
    return fields


def _failed(found: Live | BaseException) -> bool:
    if isinstance(found, BaseException) and not isinstance(found, Exception):
        raise found
    return isinstance(found, Exception)


def _error(found: Live | BaseException) -> ForkError:
    assert isinstance(found, Exception)
    problem = from_error(found if isinstance(found, IsoboxError) else IsoboxError(str(found) or type(found).__name__))
    return ForkError(code=problem.code, detail=problem.detail, hint=problem.hint, retryable=problem.retryable)


def _available_memory() -> int:
    """Bytes that can be had without swapping (proc(5), MemAvailable)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def describe(record: SnapshotRecord) -> Snapshot:
    """As a client sees it."""
    return Snapshot(
        id=record.id,
        kind=record.kind,
        name=record.name,
        template=record.template,
        sandbox_id=record.sandbox_id,
        image=record.sandbox["image"],
        image_digest=record.sandbox["image_digest"],
        digest=f"sha256:{record.digest}",
        size_bytes=record.size_bytes,
        created_at=time_of(record.created_at),  # type: ignore[arg-type]  # not None
        expires_at=time_of(record.expires_at),
        execs=[each["id"] for each in record.execs],
    )
