"""Apps that clients run: what they made for that, and whether they still live.

A client says every now and then that it is there, and is told then what it is to make: a function that a container
calls is made when it is called first. Nothing is kept ready for a client that has been silent for a while.
"""

import asyncio
import time
from collections import OrderedDict
from typing import Final

import structlog

from sandbox_api.models.functions import RunAnswer, RunNews, Wanted
from sandbox_api.problems import Problem, invalid, not_found
from sandbox_api.services.functions.service import FunctionService
from sandbox_api.services.registry import Registry
from sandbox_api.store.functions import AppRecord, FunctionRecord, RunRecord

_log = structlog.get_logger(__name__)
_SILENT_S: Final = 60.0
_LOOK_S: Final = 5.0
_FIND_S: Final = 1800.0
_FUNCTIONS_MAX: Final = 10_000
_ENDED_MAX: Final = 1000
_WANTED_MAX: Final = 50

Name = tuple[str, str | None]
"""A function's name, and for a class the parameters of an instance as they are written."""


class Run:
    """One, as long as it goes on."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.heard_at = time.monotonic()
        self.listening = 0
        self.wanted: set[Name] = set()
        self.failures: dict[Name, str] = {}
        self.moved = asyncio.Event()

    def tell(self) -> None:
        """Something changed."""
        self.moved.set()
        self.moved = asyncio.Event()


class RunService:
    """See the module."""

    def __init__(self, registry: Registry, functions: FunctionService) -> None:
        self._store = registry.store.functions
        self._functions = functions
        self._runs = {each.id: Run(each) for each in self._store.runs()}
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Tenant and id of those that their clients ended."""

    # ---- for clients

    async def made(self, tenant: str, run: str, function: FunctionRecord) -> None:
        """A client made a function for its run."""
        if (tenant, run) not in self._ended:
            self._add(self._of(tenant, run, function.app), [function.id])
        elif not self.is_used(tenant, function.id):
            await self._functions.retire(tenant, function.id)

    async def heard(self, tenant: str, id_: str, news: RunNews, wait_s: float) -> RunAnswer:
        """A client is there, and listens for so many seconds, or until a container wants something."""
        if (tenant, id_) in self._ended:
            return RunAnswer(ended=True)
        run = self._of(tenant, id_, news.app)
        for each in news.functions:
            if (await self._functions.get(tenant, each)).app != run.record.app:
                raise invalid(f"function {each} is another app's", f"make it with app={run.record.app!r}")
        self._add(run, news.functions)
        self._note_failures(run, news)
        making = {(each.name, each.parameters) for each in news.making}
        run.listening += 1
        try:
            async with asyncio.timeout(wait_s):
                while not run.wanted - making and id_ in self._runs:
                    await run.moved.wait()
        except TimeoutError:
            return RunAnswer()
        finally:
            run.listening -= 1
            run.heard_at = time.monotonic()
        wanted = [Wanted(name=name, parameters=each) for name, each in run.wanted - making]
        return RunAnswer(wanted=wanted, ended=(tenant, id_) in self._ended)

    def _note_failures(self, run: Run, news: RunNews) -> None:
        for each in news.failed:
            name = (each.name, each.parameters)
            if name in run.wanted:  # somebody waits for it
                run.wanted.discard(name)
                run.failures[name] = each.error
        if news.failed:
            run.tell()

    def _of(self, tenant: str, id_: str, app: str) -> Run:
        if (run := self._runs.get(id_)) is None:
            record = RunRecord(id_, tenant, app)
            run = self._runs[id_] = Run(record)
            self._store.save_run(record)
        if run.record.tenant != tenant or run.record.app != app:
            raise Problem(409, "run_id_taken", "this id is in use", hint="choose a fresh random id")
        run.heard_at = time.monotonic()
        return run

    def _add(self, run: Run, functions: list[str]) -> None:
        fresh = [each for each in functions if each not in run.record.functions]
        if fresh:
            run.record.functions += fresh
            self._store.save_run(run.record)
        for each in fresh:
            if (made := self._store.function(each)) is not None:
                run.wanted.discard(_name(made))
        if fresh:
            run.tell()

    async def end(self, tenant: str, id_: str) -> None:
        """A client is done: what it made is kept ready for it no more. Idempotent; 404 for another's."""
        if (tenant, id_) in self._ended:
            return
        run = self._runs.get(id_)
        if run is None or run.record.tenant != tenant:
            raise not_found("run")
        del self._runs[id_]
        self._ended[tenant, id_] = None
        while len(self._ended) > _ENDED_MAX:
            self._ended.popitem(last=False)
        self._store.forget_run(id_)
        run.tell()
        for each in run.record.functions:
            if self._store.function(each) is not None and not self.is_used(tenant, each):
                await self._functions.retire(tenant, each)

    # ---- for others

    def is_used(self, tenant: str, function: str) -> bool:
        """Whether an app that is in force or runs has a function."""
        return (
            any(function in each.record.functions for each in self._runs.values())
            or self._deployed(tenant, function) is not None
        )

    def _deployed(self, tenant: str, function: str) -> AppRecord | None:
        return next((each for each in self._store.apps(tenant) if function in each.functions.values()), None)

    async def find(self, caller: FunctionRecord, run_id: str | None, name: Name) -> FunctionRecord:
        """The function of the caller's app by this name, as its run or its version has it; 404 if nobody makes it."""
        run = self._runs.get(run_id or "")
        if run is None or (run.record.tenant, run.record.app) != (caller.tenant, caller.app):
            run = next((each for each in self._runs.values() if caller.id in each.record.functions), None)
        if run is None or (run_id is None and self._deployed(caller.tenant, caller.id) is not None):
            found = self._in_force(caller, name) or (None if run is not None else self._newest(caller, name))
            if found is None:
                raise Problem(
                    404,
                    "function_not_found",
                    f"app {caller.app} has no function {name[0]}{_with(name)}",
                    hint="deploy it, of a class the instance too; or keep the client that runs the app",
                )
            return found
        return await self._made_by(run, name)

    async def _made_by(self, run: Run, name: Name) -> FunctionRecord:
        """What a client has made by this name, or makes now."""
        deadline = time.monotonic() + _FIND_S
        while run.record.id in self._runs:
            for each in reversed(run.record.functions):
                made = self._store.function(each)
                if made is not None and _name(made) == name:
                    return made
            if (error := run.failures.get(name)) is not None:
                raise Problem(422, "function_not_made", f"{name[0]}{_with(name)} cannot be made: {error}")
            if name not in run.wanted:
                if len(run.wanted) >= _WANTED_MAX:
                    raise Problem(429, "too_many_wanted", f"{_WANTED_MAX} functions are being made already")
                run.wanted.add(name)
                run.tell()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await run.moved.wait()
            except TimeoutError:
                break
        run.wanted.discard(name)
        raise Problem(
            404,
            "function_not_found",
            f"the client of app {run.record.app} did not make {name[0]}{_with(name)}",
            hint="it has to run while its functions call others for the first time",
        )

    def _newest(self, caller: FunctionRecord, name: Name) -> FunctionRecord | None:
        """What was made last by this name: of a call that goes on when its client has gone."""
        found = self._store.functions(caller.tenant, _FUNCTIONS_MAX)
        return next((each for each in found if each.app == caller.app and _name(each) == name), None)

    def _in_force(self, caller: FunctionRecord, name: Name) -> FunctionRecord | None:
        app = self._deployed(caller.tenant, caller.id) or self._store.app(caller.tenant, caller.app)
        for each in app.functions.values() if app is not None else ():
            made = self._store.function(each)
            if made is not None and _name(made) == name:
                return made
        return None

    async def watch(self) -> None:
        """Take those for gone that have been silent, for ever."""
        while True:
            for id_, run in list(self._runs.items()):
                if not run.listening and run.heard_at + _SILENT_S < time.monotonic():
                    _log.info("a client is gone", app=run.record.app, run=id_)
                    await self.end(run.record.tenant, id_)
                    self._ended.pop((run.record.tenant, id_), None)  # it may come back, from a long sleep
            await asyncio.sleep(_LOOK_S)


def _name(record: FunctionRecord) -> Name:
    return record.name, record.asked["entry"].get("parameters")


def _with(name: Name) -> str:
    return "" if name[1] is None else " with these parameters"
