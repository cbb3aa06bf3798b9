"""What all functions share: starting and ending containers, values that are large, calls and who waits for them."""

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import structlog

from common.errors import IsoboxError
from common.ids import new_id
from isolation.files import Entry
from sandbox_api.functions import protocol
from sandbox_api.functions.protocol import Frame, Value
from sandbox_api.host.interface import Host
from sandbox_api.lifecycle import FINAL
from sandbox_api.models.functions import CreateFunction
from sandbox_api.models.sandboxes import CreateSandbox
from sandbox_api.models.snapshots import CreateSnapshot
from sandbox_api.problems import Problem, from_error
from sandbox_api.services.copies import CopyService
from sandbox_api.services.execs import ExecService
from sandbox_api.services.functions.begun import Begun, boot
from sandbox_api.services.functions.code import FOLDER, Code
from sandbox_api.services.functions.container import Container
from sandbox_api.services.functions.values import Values
from sandbox_api.services.registry import Live, Registry
from sandbox_api.services.sandboxes import SandboxService
from sandbox_api.services.secrets import SecretService
from sandbox_api.services.uploads import Uploads
from sandbox_api.services.usage import LABEL
from sandbox_api.store.functions import BegunRecord, CallRecord, ContainerRecord, FunctionRecord, InputRecord
from sandbox_api.store.records import ExecRecord

_log = structlog.get_logger(__name__)
_COPY_GONE: Final = ("snapshot_not_found", "snapshot_unusable")
_LIFE_S: Final = 30 * 86400.0
_INLINE: Final = 48 << 10
_FAREWELL_S: Final = 10.0
COPY_KEPT_S: Final = 7 * 86400.0


Answer = Callable[[FunctionRecord, Container, Frame], Awaitable[bytes]]
"""Answers a question of a runner's: the line that it is told."""


