"""Builds images by running steps inside a sandbox, one build a sandbox, and keeping what each step changed.

A step is known by the image below it, what was set for it and what it does: the same again is not run again.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from common.ids import new_id
from fs.image import STEP
from isolation.execlog import EventType, Gap
from sandbox_api.archives import unpacked
from sandbox_api.host.interface import Host, ImageFacts
from sandbox_api.models.execs import ExecRequest
from sandbox_api.models.images import BuildSource, Copy, Env, Run, Workdir
from sandbox_api.models.network import asked
from sandbox_api.models.sandboxes import CreateSandbox, Resources
from sandbox_api.problems import Problem
from sandbox_api.services.catalog import Catalog
from sandbox_api.services.execs import ExecService
from sandbox_api.services.registry import Registry
from sandbox_api.services.sandboxes import SandboxService
from sandbox_api.services.uploads import Uploads
from sandbox_api.settings import Settings
from sandbox_api.store.records import SandboxRecord
from sandbox_api.store.store import Store

NETWORK: Final = "packages"
"""What a build may reach unless it says something else: the package indexes."""

LABEL: Final = "isobox/build"
"""A label of the sandboxes that builds run in: the image's id."""

_TIMEOUT_S: Final = 3600.0
_RESOURCES: Final = Resources(cpu=2, memory_mb=4096, disk_mb=8192, pids=2048)

Tell = Callable[[EventType, bytes], object]
"""Takes an event for the build's log."""


class StepFailed(Problem):
    """A step's command failed; `failure` is what the image's record keeps of it."""

    def __init__(self, step: int, exit_code: int | None, error: dict[str, Any] | None, detail: str, hint: str) -> None:
        super().__init__(422, "step_failed", detail, hint=hint)
        self.failure = {"step": step, "exit_code": exit_code, "error": error}


@dataclass(slots=True)
class _State:
    """Where a build stands: the image so far, and what was set."""

    image: ImageFacts
    config: dict[str, Any] = field(default_factory=dict)
    sandbox: SandboxRecord | None = None
    below: ImageFacts | None = None
    """The image that the sandbox was made of: what changed in it is told against that one."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A step on its way: whose, for which image, the how-manieth."""

    tenant: str
    name: str
    source: BuildSource
    number: int
    tell: Tell


