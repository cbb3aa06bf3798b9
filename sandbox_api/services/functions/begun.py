"""Interpreters that have begun: copies of a sandbox in which Python has started, and waits to be told which function.

Under gVisor a start of Python is most of a container's start. For each image, user and tenant one copy is kept, made in
the background when a container of it has been started the long way; what needs more than that (volumes, buckets, GPUs,
injected credentials, variables that Python reads when it starts) is started the long way always.
"""

import asyncio
import time
from typing import Final

import structlog

from common.errors import IsoboxError
from common.tasks import TaskOwner
from isolation.execlog import Event, EventType
from sandbox_api.models.execs import ExecRequest
from sandbox_api.models.functions import CreateFunction
from sandbox_api.models.sandboxes import CreateSandbox
from sandbox_api.models.snapshots import CreateSnapshot
from sandbox_api.problems import Problem
from sandbox_api.services.catalog import Catalog
from sandbox_api.services.copies import CopyService
from sandbox_api.services.execs import ExecService
from sandbox_api.services.functions.code import BOOT, FOLDER
from sandbox_api.services.registry import Registry
from sandbox_api.services.sandboxes import SandboxService
from sandbox_api.settings import Settings
from sandbox_api.store.functions import BegunRecord
from sandbox_api.store.records import ExecRecord

_log = structlog.get_logger(__name__)
_KEPT_S: Final = 7 * 86400.0
_MAKING_S: Final = 60.0
_REST_S: Final = 1.0
_AGAIN_S: Final = 600.0
_EACH_MAX: Final = 8
_READ_AT_START: Final = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "MALLOC_", "GLIBC_")

Key = tuple[str, str, str]
"""Tenant, digest of the image, user."""


def fits(asked: CreateFunction) -> bool:
    """Whether a function can begin in a copy at all."""
    injects = isinstance(asked.asked_network, dict) and asked.asked_network.get("inject")
    special = asked.volumes or asked.buckets or asked.resources.gpu or injects
    return not special and not any(name.startswith(_READ_AT_START) for name in asked.env)


class Begun:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        catalog: Catalog,
        sandboxes: SandboxService,
        execs: ExecService,
        copies: CopyService,
        tasks: TaskOwner,
    ) -> None:
        self._settings = settings
        self._store = registry.store.functions
        self._registry = registry
        self._catalog = catalog
        self._sandboxes = sandboxes
        self._execs = execs
        self._copies = copies
        self._tasks = tasks
        self._kept = {(each.tenant, each.digest, each.user): each for each in self._store.begun()}
        self._making: set[Key] = set()
        self._not_before: dict[Key, float] = {}

    async def find(self, tenant: str, asked: CreateFunction) -> BegunRecord | None:
        """A copy that a container of this function can begin from."""
        if not fits(asked):
            return None
        image = await self._catalog.find(tenant, asked.image)
        kept = self._kept.get((tenant, image.digest, asked.user))
        if kept is None:
            return None
        if kept.expires_at < time.time():  # its snapshot goes by itself
            self.forget(kept)
            return None
        wanted = asked.resources
        large = wanted.memory_mb >= kept.memory_mb and wanted.disk_mb >= kept.disk_mb and wanted.pids == kept.pids
        return kept if large else None

    def forget(self, kept: BegunRecord) -> None:
        """It cannot be used any more."""
        self._kept.pop((kept.tenant, kept.digest, kept.user), None)
        self._store.forget_begun(kept)

    def want(self, tenant: str, asked: CreateFunction, digest: str) -> None:
        """A container was started the long way: see that the next one need not be."""
        key = (tenant, digest, asked.user)
        crowded = len(self._registry.live) > self._settings.max_sandboxes // 2
        if not fits(asked) or crowded or key in self._kept or key in self._making:
            return
        if self._not_before.get(key, 0.0) > time.time():
            return
        self._making.add(key)
        self._tasks.spawn(self._make(key, asked), name=f"interpreter of {asked.image}")

    async def _make(self, key: Key, asked: CreateFunction) -> None:
        try:
            await asyncio.sleep(_REST_S)  # whoever waits for the container comes first
            async with asyncio.timeout(_MAKING_S):
                kept = await self._made(key, asked)
            self._kept[key] = kept
            self._store.save_begun(kept)
            await self._trim(key[0])
        except (IsoboxError, OSError, TimeoutError) as error:
            self._not_before[key] = time.time() + _AGAIN_S
            _log.info("no copy of an interpreter", image=asked.image, error=str(error) or type(error).__name__)
        finally:
            self._making.discard(key)

    async def _made(self, key: Key, asked: CreateFunction) -> BegunRecord:
        tenant, digest, user = key
        resources = asked.resources.model_dump()
        fields = {"image": asked.image, "user": user, "resources": resources, "timeout_s": _MAKING_S}
        sandbox = await self._sandboxes.create(tenant, CreateSandbox.model_validate(fields))
        try:
            if sandbox.image_digest != digest:
                raise Problem(409, "image_changed", "the image is another one by now")
            live = self._registry.live[sandbox.id]
            exec_ = await self._execs.start_in(live, boot(), role="context", title="a function to come")
            await self._waits(exec_)
            request = CreateSnapshot(name="python, for functions", ttl_s=_KEPT_S)
            taken = await self._copies.snapshot(tenant, sandbox.id, request)
        finally:
            await self._sandboxes.terminate(tenant, sandbox.id)
        had = asked.resources
        expires_at = time.time() + _KEPT_S - 60.0
        return BegunRecord(tenant, digest, user, taken.id, exec_.id, had.memory_mb, had.disk_mb, had.pids, expires_at)

    async def _waits(self, exec_: ExecRecord) -> None:
        """Until the interpreter waits for its line."""
        async for event in self._execs.follow(exec_, 0):
            if isinstance(event, Event) and event.type == EventType.STDOUT:
                return
            if isinstance(event, Event) and event.type == EventType.EXIT:
                break
        raise Problem(422, "language_unavailable", "python3 ended at once")

    async def _trim(self, tenant: str) -> None:
        """No more than some of each tenant: the oldest go."""
        mine = sorted((each for each in self._kept.values() if each.tenant == tenant), key=lambda each: each.expires_at)
        for each in mine[:-_EACH_MAX]:
            self.forget(each)
            await self._copies.delete(tenant, each.snapshot)


def boot() -> ExecRequest:
    """Start Python, up to the point where it waits for the line that has its environment."""
    return ExecRequest(argv=["python3", "-B", "-c", BOOT, FOLDER], stdin=True, overflow="block")
