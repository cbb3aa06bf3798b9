"""The use cases of functions."""

import asyncio
import base64
import binascii
import hashlib
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog

from common.errors import IsoboxError
from common.ids import new_id
from common.tasks import TaskOwner
from sandbox_api.host.interface import Host
from sandbox_api.models.common import time_of
from sandbox_api.models.functions import AddInputs, Argument, Call, CallResult, CreateCall, CreateFunction, Function
from sandbox_api.problems import Problem, invalid, not_found
from sandbox_api.services.catalog import Catalog
from sandbox_api.services.copies import CopyService
from sandbox_api.services.execs import ExecService
from sandbox_api.services.functions.begun import Begun
from sandbox_api.services.functions.code import Code
from sandbox_api.services.functions.container import Container
from sandbox_api.services.functions.desk import COPY_KEPT_S, Desk
from sandbox_api.services.functions.queue import Waiting
from sandbox_api.services.functions.running import FunctionFacts, Running
from sandbox_api.services.functions.values import Values
from sandbox_api.services.registry import Registry
from sandbox_api.services.sandboxes import SandboxService
from sandbox_api.services.secrets import SecretService
from sandbox_api.services.uploads import Uploads
from sandbox_api.services.usage import LABEL
from sandbox_api.settings import Settings
from sandbox_api.store.functions import CallRecord, ContainerRecord, FunctionRecord, InputRecord, ResultRecord
from sandbox_api.store.records import SandboxRecord

_log = structlog.get_logger(__name__)
_PAGE: Final = 500
_PAGE_BYTES: Final = 1 << 20
_FUNCTIONS_MAX: Final = 10_000
_UNUSED_S: Final = 600.0