class Desk:
    """See the module."""

    def __init__(
        self,
        host: Host,
        registry: Registry,
        sandboxes: SandboxService,
        execs: ExecService,
        uploads: Uploads,
        code: Code,
        copies: CopyService,
        secrets: SecretService,
        begun: Begun,
        values: Values,
    ) -> None:
        self.answer: Answer = _nobody
        """Answers what containers ask; set before any container is there."""
        self.store = registry.store.functions
        self.closing = False
        self._host = host
        self._registry = registry
        self._sandboxes = sandboxes
        self._execs = execs
        self._uploads = uploads
        self._code = code
        self._copies = copies
        self._secrets = secrets
        self._begun = begun
        self.values = values
        self._calls: dict[str, CallRecord] = {}
        self._moved: dict[str, asyncio.Event] = {}

    # ---- containers

    async def start(self, record: FunctionRecord, asked: CreateFunction) -> Container:
        """A new container, its runner started; what any of its parts may raise."""
        if record.snapshot is not None:
            try:
                return await self._restored(record, record.snapshot)
            except IsoboxError as error:  # deleted, or of another runsc: from the beginning, then
                _log.info("not from the copy", function=record.name, error=error.detail)
                record.snapshot = None
                self.store.save_function(record)
        kept = await self._begun.find(record.tenant, asked)
        if kept is not None:
            try:
                return await self._from_begun(record, asked, kept)
            except IsoboxError as error:  # the same; what is but busy stays
                _log.info("not from an interpreter that had begun", function=record.name, error=error.detail)
                if from_error(error).code in _COPY_GONE:
                    self._begun.forget(kept)
        live = await self._sandbox(record, asked, self._life(record, asked))
        try:
            exec_ = await self._execs.start_in(
                live, boot(), role="context", title=f"function: {asked.app}.{asked.name}"
            )
            if exec_.state == "exited":
                raise Problem(422, "language_unavailable", "the image has no python3", hint="use an image that has it")
            container = await self._fill(record, asked, live, exec_)
        except BaseException:
            await self._sandboxes.terminate(record.tenant, live.record.id)
            raise
        self._begun.want(record.tenant, asked, live.record.image_digest or "")
        return container

    @staticmethod
    def _life(record: FunctionRecord, asked: CreateFunction) -> dict[str, Any]:
        labels = {LABEL: record.id, "isobox.app": asked.app}
        name = f"{asked.app}.{asked.name}"[:128]
        return {"name": name, "timeout_s": _LIFE_S, "park_after_s": _LIFE_S, "labels": labels}

    async def _from_begun(self, record: FunctionRecord, asked: CreateFunction, kept: BegunRecord) -> Container:
        """One whose interpreter had begun elsewhere."""
        fields: dict[str, Any] = {"resources": record.asked["resources"], "env": record.asked["env"]}
        if record.asked.get("network") is not None:
            fields["network"] = record.asked["network"]
        fields |= self._life(record, asked) | {"snapshot": kept.snapshot}
        live, exec_ = await self._copied(record.tenant, fields, kept.exec)
        try:
            return await self._fill(record, asked, live, exec_)
        except BaseException:
            await self._sandboxes.terminate(record.tenant, live.record.id)
            raise

    async def _fill(self, record: FunctionRecord, asked: CreateFunction, live: Live, exec_: ExecRecord) -> Container:
        """Tell an interpreter that has begun which function it is for; it may be beginning still."""
        kept = ContainerRecord(live.record.id, record.id, exec_.id)
        container = Container(self._host, self._execs, live, exec_, kept)
        container.starts()
        await self._unpack(live, record)
        variables = self._execs.environment(live.record) | {"ISOBOX_FUNCTION": f"{asked.app}.{asked.name}"}
        secrets = await self.told(record.tenant, asked)  # past the records, which are kept as they were asked for
        self.store.save_container(kept)
        await container.send(protocol.environment(variables | secrets))
        return container

    async def like(self, record: FunctionRecord, asked: CreateFunction, life: dict[str, Any]) -> Live:
        """A sandbox such as its containers are, with its code; nothing runs in there. life: how long, and labels."""
        live = await self._sandbox(record, asked, life)
        try:
            await self._unpack(live, record)
        except BaseException:
            await self._sandboxes.terminate(record.tenant, live.record.id)
            raise
        return live

    async def _sandbox(self, record: FunctionRecord, asked: CreateFunction, life: dict[str, Any]) -> Live:
        fields = {name: record.asked[name] for name in _OF_SANDBOX if name in record.asked}
        fields |= {"name": f"{asked.app}.{asked.name}"[:128]} | life
        sandbox = await self._sandboxes.create(record.tenant, CreateSandbox.model_validate(fields))
        return self._registry.live[sandbox.id]

    async def _unpack(self, live: Live, record: FunctionRecord) -> None:
        code = self._code.read(record.id)
        await self._host.files.unpack(live.record.id, FOLDER, False, code, live.record.user)

    async def told(self, tenant: str, asked: CreateFunction) -> dict[str, str]:
        """What a container's environment has of its tenant's secrets; 422 for one that is not there."""
        found = {}
        for variable, name in asked.secrets.items():
            value = await self._secrets.value(tenant, name)
            if value is None or name.startswith("."):
                raise Problem(422, "secret_not_found", f"there is no secret {name}", hint="isobox secret set NAME")
            found[variable] = value
        return found

    async def _restored(self, record: FunctionRecord, snapshot: str) -> Container:
        """One that goes on where another had begun."""
        fields = {"snapshot": snapshot, "timeout_s": _LIFE_S, "park_after_s": _LIFE_S}
        live, exec_ = await self._copied(record.tenant, fields, record.snapshot_exec)
        try:
            kept = ContainerRecord(live.record.id, record.id, exec_.id)
            self.store.save_container(kept)
            container = Container(self._host, self._execs, live, exec_, kept)
            container.starts()
            await container.send(protocol.go_on())
        except BaseException:
            await self._sandboxes.terminate(record.tenant, live.record.id)
            raise
        return container

    async def _copied(self, tenant: str, fields: dict[str, Any], original: str) -> tuple[Live, ExecRecord]:
        """A sandbox of a snapshot, and what goes on in there of an exec that was in it."""
        sandbox = await self._copies.create_from(tenant, CreateSandbox.model_validate(fields))
        live = self._registry.live[sandbox.id]
        exec_ = next((each for each in live.execs.values() if each.forked_from == original), None)
        if exec_ is None:
            await self._sandboxes.terminate(tenant, sandbox.id)
            raise Problem(409, "snapshot_unusable", "its runner is not in the copy")
        return live, exec_

    async def copy(self, record: FunctionRecord, container: Container) -> None:
        """Keep a container's memory as it is, for others to begin from, and let it go on, whether that works or not."""
        try:
            if record.snapshot is None:
                request = CreateSnapshot(name=record.name[:128], ttl_s=COPY_KEPT_S)
                taken = await self._copies.snapshot(record.tenant, container.sandbox, request)
                record.snapshot, record.snapshot_exec = taken.id, container.exec.id
                self.store.save_function(record)
        except (IsoboxError, OSError, TimeoutError) as error:
            _log.warning("a function's memory was not copied", function=record.name, error=str(error))
        finally:
            await container.send(protocol.go_on())

    async def bid_farewell(self, container: Container) -> None:
        """Let the runner end by itself, within a while."""
        container.starts()
        with contextlib.suppress(IsoboxError, TimeoutError):
            self._host.execs.end_input(container.sandbox, container.exec.id)
            async with asyncio.timeout(_FAREWELL_S):
                await self._execs.wait(container.exec)

    async def end(self, container: Container) -> None:
        """End a container; no error if it has ended."""
        with contextlib.suppress(IsoboxError):
            await self._sandboxes.terminate(container.live.record.tenant, container.sandbox)
        self.store.forget_container(container.sandbox)

    async def why(self, container: Container) -> str:
        """How a runner came to its end."""
        if container.violation:
            return f"it broke the protocol: {container.violation}"
        await self._execs.wait(container.exec)
        if container.live.record.state in FINAL or container.live.over.is_set():
            found = container.live.record.termination or {}
            return str(found.get("detail") or found.get("reason") or "its sandbox ended")
        outcome, error = container.exec.outcome or {}, container.exec.error or {}
        if error.get("kind") == "oom":
            return str(error["message"])
        return f"its process ended ({outcome.get('signal') or outcome.get('exit_code')})"

    # ---- values

    async def argument(self, container: Container, tenant: str, record: InputRecord) -> dict[str, Any]:
        """An input's argument as the runner takes it."""
        if record.upload is None:
            return await self.given(container, record.data)
        return await self.given(container, self._uploads.read(tenant, record.upload))

    async def given(self, container: Container, contents: bytes | AsyncIterator[bytes]) -> dict[str, Any]:
        """Bytes as the runner takes them: in the line, or in a file that is put there first."""
        if isinstance(contents, bytes) and len(contents) <= _INLINE:
            return {"d": base64.b64encode(contents).decode()}
        path = f"{FOLDER}/in-{new_id('req')}"
        size = len(contents) if isinstance(contents, bytes) else -1
        pieces = once(contents) if isinstance(contents, bytes) else contents
        await self._host.files.write(container.sandbox, path, size, 0o600, pieces, container.live.record.user)
        return {"f": path}

    async def fetch(self, container: Container, call: str, value: Value) -> str:
        """Read a large value out of a container: what it is kept as. The path is the guest's, and read inside."""
        user = container.live.record.user
        contents = self._host.files.read(container.sandbox, value.file, 0, value.size, user)
        name = await self.values.write(call, _bytes(contents), value.size)
        try:
            await self._host.files.remove(container.sandbox, value.file, False, user)
        except BaseException:
            self.values.drop(call, name)
            raise
        return name

    # ---- calls

    def call(self, id_: str) -> CallRecord | None:
        """A call, the same object for all."""
        if (known := self._calls.get(id_)) is not None:
            return known
        found = self.store.call(id_)
        if found is not None and not found.complete:
            self._calls[id_] = found
        return found

    def add_call(self, record: CallRecord) -> None:
        """A new one."""
        self._calls[record.id] = record
        self.store.save_call(record)

    def end_input(self, record: InputRecord, kind: str, doc: dict[str, Any]) -> None:
        """An input is over: its result, its state and its call's count; whoever is in a transaction goes on in it."""
        with self.store.transaction():
            self.store.add_result(record.call, record.index, kind, doc)
            self.store.save_input(record)
            if (call := self.call(record.call)) is not None:
                self.values.give_input(call, len(record.data))
                call.ended += 1
                self.save(call)
        self.tell(record.call)

    def save(self, call: CallRecord) -> None:
        """Bring a call up to date."""
        if call.complete and call.ended_at is None:
            call.ended_at = time.time()
        self.store.save_call(call)
        if call.complete:
            self._calls.pop(call.id, None)

    def tell(self, call: str) -> None:
        """Something happened in it."""
        if (moved := self._moved.pop(call, None)) is not None:
            moved.set()

    async def moved(self, call: str) -> None:
        """Wait until something happens in it."""
        await self._moved.setdefault(call, asyncio.Event()).wait()

    def forget(self, call: str) -> None:
        """Delete all that there is of it."""
        self.values.forget(call)


async def _bytes(contents: AsyncIterator[Entry | bytes]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(contents):  # type: ignore[type-var]  # it is an async generator
        async for piece in contents:
            if isinstance(piece, bytes):
                yield piece


async def once(data: bytes) -> AsyncIterator[bytes]:
    """Bytes as a stream."""
    yield data


async def _nobody(function: FunctionRecord, container: Container, frame: Frame) -> bytes:
    raise RuntimeError("composed without anybody who answers containers")


_OF_SANDBOX: Final = ("image", "resources", "env", "user", "network", "volumes", "buckets")
