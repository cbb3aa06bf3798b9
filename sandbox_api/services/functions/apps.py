"""Deployed apps: versions of sets of functions, kept ready and run by their schedules while they are in force.

A schedule that came due while no server ran is made up for once, at the start of the next one, however often it was
missed.
"""

import asyncio
import base64
import time
from typing import Final

import structlog

from common.errors import IsoboxError
from sandbox_api.functions import schedule
from sandbox_api.models.common import time_of
from sandbox_api.models.functions import AppFunction, AppInfo, AppVersion, Argument, CreateCall, Deploy, Schedule
from sandbox_api.problems import Problem, invalid, not_found
from sandbox_api.readable import readable
from sandbox_api.services.functions.service import FunctionService
from sandbox_api.services.registry import Registry
from sandbox_api.store.functions import AppRecord

_log = structlog.get_logger(__name__)
_NOTHING: Final = base64.b64encode(b"j[[], {}]").decode()
"""No arguments, as the client's codec writes them (isobox/functions/codec.py)."""

_READY_S: Final = 60.0
_LOOK_S: Final = 0.5
_HISTORY_MAX: Final = 100


class AppService:
    """The use cases of deployed apps."""

    def __init__(self, registry: Registry, functions: FunctionService) -> None:
        self._store = registry.store.functions
        self._functions = functions
        self._moved = asyncio.Event()

    # ---- versions

    async def deploy(self, tenant: str, name: str, request: Deploy) -> AppRecord:
        """A new version, in force when this returns: calls by name are its functions' from now on."""
        for title, id_ in request.functions.items():
            if (await self._functions.get(tenant, id_)).app != name:
                raise invalid(f"function {title} is another app's", f"make it with app={name!r}")
        record = self._store.app(tenant, name) or AppRecord(tenant, name)
        return await self._enforce(record, request.functions, None)

    async def roll_back(self, tenant: str, name: str, version: int | None) -> AppRecord:
        """An earlier version again, as a new one."""
        record = self._get(tenant, name)
        wanted = record.version - 1 if version is None else version
        if not 1 <= wanted <= len(record.history):
            raise Problem(
                404, "version_not_found", f"app {name} has no version {wanted}", hint="GET /v1/apps shows which it has"
            )
        return await self._enforce(record, record.history[wanted - 1]["functions"], wanted)

    async def stop(self, tenant: str, name: str) -> AppRecord:
        """Nothing of it is kept ready or runs by itself any more; calls that are on go on."""
        record = self._get(tenant, name)
        older, record.version = record.functions, 0
        self._store.save_app(record)
        await self._retire(record, older, {})
        return record

    async def _enforce(self, record: AppRecord, functions: dict[str, str], copy_of: int | None) -> AppRecord:
        if len(record.history) >= _HISTORY_MAX * 10:
            raise Problem(429, "too_many_versions", f"{len(record.history)} versions", hint="use another app name")
        older, now = record.functions, time.time()
        for id_ in functions.values():
            await self._functions.keep(record.tenant, id_)
        record.history.append({"created_at": now, "functions": functions, "copy_of": copy_of})
        record.version = len(record.history)
        for id_ in functions.values():
            if id_ not in older.values():
                record.runs[id_] = {"since": now}
        self._store.save_app(record)
        self._functions.spawn(self._replace(record, older, functions), name=f"deploy {record.name}")
        self._moved.set()
        return record

    async def _replace(self, record: AppRecord, older: dict[str, str], functions: dict[str, str]) -> None:
        """The older ones go once the newer ones are ready, or ought to be."""
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            if all(self._functions.is_ready(each) for each in functions.values()):
                break
            await asyncio.sleep(_LOOK_S)
        current = self._store.app(record.tenant, record.name)
        await self._retire(record, older, current.functions if current is not None else {})

    async def _retire(self, record: AppRecord, older: dict[str, str], functions: dict[str, str]) -> None:
        for id_ in set(older.values()) - set(functions.values()):
            await self._functions.retire(record.tenant, id_)

    def _get(self, tenant: str, name: str) -> AppRecord:
        if (record := self._store.app(tenant, name)) is None:
            raise not_found("app")
        return record

    async def get(self, tenant: str, name: str) -> AppInfo:
        """One of the tenant's; 404."""
        return self._describe(self._get(tenant, name))

    async def all(self, tenant: str) -> list[AppInfo]:
        """The tenant's, by name."""
        return [*readable(self._store.apps(tenant), self._describe)]

    def _describe(self, record: AppRecord) -> AppInfo:
        return AppInfo(
            name=record.name,
            version=record.version,
            functions={name: self._function(record, id_) for name, id_ in record.functions.items()},
            history=[
                AppVersion(
                    version=number,
                    created_at=time_of(each["created_at"]),  # type: ignore[arg-type]  # not None
                    functions=each["functions"],
                    copy_of=each["copy_of"],
                )
                for number, each in enumerate(record.history, 1)
            ],
        )

    def _function(self, record: AppRecord, id_: str) -> AppFunction:
        runs = record.runs.get(id_, {})
        made = self._store.function(id_)
        return AppFunction(
            id=id_,
            trust=made.asked["trust"] if made is not None else "safe",
            web=made is not None and made.asked.get("web") is not None,
            last_call=runs.get("last_call"),
            last_at=time_of(runs.get("last_at")),
            next_at=time_of(self._due(record, id_)),
        )

    def in_force(self, tenant: str, name: str, function: str) -> str:
        """The id of a function of a deployed app; 404."""
        found = self._get(tenant, name).functions.get(function)
        if found is None:
            raise not_found("function")
        return found

    # ---- schedules

    def _due(self, record: AppRecord, id_: str) -> float | None:
        """When it runs next, or ought to have run; None for one without a schedule."""
        made = self._store.function(id_)
        if made is None or made.asked.get("schedule") is None:
            return None
        asked, runs = Schedule.model_validate(made.asked["schedule"]), record.runs.get(id_, {})
        since = float(runs.get("since", record.history[-1]["created_at"]))
        last = float(runs.get("last_at", since))
        if asked.cron is not None:
            return schedule.next_cron(asked.cron, asked.timezone, last)
        assert asked.period_s is not None
        return schedule.next_period(asked.period_s, since, last)

    async def watch_schedules(self) -> None:
        """Run what is due, for ever."""
        while True:
            self._moved.clear()
            upcoming = [time.time() + 60.0]
            for record in self._store.apps():
                for name, id_ in record.functions.items():
                    if (due := self._due(record, id_)) is None:
                        continue
                    if due <= time.time():
                        await self._run(record, name, id_, due)
                        due = self._due(record, id_) or due + 60.0
                    upcoming.append(due)
            try:
                async with asyncio.timeout(max(0.01, min(upcoming) - time.time())):
                    await self._moved.wait()
            except TimeoutError:
                continue

    async def _run(self, record: AppRecord, name: str, id_: str, due: float) -> None:
        """Once, however often it was missed: the next is counted from now. Written down before it is done."""
        record.runs.setdefault(id_, {"since": due})["last_at"] = max(due, time.time())
        self._store.save_app(record)
        try:
            call = await self._functions.call(record.tenant, id_, CreateCall(inputs=[Argument(data=_NOTHING)]))
        except IsoboxError as error:
            _log.error("a scheduled function was not called", app=record.name, function=name, error=error.detail)
            return
        current = self._get(record.tenant, record.name)  # another version may be in force by now
        current.runs.setdefault(id_, {})["last_call"] = call.id
        self._store.save_app(current)