class Builder:
    """Runs the steps of builds."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        registry: Registry,
        catalog: Catalog,
        sandboxes: SandboxService,
        execs: ExecService,
        uploads: Uploads,
    ) -> None:
        self._uploads = uploads
        self._host = host
        self._registry = registry
        self._store: Store = registry.store
        self._catalog = catalog
        self._sandboxes = sandboxes
        self._execs = execs
        self._user = "root" if settings.allow_root else "user"

    async def end(self, tenant: str, name: str) -> None:
        """End the sandbox of a build that is over, if it is still there."""
        labels = {LABEL: name}
        found, _ = await self._sandboxes.search(tenant, state=None, labels=labels, cursor=None, limit=10)
        for each in found:
            await self._sandboxes.terminate(tenant, each.id)

    async def build(self, tenant: str, name: str, source: BuildSource, tell: Tell) -> ImageFacts:
        """Run what has to be run; the image as the machine knows it, under `name`."""
        found = await self._catalog.find(tenant, source.base)
        state = _State(found, json.loads(json.dumps(found.config)))
        try:
            for number, step in enumerate(source.steps, 1):
                _line(tell, f"step {number} of {len(source.steps)}: {_title(step)}")
                if isinstance(step, Env):
                    state.config["env"] = state.config.get("env", {}) | step.env
                elif isinstance(step, Workdir):
                    state.config["workdir"] = step.workdir
                    await self._step(_Running(tenant, name, source, number, tell), state, step)
                else:
                    await self._step(_Running(tenant, name, source, number, tell), state, step)
        finally:
            if state.sandbox is not None:
                await self._sandboxes.terminate(tenant, state.sandbox.id)
        return await _last(self._host.images.derive(name, state.image.digest, None, state.config), tell)

    async def _step(self, running: _Running, state: _State, step: Run | Workdir | Copy) -> None:
        """Do a step that changes files, or take what it came to before."""
        tenant, key = running.tenant, _key(running.tenant, state, step, running.source)
        if (known := await self._known(tenant, key)) is not None:
            _line(running.tell, "as before")
            if state.sandbox is not None:  # an earlier step ran here, and this one did once, elsewhere
                await self._sandboxes.terminate(tenant, state.sandbox.id)
                state.sandbox = None
            state.image = known
            return
        if state.sandbox is None:
            await self._begin(running, state)
        assert state.sandbox is not None
        assert state.below is not None
        if isinstance(step, Run):
            await self._run(running, state, ["/bin/sh", "-ec", step.run], state.config.get("workdir", "/"))
        elif isinstance(step, Workdir):
            await self._run(running, state, ["mkdir", "-p", "--", step.workdir], "/")
        elif isinstance(step, Copy):
            archive = unpacked(self._uploads.read(tenant, step.copy_.upload))
            await self._host.files.unpack(state.sandbox.id, step.copy_.to, False, archive, self._user)
        else:
            assert_never(step)
        copy = await self._host.copies.take_files(state.sandbox.id, layer := new_id("snp"), state.below.digest)
        try:
            made = self._host.images.derive(STEP + key, state.below.digest, copy, state.config)
            state.image = await _last(made, running.tell)
        finally:
            await self._host.copies.drop(layer)
        await self._store.keep_step(tenant, key, state.image.digest)

    async def _run(self, running: _Running, state: _State, argv: list[str], workdir: str) -> None:
        assert state.sandbox is not None
        live = await self._registry.usable(running.tenant, state.sandbox.id)
        request = ExecRequest(
            argv=argv,
            env={"HOME": "/root", **state.config.get("env", {})},
            workdir=workdir,
            user=self._user,
            timeout_s=_TIMEOUT_S,
            overflow="block",
        )
        record = await self._execs.start_in(live, request)
        async for event in self._execs.follow(record, 0):
            if not isinstance(event, Gap) and event.type in (EventType.STDOUT, EventType.STDERR, EventType.NETWORK):
                running.tell(EventType(event.type), event.payload)
        outcome, number = record.outcome or {}, running.number
        if outcome.get("exit_code") != 0:
            error = record.error or {}
            raise StepFailed(
                number,
                outcome.get("exit_code"),
                record.error,
                f"step {number} failed ({outcome.get('reason')}, exit code {outcome.get('exit_code')})"
                + (f": {error['name']}: {error['message']}"[:500] if error.get("name") else ""),
                str(
                    error.get("hint")
                    or "see the log of the build, by the image's id: GET /v1/images/ID/log, or `isobox image logs ID`"
                ),
            )

    async def _known(self, tenant: str, key: str) -> ImageFacts | None:
        digest = await self._store.step(tenant, key)
        found = self._host.images.named(STEP + key) if digest is not None else None
        return found if found is not None and found.digest == digest else None

    async def _begin(self, running: _Running, state: _State) -> None:
        source = running.source
        request = CreateSandbox(
            image=state.image.name,
            name="image build",
            labels={LABEL: running.name},
            timeout_s=_TIMEOUT_S * 2,
            user=self._user,
            resources=_RESOURCES,
            network=source.network if source.network is not None else NETWORK,
        )
        ready = await self._host.images.ensure(state.image.name)
        state.sandbox = await self._sandboxes.create_of(running.tenant, request, ready)
        state.below = ready


def _key(tenant: str, state: _State, step: Run | Workdir | Copy, source: BuildSource) -> str:
    """By which a step's result is found again. A tenant's own: the same step by another one is another result."""
    env, workdir = state.config.get("env", {}), state.config.get("workdir")
    said = [tenant, state.image.digest, env, workdir, step.model_dump(), asked(source.network)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:40]


def _title(step: Run | Env | Workdir | Copy) -> str:
    match step:
        case Run():
            first, _, more = step.run.strip().partition("\n")
            return f"run {first[:200]}{' …' if more else ''}"
        case Env():
            return f"env {' '.join(step.env)}"[:200]
        case Workdir():
            return f"workdir {step.workdir}"
        case Copy():
            return f"copy {step.copy_.upload[:19]} to {step.copy_.to}"


def _line(tell: Tell, line: str) -> None:
    tell(EventType.STDERR, f"{line}\n".encode())


async def _last(told: AsyncIterator[str | ImageFacts], tell: Tell) -> ImageFacts:
    """Pass the lines on; the image that comes at the end."""
    found: ImageFacts | None = None
    async for each in told:
        if isinstance(each, str):
            _line(tell, each)
        else:
            found = each
    assert found is not None
    return found
