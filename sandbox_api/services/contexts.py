"""Code contexts: interpreters kept in a sandbox, and runs in them.

A context is an exec whose program is our runner (sandbox_api/contexts/). Its log is the truth: a pump follows it, takes
it apart (protocol.py) and writes what belongs to the run that is on into that run's own log, so that a run looks like
an exec to whoever follows it. After a restart the pump reads again from the event where the run began and leaves out
what the run's log has already: nothing is lost or repeated.
"""

import asyncio
import base64
import contextlib
import json
import os
import secrets
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from common.errors import IsoboxError
from common.ids import new_id
from common.tasks import TaskOwner
from common.turns import aside
from isolation.errors import GuestUnresponsive
from isolation.execlog import Event, EventType, LogReader
from sandbox_api.contexts.protocol import Splitter, unfinished
from sandbox_api.host.interface import ExecEnd, Host
from sandbox_api.models.common import time_of
from sandbox_api.models.contexts import Context, CreateContext, RunRequest
from sandbox_api.models.execs import ExecError, ExecRequest
from sandbox_api.problems import Problem, not_found
from sandbox_api.services.execs import ExecService
from sandbox_api.services.live_context import LiveContext, Run
from sandbox_api.services.registry import Live, Registry
from sandbox_api.settings import Settings
from sandbox_api.store.records import ContextRecord, ExecRecord

_log = structlog.get_logger(__name__)
_FOLDER: Final = Path(__file__).parents[1] / "contexts"
TOUCH: Final = b'{"warm": true}\n'
"""A request that a runner answers without running anybody's code."""

_READY_WITHIN_S: Final = 30.0
_GRACE_S: Final = 2.0
_CONTEXTS_MAX: Final = 32
_TAIL: Final = 8192
_PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "python": ("python3", "-c", (_FOLDER / "python_runner.py").read_text()),
    "node": ("node", "-e", (_FOLDER / "node_runner.js").read_text(), "--"),
}


