"""Running things in a sandbox and telling what became of them."""

import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Literal

from common.ids import new_id
from common.tasks import TaskOwner
from common.turns import aside
from isolation.channel.frames import Stage
from isolation.channel.link import StartFailed
from isolation.errors import SandboxGone
from isolation.execlog import Event, EventType, Gap, LogReader, LogWriter
from sandbox_api.host.interface import ExecEnd, ExecSpec, Host, KnownExec, Terminal
from sandbox_api.metrics import Metrics
from sandbox_api.models.execs import ExecError, ExecRequest
from sandbox_api.output.follow import Changed, follow, wait_end
from sandbox_api.problems import Problem, invalid, not_found, start_failed
from sandbox_api.services.egress import EgressService
from sandbox_api.services.exec_ends import conclude, last_events
from sandbox_api.services.exec_views import is_quick
from sandbox_api.services.gpus import environment
from sandbox_api.services.openlog import OpenLog
from sandbox_api.services.registry import Live, Registry
from sandbox_api.settings import Settings
from sandbox_api.store.records import ExecRecord, SandboxRecord

_RESULTS_MAX: Final = 32 << 20


class ExecService:
    """The use cases of execs."""

    def __init__(self, settings: Settings, host: Host, registry: Registry, tasks: TaskOwner, metrics: Metrics) -> None:
        self._settings = settings
        self._host = host
        self._registry = registry
        self._store = registry.store
        self._tasks = tasks
        self._metrics = metrics
        self._logs: dict[str, OpenLog] = {}

    # ---- starting

    async def start(self, tenant: str, sandbox_id: str, request: ExecRequest) -> ExecRecord:
        """Start it; the same exec_id again answers with the exec that there is."""
        live = await self._registry.usable(tenant, sandbox_id)
        if request.exec_id is not None and (known := await self.known_by_id(live, request.exec_id)) is not None:
            return known
        return await self.start_in(live, request)

    async def known_by_id(self, live: Live, exec_id: str) -> ExecRecord | None:
        """The sandbox's exec of an id that a client chose, if there is one; 409 if another sandbox has it."""
        known = live.execs.get(exec_id) or await self._store.exec_by_id(live.record.id, exec_id)
        if known is None and await self._store.exec_is_taken(exec_id):
            raise Problem(409, "exec_id_taken", "this exec_id is in use", hint="choose a fresh random exec_id")
        return known

    async def start_in(
        self,
        live: Live,
        request: ExecRequest,
        *,
        role: Literal["exec", "context"] = "exec",
        title: str | None = None,
    ) -> ExecRecord:
        """Start it in this sandbox; a program that is not there is an exec that ended, not a refusal."""
        now = time.time()
        record = ExecRecord(
            id=request.exec_id or new_id("exe"),
            sandbox_id=live.record.id,
            number=self._host.execs.reserve(live.record.id),
            argv=request.command,
            title=title or request.title,
            role=role,
            state="starting",
            created_at=now,
            deadline=None if request.timeout_s is None else now + request.timeout_s,
            timeout_s=request.timeout_s,
            overflow=request.overflow,
            pty=request.pty is not None,
        )
        spec = self._spec(live.record, request, record)
        live.execs[record.id] = record
        try:
            await self._store.save_exec(record)
            await self._host.execs.start(record.sandbox_id, record.id, record.number, spec)
        except StartFailed as error:
            return await self._failed_start(live, record, error)
        except BaseException:
            live.execs.pop(record.id, None)
            await self._store.forget_exec(record.id)
            raise
        self._metrics.execs.inc()
        record.state, record.started_at = "running", time.time()
        await self._store.save_exec(record)
        self._tasks.spawn(self._finish(live, record), name=f"exec {record.id}")
        if isinstance(request.stdin, str):
            feeding = self._feed_all(live.record.id, record.id, request.stdin.encode())
            self._tasks.spawn(feeding, name=f"stdin {record.id}")
        return record

    def _note_start(self, record: ExecRecord) -> None:
        payload = self._announcement(record)
        self._host.execs.append(record.sandbox_id, record.id, EventType.STARTED, payload)

    @staticmethod
    def _announcement(record: ExecRecord) -> bytes:
        said: dict[str, object] = {"exec_id": record.id, "argv": record.argv}
        if record.forked_from is not None:
            said["forked_from"] = record.forked_from
        return json.dumps(said).encode()

    def environment(self, sandbox: SandboxRecord) -> dict[str, str]:
        """What stands in the environment of all that is started in a sandbox."""
        egress = EgressService.environment(sandbox, has_authorities=bool(self._settings.ca_bundle))
        return egress | environment(sandbox) | sandbox.env

    def _spec(self, sandbox: SandboxRecord, request: ExecRequest, record: ExecRecord) -> ExecSpec:
        user = request.user or sandbox.user
        if not self._settings.allow_root and user.partition(":")[0] in ("root", "0"):
            raise Problem(403, "root_forbidden", "this server runs nothing as root", hint="leave `user` out")
        spec = ExecSpec(
            argv=request.command,
            user=user,
            env=self.environment(sandbox) | request.env,
            workdir=request.workdir or sandbox.workdir or "",
            terminal=Terminal(request.pty.rows, request.pty.cols) if request.pty else None,
            stdin=(request.stdin is not False and request.stdin is not None) or request.pty is not None,
            allow_root=self._settings.allow_root,
            nproc=sandbox.resources["pids"],
            deadline=record.deadline,
            overflow=record.overflow,
            log_limit=self._settings.log_limit_mb << 20,
            keeps_awake=record.role != "context",
            announcement=self._announcement(record),
        )
        try:
            spec.request()
        except ValueError as error:
            raise invalid(str(error), "pass large data through a file or stdin instead") from error
        return spec

    async def _feed_all(self, sandbox: str, exec_id: str, data: bytes) -> None:
        with contextlib.suppress(SandboxGone):
            if await self._host.execs.write_input(sandbox, exec_id, data):
                self._host.execs.end_input(sandbox, exec_id)

    async def _failed_start(self, live: Live, record: ExecRecord, error: StartFailed) -> ExecRecord:
        if error.stage != Stage.EXEC:
            live.execs.pop(record.id, None)
            await self._store.forget_exec(record.id)
            raise start_failed(error)
        # A log of its own, so that followers and late readers find what everybody finds.
        now = time.time()
        record.started_at = now
        end = ExecEnd("failed", stage=error.stage, errno=error.errno, ended_at=now)
        path = self._host.execs.log_path(record.sandbox_id, record.id)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        log = LogWriter(path)
        try:
            conclude(record, self.log_path(record), end, None, "")
            for type_, payload in last_events(record):
                log.append(type_, payload)
        finally:
            log.close()
        live.execs.pop(record.id, None)
        await self._store.save_exec(record)
        return record

    # ---- ending

    async def _finish(self, live: Live, record: ExecRecord) -> None:
        end = await self._host.execs.wait(record.sandbox_id, record.id)
        detail = ""
        if end.kind == "sandbox":
            await live.over.wait()  # so that the reason is known
            detail = (live.record.termination or {}).get("detail", "")
        reason = (live.record.termination or {}).get("reason")
        conclude(record, self.log_path(record), end, reason, detail)
        for type_, payload in last_events(record):
            self._host.execs.append(record.sandbox_id, record.id, type_, payload)
        self._host.execs.close(record.sandbox_id, record.id)
        live.execs.pop(record.id, None)
        live.used_at = time.time()
        await self._store.save_exec(record)
        self._metrics.exec_seconds.observe(max(0.0, end.ended_at - (record.started_at or end.ended_at)))

    # ---- after a restart

    def known(self, record: ExecRecord, sandbox: SandboxRecord) -> KnownExec:
        """What the host needs to go on with an exec of an earlier server."""
        spec = ExecSpec(
            argv=record.argv,
            user=sandbox.user,
            deadline=record.deadline,
            overflow=record.overflow,
            log_limit=self._settings.log_limit_mb << 20,
            base=(record.base[0], record.base[1]),
            keeps_awake=record.role != "context",
        )
        return KnownExec(record.id, record.number, spec)

    async def recovered(self, live: Live, record: ExecRecord) -> None:
        """The host goes on with this exec; note its start if the earlier server did not live to."""
        with LogReader(self.log_path(record)) as reader:
            events = [event.type for event in reader.read(0, budget=1 << 16) if isinstance(event, Event)]
            ending = reader.ending()
        if ending is not None:  # it had ended, the log says so: only the record is behind
            self._host.execs.close(record.sandbox_id, record.id)
            await self.settle(record, ending)
            return
        live.execs[record.id] = record
        if record.state == "starting":
            record.state, record.started_at = "running", record.created_at
            if EventType.STARTED not in events:
                self._note_start(record)
            await self._store.save_exec(record)
        self._tasks.spawn(self._finish(live, record), name=f"exec {record.id}")

    def seed_log(self, record: ExecRecord) -> None:
        """Begin the log of a copy with what its original had of a frame that was cut."""
        if any(record.rest):
            path = self.log_path(record)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            log = LogWriter(path, limit=self._settings.log_limit_mb << 20)
            for type_, text in zip((EventType.STDOUT, EventType.STDERR), record.rest, strict=True):
                if text:
                    log.append(type_, base64.b64decode(text))
            log.close()

    async def adopted(self, live: Live, record: ExecRecord, *, announced: bool) -> None:
        """A copy's exec, which goes on: from now on it is one of this sandbox's. Its log may have announced it."""
        live.execs[record.id] = record
        record.started_at = time.time()
        if not announced:
            self._note_start(record)
        await self._store.save_exec(record)
        self._tasks.spawn(self._finish(live, record), name=f"exec {record.id}")

    async def settle(self, record: ExecRecord, ending: bytes) -> None:
        """Bring a record up to what its log says of its end."""
        said = json.loads(ending)
        record.state, record.outcome, record.error = "exited", said["outcome"], said["error"]
        record.started_at = record.started_at or record.created_at
        record.ended_at, record.cpu_s, record.max_rss_mb = said["ended_at_s"], said["cpu_s"], said["max_rss_mb"]
        await self._store.save_exec(record)

    async def unknown(self, record: ExecRecord) -> None:
        """PID 1 does not know it.

        It may never have heard of it, and no client either: a retry starts it. Or it was told to forget it, and the
        server died before the record said what the log says.
        """
        if await self._settled(record):
            return
        if record.state == "starting":
            await self._store.forget_exec(record.id)
        else:
            await self.lost(record, "lost", "the sandbox knows nothing of it any more")

    async def _settled(self, record: ExecRecord) -> bool:
        """Bring a record up to its log, if that says how it ended."""
        with contextlib.suppress(FileNotFoundError), LogReader(self.log_path(record)) as reader:
            if (ending := reader.ending()) is not None:
                await self.settle(record, ending)
                return True
        return False

    async def lost(self, record: ExecRecord, reason: str, detail: str) -> None:
        """Its sandbox ended while no server ran, or could not be had back."""
        if await self._settled(record):
            return
        path = self.log_path(record)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        record.started_at = record.started_at or record.created_at
        conclude(record, self.log_path(record), ExecEnd("sandbox", ended_at=time.time()), reason, detail)
        log = LogWriter(path, limit=self._settings.log_limit_mb << 20)
        try:
            for type_, payload in last_events(record):
                log.append(type_, payload)
        finally:
            log.close()
        await self._store.save_exec(record)

    # ---- looking

    def log_path(self, record: ExecRecord) -> Path:
        """Where its log lies."""
        return self._host.execs.log_path(record.sandbox_id, record.id)

    async def get(self, tenant: str, sandbox_id: str, exec_id: str) -> ExecRecord:
        """Its record; 404."""
        sandbox = await self._registry.record(tenant, sandbox_id)
        live = self._registry.live.get(sandbox.id)
        record = live.execs.get(exec_id) if live is not None else None
        record = record or await self._store.exec_by_id(sandbox.id, exec_id)
        if record is None or record.state == "starting":
            raise not_found("exec")
        return record

    async def wait(self, record: ExecRecord) -> None:
        """Wait for its end."""
        sandbox, id_ = record.sandbox_id, record.id
        await wait_end(
            self.log_path(record), self._changed(record), lambda f: self._host.execs.unfollow(sandbox, id_, f)
        )

    def follow(self, record: ExecRecord, after: int) -> AsyncIterator[Event | Gap]:
        """Its events beyond after."""
        sandbox, id_ = record.sandbox_id, record.id
        return follow(
            self.log_path(record), after, self._changed(record), lambda f: self._host.execs.unfollow(sandbox, id_, f)
        )

    def _changed(self, record: ExecRecord) -> Changed:
        async def changed(seq: int, follower: str) -> None:
            if (ours := self._logs.get(record.id)) is not None:
                await ours.changed(seq)
            else:
                await self._host.execs.changed(record.sandbox_id, record.id, seq, follower)

        return changed

    def open_log(self, record: ExecRecord) -> OpenLog:
        """The log of a run, which the service itself writes."""
        if (log := self._logs.get(record.id)) is None:
            log = OpenLog(self.log_path(record), limit=self._settings.log_limit_mb << 20)
            self._logs[record.id] = log
        return log

    def tell(self, record: ExecRecord, type_: EventType, payload: bytes) -> None:
        """Add an event to the log of an exec that runs, whoever writes it; contexts are not asked for by anybody."""
        if record.state != "running" or record.role == "context":
            return
        if record.role == "run":
            self.open_log(record).append(type_, payload)
        else:
            self._host.execs.append(record.sandbox_id, record.id, type_, payload)

    async def conclude_run(
        self, live: Live, record: ExecRecord, log: OpenLog, end: ExecEnd, error: ExecError | None
    ) -> None:
        """A run in a context has ended so; error is what is known better than its output tells."""
        termination = live.record.termination or {}
        conclude(record, self.log_path(record), end, termination.get("reason"), termination.get("detail", ""))
        record.cpu_s = record.max_rss_mb = None
        record.error = error.model_dump() if error else record.error
        for type_, payload in last_events(record):
            log.append(type_, payload)
        log.close()
        self._logs.pop(record.id, None)
        live.execs.pop(record.id, None)
        live.used_at = time.time()
        await self._store.save_exec(record)

    async def output(self, record: ExecRecord, stream: int, start: int, limit: int) -> tuple[int, bytes]:
        """Bytes of a stream from start on: (offset they begin at, bytes)."""
        path = self.log_path(record)

        def read() -> tuple[int, bytes]:
            with LogReader(path) as reader:
                return reader.stream(stream, start, limit)

        return read() if is_quick(path, limit) else await aside(read)

    # ---- acting on it

    async def signal(self, record: ExecRecord, signal: int, *, group: bool) -> None:
        """Send a signal; 409 if it has ended."""
        if record.state != "running":
            raise _ended()
        self._host.execs.signal(record.sandbox_id, record.id, signal, group=group)

    def resize(self, record: ExecRecord, rows: int, cols: int) -> None:
        """Resize its terminal; 409 if it has none."""
        if not record.pty:
            raise Problem(409, "no_terminal", "this exec has no terminal", hint='start it with "pty": {"rows", "cols"}')
        self._host.execs.resize(record.sandbox_id, record.id, rows, cols)

    async def write_input(self, record: ExecRecord, pieces: AsyncIterator[bytes], *, eof: bool) -> tuple[int, bool]:
        """Feed it: (bytes sent in all, whether it takes no more)."""
        if record.state != "running":
            raise _ended()
        sandbox, id_ = record.sandbox_id, record.id
        open_ = True
        async for piece in pieces:
            if not (open_ := await self._host.execs.write_input(sandbox, id_, piece)):
                break
        if eof and open_:
            self._host.execs.end_input(sandbox, id_)
        return self._host.execs.input_offset(sandbox, id_), not open_


def _ended() -> Problem:
    return Problem(409, "exec_ended", "the process has ended", hint="start another exec")