class FunctionService:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        registry: Registry,
        sandboxes: SandboxService,
        execs: ExecService,
        uploads: Uploads,
        copies: CopyService,
        secrets: SecretService,
        catalog: Catalog,
        tasks: TaskOwner,
    ) -> None:
        self._settings = settings
        self._host = host
        self._registry = registry
        self._execs = execs
        self._sandboxes = sandboxes
        self._tasks = tasks
        self._store = registry.store.functions
        self._code = Code(settings.state / "functions", uploads)
        values = Values(settings.state / "values", registry.store.functions, settings.values_quota_mb << 20)
        begun = Begun(settings, registry, catalog, sandboxes, execs, copies, tasks)
        self.desk = Desk(host, registry, sandboxes, execs, uploads, self._code, copies, secrets, begun, values)
        self._running: dict[str, Running] = {}
        self._heard: dict[str, float] = {}
        """When somebody spoke of a call that is open."""

    # ---- functions

    async def create(self, tenant: str, asked: CreateFunction) -> FunctionRecord:
        """A function; the same again is the one that there is."""
        if not self._settings.allow_root and asked.user.partition(":")[0] in ("root", "0"):
            raise Problem(403, "root_forbidden", "this server runs nothing as root", hint="leave `user` out")
        doc = asked.model_dump(mode="json", exclude={"run"})
        digest = hashlib.sha256(json.dumps(doc, sort_keys=True).encode()).hexdigest()
        if (known := self._store.function_of(tenant, digest)) is not None:
            await self.keep(tenant, known.id)
            return known
        await self.desk.told(tenant, asked)
        if len(self._store.functions(tenant, _FUNCTIONS_MAX)) >= _FUNCTIONS_MAX:
            raise Problem(429, "too_many_functions", f"{_FUNCTIONS_MAX} are the most", hint="delete some")
        record = FunctionRecord(new_id("fun"), tenant, asked.app, asked.name, digest, time.time(), doc)
        await self._code.keep(record.id, tenant, asked)
        self._store.save_function(record)
        self._of(record)
        return record

    def _of(self, record: FunctionRecord) -> Running:
        if (running := self._running.get(record.id)) is None:
            running = self._running[record.id] = Running(self.desk, record)
            running.begin()
        return running

    async def get(self, tenant: str, id_: str) -> FunctionRecord:
        """One of the tenant's; 404."""
        record = self._store.function(id_)
        if record is None or record.tenant != tenant:
            raise not_found("function")
        return record

    async def all(self, tenant: str) -> list[FunctionRecord]:
        """The tenant's, the newest first."""
        return self._store.functions(tenant)

    async def keep(self, tenant: str, id_: str) -> None:
        """Have as many containers of it ready as it asks for."""
        await self._set_retired(tenant, id_, False)

    async def sandbox(self, tenant: str, id_: str, timeout_s: float) -> SandboxRecord:
        """A sandbox such as its containers are, to look around in; its code is in /tmp/.isobox-function/code."""
        record = await self.get(tenant, id_)
        asked = CreateFunction.model_validate(record.asked)
        live = await self.desk.like(record, asked, {"timeout_s": timeout_s, "labels": {"isobox.app": asked.app}})
        return live.record

    async def said(self, tenant: str, id_: str) -> str:
        """The last that its containers printed for no input: when they began, in web endpoints, in threads."""
        running = self._running.get((await self.get(tenant, id_)).id)
        return "" if running is None else running.said

    def is_ready(self, id_: str) -> bool:
        """Whether as many containers of it are ready as it asks for."""
        running = self._running.get(id_)
        if running is None:
            return True
        ready = sum(each.ready for each in running.containers.values())
        return ready >= min(running.asked.min_containers, running.asked.max_containers)

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Do something in the background for as long as there are functions."""
        self._tasks.spawn(work, name=name)

    async def retire(self, tenant: str, id_: str) -> None:
        """Keep no containers of it ready any more; calls that are on go on."""
        await self._set_retired(tenant, id_, True)

    async def _set_retired(self, tenant: str, id_: str, retired: bool) -> None:
        record = await self.get(tenant, id_)
        record.retired = retired
        self._store.save_function(record)
        running = self._of(record)
        running.record.retired = retired
        running.wake()

    def describe(self, record: FunctionRecord) -> Function:
        """As a client sees it."""
        running = self._running.get(record.id)
        return Function(
            id=record.id,
            app=record.app,
            name=record.name,
            image=record.asked["image"],
            web=record.asked.get("web") is not None,
            created_at=time_of(record.created_at),  # type: ignore[arg-type]  # not None
            containers=0 if running is None else len(running.containers) + running.starting,
            queued=0 if running is None else len(running.queue) + running.queue.later,
            running=0 if running is None else sum(each.busy for each in running.containers.values()),
        )

    @asynccontextmanager
    async def visit(self, tenant: str, id_: str) -> AsyncIterator[tuple[str, int]]:
        """A container of a web function for the time of a request: its sandbox, and the port that it listens on."""
        record = await self.get(tenant, id_)
        running = self._of(record)
        if running.asked.web is None:
            raise Problem(
                404, "no_web_function", f"{record.name} is no web endpoint", hint="see @isobox.asgi_app and its kin"
            )
        async with running.visits.visit() as container:
            yield container.sandbox, running.asked.web.port

    # ---- calls

    async def call(self, tenant: str, function: str, request: CreateCall, *, depth: int = 0) -> Call:
        """A call with its first inputs; with wait_s it answers with what became of them by then.

        depth: how many calls wait for it, one inside the other.
        """
        record = await self.get(tenant, function)
        if record.asked.get("web") is not None:
            hint = f"send HTTP requests to /v1/functions/{function}/web/"
            raise Problem(422, "web_function", f"{record.name} is a web endpoint, and takes no calls", hint=hint)
        if request.id is not None and (known := self.desk.call(request.id)) is not None:
            if known.tenant != tenant or known.function != function:
                raise Problem(409, "call_id_taken", "this id is in use", hint="choose a fresh random id")
            call = known
        else:
            call = CallRecord(
                *(request.id or new_id("cal"), tenant, record.id, time.time()),
                open=request.more,
                run=request.run,
                depth=depth,
            )
            inputs = [_input(call, index, each) for index, each in enumerate(request.inputs)]
            call.total = len(inputs)
            self.desk.values.take_inputs(call, [len(each.data) for each in inputs])
            with self._store.transaction():
                self.desk.add_call(call)
                self._store.add_inputs(inputs)
                if call.complete:
                    self.desk.save(call)
            running = self._of(record)
            for each in inputs:
                running.put(Waiting(call.id, each.index, depth=depth))
            running.wake()
        return await self.results(tenant, call.id, 0, request.wait_s, whole=True)

    async def add(self, tenant: str, id_: str, request: AddInputs) -> Call:
        """More inputs; those that it has already are left alone. 409 where some would be missing in between."""
        call = self._own(tenant, id_)
        if not call.open and request.first + len(request.inputs) > call.total:
            raise Problem(409, "call_closed", "all its inputs were announced", hint="make another call")
        if request.first > call.total:
            raise Problem(409, "inputs_missing", f"it has {call.total} inputs", hint=f"go on with first={call.total}")
        fresh = [_input(call, request.first + n, each) for n, each in enumerate(request.inputs)]
        fresh = [each for each in fresh if each.index >= call.total]
        self.desk.values.take_inputs(call, [len(each.data) for each in fresh])
        with self._store.transaction():
            self._store.add_inputs(fresh)
            call.total += len(fresh)
            call.open = call.open and request.more
            self.desk.save(call)
        record = self._store.function(call.function)
        assert record is not None
        running = self._of(record)
        if call.cancelled:
            running.cancel(call.id)
        for each in fresh:
            running.put(Waiting(call.id, each.index, depth=call.depth))
        running.wake()
        self.desk.tell(call.id)
        return _describe(call)

    def _own(self, tenant: str, id_: str) -> CallRecord:
        call = self.desk.call(id_)
        if call is None or call.tenant != tenant:
            raise not_found("call")
        if call.open:
            self._heard[id_] = time.monotonic()
        return call

    async def results(self, tenant: str, id_: str, after: int, wait_s: float, *, whole: bool = False) -> Call:
        """A call and what happened in it beyond after, waiting for something to; with whole for all of it."""
        deadline = time.monotonic() + wait_s
        while True:
            call = self._own(tenant, id_)
            found = self._store.results(id_, after, _PAGE + 1)
            left = deadline - time.monotonic()
            if call.complete or left <= 0 or (found and not whole):
                return _described(call, found, after)
            try:
                async with asyncio.timeout(left):
                    await self.desk.moved(id_)
            except TimeoutError:
                continue

    async def value(self, tenant: str, id_: str, seq: int) -> AsyncIterator[bytes]:
        """A large value's bytes; 404."""
        self._own(tenant, id_)
        found = next(iter(self._store.results(id_, seq - 1, 1)), None)
        if found is None or found.seq != seq or "value" not in found.doc:
            raise not_found("value")
        return self.desk.values.read(id_, found.doc["value"])

    async def cancel(self, tenant: str, id_: str) -> Call:
        """Nobody wants it any more; idempotent."""
        call = self._own(tenant, id_)
        if not call.complete:
            call.cancelled, call.open = True, False
            self.desk.save(call)
            record = self._store.function(call.function)
            assert record is not None
            self._of(record).cancel(id_)
            self.desk.tell(id_)
        return _describe(call)

    def facts(self) -> list[FunctionFacts]:
        """How all that are at work do."""
        return [each.facts() for each in self._running.values() if each.containers or each.starts or each.ends]

    # ---- by themselves

    async def watch_retention(self) -> None:
        """Forget calls that ended long ago, and functions that nobody has, for ever."""
        unused_at = 0.0
        while True:
            before = time.time() - self._settings.retain_s
            self._close_left_open()
            for id_ in self._store.calls_ended_before(before):
                self.desk.forget(id_)
            if time.monotonic() > unused_at:
                unused_at = time.monotonic() + min(_UNUSED_S, self._settings.retain_s)
                await self._forget_unused(before)
            await asyncio.sleep(min(30.0, self._settings.retain_s))

    def _close_left_open(self) -> None:
        """Calls whose client announced more inputs, and has neither sent any nor asked for results since."""
        now, left = time.monotonic(), self._settings.retain_s
        for id_ in self._store.calls_not_ended():
            call = self.desk.call(id_)
            if call is None or not call.open or call.ended < call.total:
                continue
            if self._heard.setdefault(id_, now) + left < now:
                call.open = False
                self.desk.save(call)
                self.desk.tell(id_)
        self._heard = {id_: at for id_, at in self._heard.items() if at + 2 * left > now}

    async def _forget_unused(self, before: float) -> None:
        """Functions that are part of no app, of no run, and of no call that is remembered."""
        kept = {each for run in self._store.runs() for each in run.functions}
        kept |= {id_ for app in self._store.apps() for each in app.history for id_ in each["functions"].values()}
        kept |= self._store.functions_called() | {each.function for each in self._store.containers()}
        for record in self._store.functions(None, _FUNCTIONS_MAX):
            keeps_ready = record.asked["min_containers"] and not record.retired
            running = self._running.get(record.id)
            copied = record.snapshot is not None and record.created_at > time.time() - COPY_KEPT_S
            busy = running is not None and not running.idle
            if record.created_at > before or record.id in kept or keeps_ready or copied or busy:
                continue
            if running is not None:
                await running.close()
                del self._running[record.id]
            self._store.forget_function(record.id)
            self._code.forget(record.id)

    async def recover(self) -> None:
        """After a start: go on with what an earlier server left."""
        containers = {each.sandbox: each for each in self._store.containers()}
        for live in list(self._registry.live.values()):
            if LABEL in live.record.labels and live.record.id not in containers:
                await self._sandboxes.terminate(live.record.tenant, live.record.id)  # its server died over its start
        for record in self._store.functions(None, _FUNCTIONS_MAX):
            inputs = self._store.unfinished_inputs(record.id)
            mine = [each for each in containers.values() if each.function == record.id]
            keeps = record.asked["min_containers"] and not record.retired
            if inputs or mine or keeps:
                self._recover(record, inputs, mine)

    def _recover(self, record: FunctionRecord, inputs: list[InputRecord], containers: list[ContainerRecord]) -> None:
        running = self._of(record)
        going_on: set[str] = set()
        for kept in containers:
            live = self._registry.live.get(kept.sandbox)
            exec_ = None if live is None else live.execs.get(kept.exec)
            if live is None or exec_ is None:
                self._store.forget_container(kept.sandbox)
                if live is not None:
                    self._tasks.spawn(self._end(live.record.tenant, kept.sandbox), name=f"end {kept.sandbox}")
                continue
            going_on.add(kept.sandbox)
            had = [each for each in inputs if each.state == "running" and each.container == kept.sandbox]
            container = Container(self._host, self._execs, live, exec_, kept)
            running.take_over(container, had)
        for each in inputs:
            if each.state == "running" and each.container in going_on:
                continue
            each.state, each.container = "queued", None
            self._store.save_input(each)
            call = self.desk.call(each.call)
            running.put(Waiting(each.call, each.index, each.not_before, 0 if call is None else call.depth))
        running.wake()

    async def _end(self, tenant: str, sandbox: str) -> None:
        try:
            await self._sandboxes.terminate(tenant, sandbox)
        except IsoboxError as error:
            _log.info("it had ended", sandbox=sandbox, error=error.detail)

    async def close(self) -> None:
        """The server ends: containers go on."""
        self.desk.closing = True
        for each in self._running.values():
            await each.close()