class ContextService:
    """The use cases of contexts."""

    def __init__(
        self, settings: Settings, host: Host, registry: Registry, execs: ExecService, tasks: TaskOwner
    ) -> None:
        self._settings = settings
        self._host = host
        self._registry = registry
        self._store = registry.store
        self._execs = execs
        self._tasks = tasks
        self._live: dict[str, dict[str, LiveContext]] = {}
        self._making: dict[tuple[str, str], asyncio.Lock] = {}

    # ---- contexts

    async def create(self, tenant: str, sandbox_id: str, request: CreateContext) -> LiveContext:
        """Start an interpreter and wait until it is ready; 422 where the image has none."""
        live = await self._registry.usable(tenant, sandbox_id)
        return await asyncio.shield(
            self._tasks.spawn(self._create(live, request, default=False), name=f"context in {sandbox_id}")
        )

    async def _create(self, live: Live, request: CreateContext, *, default: bool) -> LiveContext:
        here = self._live.setdefault(live.record.id, {})
        if len(here) >= _CONTEXTS_MAX:
            raise Problem(429, "too_many_contexts", f"there are {len(here)} contexts", hint="delete some")
        token = secrets.token_hex(8)
        asked = ExecRequest(
            argv=[*_PROGRAMS[request.language], token],
            env=request.env,
            workdir=request.workdir,
            user=request.user,
            stdin=True,
            overflow="block",
        )
        exec_ = await self._execs.start_in(live, asked, role="context", title=f"context: {request.language}")
        if exec_.state == "exited":
            raise Problem(
                422,
                "language_unavailable",
                f"the image has no {_PROGRAMS[request.language][0]}",
                hint="use an image that has it, or install it",
            )
        record = ContextRecord(
            new_id("ctx"), live.record.id, request.language, exec_.id, token, time.time(), default=default
        )
        await self._store.save_context(record)
        context = self._begin(live, record, exec_, after=0)
        self._host.hold(live.record.id)
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                await asyncio.shield(context.ready)
        except TimeoutError:
            await self._delete(live, context)
            raise Problem(
                504, "context_not_ready", "the interpreter did not start in time", hint="try again", retryable=True
            ) from None
        finally:
            self._host.let_go(live.record.id)
        return context

    def _begin(self, live: Live, record: ContextRecord, exec_: ExecRecord, *, after: int) -> LiveContext:
        splitters = (Splitter(record.token), Splitter(record.token))
        context = LiveContext(record, exec_, splitters, asyncio.get_running_loop().create_future(), seq=after)
        self._live.setdefault(record.sandbox_id, {})[record.id] = context
        self._tasks.spawn(self._pump(live, context), name=f"context {record.id}")
        return context

    async def all(self, tenant: str, sandbox_id: str) -> list[LiveContext]:
        """A sandbox's contexts."""
        await self._registry.record(tenant, sandbox_id)
        return list(self._live.get(sandbox_id, {}).values())

    async def delete(self, tenant: str, sandbox_id: str, id_: str) -> None:
        """End a context, and what runs in it."""
        live = await self._registry.usable(tenant, sandbox_id)
        await self._delete(live, self._get(sandbox_id, id_))

    async def _delete(self, live: Live, context: LiveContext) -> None:
        self._live.get(context.record.sandbox_id, {}).pop(context.record.id, None)
        await self._store.forget_context(context.record.id)
        self._host.hold(live.record.id)
        try:
            self._host.execs.signal(live.record.id, context.exec.id, signal.SIGKILL, group=True)
            await self._execs.wait(context.exec)
        finally:
            self._host.let_go(live.record.id)

    def _get(self, sandbox_id: str, id_: str) -> LiveContext:
        context = self._live.get(sandbox_id, {}).get(id_)
        if context is None:
            raise not_found("context")
        return context

    # ---- runs

    async def run(self, tenant: str, sandbox_id: str, id_: str, request: RunRequest) -> ExecRecord:
        """Run code in a context, behind what was asked of it before."""
        live = await self._registry.usable(tenant, sandbox_id)
        return await self._run(live, self._get(sandbox_id, id_), request)

    async def run_anywhere(self, tenant: str, sandbox_id: str, language: str, request: RunRequest) -> ExecRecord:
        """Run code in the default context of a language."""
        live = await self._registry.usable(tenant, sandbox_id)
        async with self._making.setdefault((sandbox_id, language), asyncio.Lock()):
            context = self._default(sandbox_id, language)
            if context is None:
                making = self._create(live, CreateContext.model_validate({"language": language}), default=True)
                context = await asyncio.shield(self._tasks.spawn(making, name=f"default context in {sandbox_id}"))
        return await self._run(live, context, request)

    def _default(self, sandbox_id: str, language: str) -> LiveContext | None:
        for each in self._live.get(sandbox_id, {}).values():
            if each.record.default and each.record.language == language and not each.ended:
                return each
        return None

    async def _run(self, live: Live, context: LiveContext, request: RunRequest) -> ExecRecord:
        if request.exec_id is not None and (known := await self._execs.known_by_id(live, request.exec_id)) is not None:
            return known
        if context.ended:
            raise Problem(409, "context_ended", "the context's interpreter has ended", hint="create another context")
        now = time.time()
        record = ExecRecord(
            id=request.exec_id or new_id("exe"),
            sandbox_id=live.record.id,
            number=0,
            argv=[context.record.language],
            title=request.code[:200],
            state="running",
            created_at=now,
            started_at=now,
            deadline=None if request.timeout_s is None else now + request.timeout_s,
            timeout_s=request.timeout_s,
            role="run",
            context=context.record.id,
        )
        run = self._opened(live, record)
        run.log.append(EventType.STARTED, json.dumps({"exec_id": record.id, "context": context.record.id}).encode())
        await self._store.save_exec(record)
        self._tasks.spawn(self._perform(live, context, run, request.code), name=f"run {record.id}")
        return record

    def _opened(self, live: Live, record: ExecRecord) -> Run:
        live.execs[record.id] = record
        log = self._execs.open_log(record)
        return Run(record, log, asyncio.get_running_loop().create_future())

    async def _perform(self, live: Live, context: LiveContext, run: Run, code: str) -> None:
        async with context.turn:
            if context.ended:
                run.done.set_exception(_Gone())
            else:
                await self._send(live, context, run, code)
            await self._see_through(live, context, run)

    async def _send(self, live: Live, context: LiveContext, run: Run, code: str) -> None:
        record = context.record
        record.runs += 1
        request = {"run": record.runs, "code": code, "seed": os.urandom(16).hex() if record.reseed else None}
        record.reseed = False
        async with context.reading:  # its output begins behind an event, not in the middle of one
            run.record.run, run.record.first_seq = record.runs, context.seq
            context.current = run
        await self._store.save_context(record)
        await self._store.save_exec(run.record)
        self._host.hold(live.record.id)
        line = json.dumps(request).encode() + b"\n"
        # In the background: a runner that has died takes no input, and its end is told elsewhere.
        self._tasks.spawn(self._feed(live.record.id, context.exec.id, run, line), name=f"code {run.record.id}")

    async def _feed(self, sandbox: str, exec_id: str, run: Run, line: bytes) -> None:
        with contextlib.suppress(IsoboxError):
            run.sent = await self._host.execs.write_input(sandbox, exec_id, line)

    async def _see_through(self, live: Live, context: LiveContext, run: Run) -> None:
        """Wait for the run's end, interrupt it in time, write down how it ended."""
        record, end, late = run.record, ExecEnd("sandbox", ended_at=time.time()), False
        try:
            try:
                async with asyncio.timeout(
                    None if record.deadline is None else max(0.0, record.deadline - time.time())
                ):
                    ok = await asyncio.shield(run.done)
            except TimeoutError:
                late = True
                ok = await self._interrupt(context, run)
            end = ExecEnd("exit", code=0 if ok else 1, ended_at=time.time())
        except _Gone as gone:
            if gone.end is not None:
                end = gone.end
        finally:
            if context.current is run:
                context.current = None
                self._host.let_go(live.record.id)
        if late:
            end = ExecEnd("signal", code=signal.SIGINT, timed_out=True, ended_at=time.time())
        if end.kind == "sandbox" and live.record.state != "running":
            await live.over.wait()
        error = _timeout_error(record, kept=not context.ended) if late else None
        await self._execs.conclude_run(live, record, run.log, end, error)

    async def _interrupt(self, context: LiveContext, run: Run) -> bool:
        sandbox, exec_id = context.record.sandbox_id, context.exec.id
        with contextlib.suppress(GuestUnresponsive):  # what follows is never refused
            self._host.execs.signal(sandbox, exec_id, signal.SIGINT, group=True)
        try:
            async with asyncio.timeout(_GRACE_S):
                return await asyncio.shield(run.done)
        except TimeoutError:
            self._host.execs.signal(sandbox, exec_id, signal.SIGKILL, group=True)
            return await run.done

    async def signal(self, record: ExecRecord, number: int) -> None:
        """A signal for a run: it goes to the interpreter and all that it started."""
        for context in self._live.get(record.sandbox_id, {}).values():
            if context.current is not None and context.current.record.id == record.id:
                self._host.execs.signal(record.sandbox_id, context.exec.id, number, group=True)
                return
        raise Problem(409, "run_waits", "the run has not begun yet, or has ended", hint="try again", retryable=True)

    # ---- the pump

    async def _pump(self, live: Live, context: LiveContext) -> None:
        async for event in self._execs.follow(context.exec, context.seq):
            if isinstance(event, Event):
                if event.type == EventType.EXIT:
                    break
                if event.type in (EventType.STDOUT, EventType.STDERR):
                    await context.take(event)
            context.seq = event.seq
        context.ended = True
        end = _how(context.exec)
        if not context.ready.done():
            context.ready.set_exception(
                Problem(422, "context_failed", "the interpreter ended while it started", hint="see the image's python3")
            )
            context.ready.exception()
        if context.current is not None and not context.current.done.done():
            context.current.done.set_exception(_Gone(end))
        if live.record.state == "running":
            self._live.get(context.record.sandbox_id, {}).pop(context.record.id, None)
            await self._store.forget_context(context.record.id)

    # ---- after a restart, and in copies

    async def recover(self, live: Live) -> None:
        """Go on with a sandbox's contexts, and with the runs that were on; its execs have been recovered."""
        records = {each.id: each for each in await self._store.contexts(live.record.id)}
        runs = [each for each in await self._store.unfinished_execs(live.record.id) if each.role == "run"]
        for record in records.values():
            exec_ = live.execs.get(record.exec)
            if exec_ is None:
                await self._store.forget_context(record.id)
                continue
            current = next((r for r in runs if r.context == record.id and r.first_seq is not None), None)
            await self._go_on(live, record, exec_, current)
        for run in runs:
            if run.id not in live.execs:  # it had not had its turn, or its context is gone
                opened = self._opened(live, run)
                await self._execs.conclude_run(live, run, opened.log, ExecEnd("sandbox", ended_at=time.time()), None)

    async def _go_on(self, live: Live, record: ContextRecord, exec_: ExecRecord, current: ExecRecord | None) -> None:
        if current is None:
            with LogReader(self._execs.log_path(exec_)) as reader:
                after = reader.last
        else:
            assert current.first_seq is not None
            after = current.first_seq
            current.results = await aside(partial(_results, self._execs.log_path(current)))
        context = self._begin(live, record, exec_, after=after)
        context.ready.set_result(None)
        if current is not None:
            run = self._opened(live, current)
            run.sent = True
            run.skip = [*run.log.totals, len(current.results)]
            context.current = run
            self._host.hold(live.record.id)  # parked too: from the moment that it goes on
            self._tasks.spawn(self._resume_run(live, context, run), name=f"run {current.id}")

    async def _resume_run(self, live: Live, context: LiveContext, run: Run) -> None:
        async with context.turn:
            await self._see_through(live, context, run)

    def on(self, live: Live) -> set[str]:
        """The runs whose code a copy that is taken from now on will hold, unless they end before."""
        here = self._live.get(live.record.id, {}).values()
        return {each.current.record.id for each in here if each.current is not None and each.current.sent}

    def copied(
        self, live: Live, offsets: Mapping[str, tuple[int, int]]
    ) -> tuple[list[ContextRecord], list[ExecRecord]]:
        """Of a sandbox that was copied at these offsets: its contexts, and the runs that are on."""
        contexts = [each for each in self._live.get(live.record.id, {}).values() if each.exec.id in offsets]
        runs = [each.current.record for each in contexts if each.current is not None and not each.current.done.done()]
        return [each.record for each in contexts], runs

    def cut(self, exec_: ExecRecord, offsets: tuple[int, int], contexts: list[ContextRecord]) -> list[str]:
        """What of its streams' ends belongs to frames that the copy holds only the rest of, as base64."""
        token = next((each.token for each in contexts if each.exec == exec_.id), None)
        if token is None:
            return ["", ""]
        with LogReader(self._execs.log_path(exec_)) as reader:
            tails = []
            for stream in (1, 2):
                end = offsets[stream - 1] - exec_.base[stream - 1]
                begin = max(0, end - _TAIL)
                tails.append(reader.stream(stream, begin, end - begin)[1])
        return [base64.b64encode(unfinished(tail, token)).decode() for tail in tails]

    async def adopt(self, live: Live, contexts: list[ContextRecord], runs: list[ExecRecord]) -> None:
        """A copy's contexts go on, each with the run that was on; its execs have been adopted."""
        for record in contexts:
            if (exec_ := live.execs.get(record.exec)) is None:
                continue
            await self._store.save_context(record)
            current = next((each for each in runs if each.context == record.id), None)
            if current is not None:
                current.first_seq = 0
                await self._store.save_exec(current)
                self._execs.open_log(current).append(
                    EventType.STARTED,
                    json.dumps(
                        {"exec_id": current.id, "context": record.id, "forked_from": current.forked_from}
                    ).encode(),
                )
            await self._go_on(live, record, exec_, current)

    def forget(self, sandbox_id: str) -> None:
        """The sandbox has ended."""
        self._live.pop(sandbox_id, None)
        for language in _PROGRAMS:
            self._making.pop((sandbox_id, language), None)