def _input(call: CallRecord, index: int, given: Argument) -> InputRecord:
    if (given.data is None) == (given.upload is None):
        raise invalid(f"input {index} has neither data nor upload, or both", "give one of them")
    try:
        data = b"" if given.data is None else base64.b64decode(given.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"input {index} is no base64", "see RFC 4648") from error
    return InputRecord(call.id, index, call.function, data=data, upload=given.upload)


def _describe(call: CallRecord) -> Call:
    return Call(
        id=call.id,
        function=call.function,
        created_at=time_of(call.created_at),  # type: ignore[arg-type]  # not None
        total=call.total,
        ended=call.ended,
        complete=call.complete,
        cancelled=call.cancelled,
    )


def _described(call: CallRecord, found: list[ResultRecord], after: int) -> Call:
    described, size = _describe(call), 0
    for each in found:
        size += len(each.doc.get("data") or "")
        if len(described.results) == _PAGE or (described.results and size > _PAGE_BYTES):
            described.more = True
            break
        fields: dict[str, Any] = {name: value for name, value in each.doc.items() if name != "value"}
        described.results.append(CallResult(seq=each.seq, index=each.index, kind=each.kind, **fields))  # type: ignore[arg-type]
    described.next_after = described.results[-1].seq if described.results else after
    return described