class _Gone(Exception):
    """The interpreter has ended."""

    def __init__(self, end: ExecEnd | None = None) -> None:
        super().__init__("the interpreter has ended")
        self.end = end


def _how(exec_: ExecRecord) -> ExecEnd | None:
    """How an interpreter ended, if not with its sandbox."""
    outcome = exec_.outcome or {}
    if outcome.get("reason") == "oom" and exec_.error is not None:
        message = str(exec_.error["message"])
        return ExecEnd("signal", code=signal.SIGKILL, ended_at=time.time(), out_of_memory=message)
    if outcome.get("reason") in ("signal", "killed"):
        number = (outcome.get("exit_code") or 137) - 128
        return ExecEnd("signal", code=number, killed=outcome["reason"] == "killed", ended_at=time.time())
    if outcome.get("reason") == "exit":
        return ExecEnd("exit", code=outcome.get("exit_code") or 0, ended_at=time.time())
    return None


def _timeout_error(record: ExecRecord, *, kept: bool) -> ExecError:
    how = "was interrupted; the context goes on" if kept else "did not heed the interrupt: its context was ended"
    return ExecError(
        kind="timeout",
        name="Timeout",
        message=f"it ran longer than timeout_s={record.timeout_s:g} and {how}",
        hint="give it more time, or do less at once",
    )


def _results(log: Path) -> list[int]:
    """The seqs of a run's results; [] if it has no log yet."""
    try:
        with LogReader(log) as reader:
            return reader.seqs(EventType.RESULT)
    except FileNotFoundError:
        return []


def describe(context: LiveContext) -> Context:
    """As a client sees it."""
    record = context.record
    return Context(
        id=record.id,
        sandbox_id=record.sandbox_id,
        language=record.language,  # type: ignore[arg-type]  # as it was asked for
        state="ended" if context.ended else "running",
        busy=context.current is not None,
        runs=record.runs,
        created_at=time_of(record.created_at),  # type: ignore[arg-type]  # not None
    )
