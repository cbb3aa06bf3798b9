"""The machine this process runs on. The only package that joins isolation and fs."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import structlog

from common import owners
from common.errors import IsoboxError
from common.ids import new_id
from common.tasks import TaskOwner
from fs.image import Image
from fs.images import ImageStore
from fs.lazy.mount import LazyMount, LazySettings
from fs.tree import Limits
from isolation import cgroups, digests, runsc
from isolation.errors import ChannelLost, SandboxGone
from isolation.foreground import Foreground
from isolation.freezer import Freezer
from isolation.guest import build
from isolation.keeper import Keeper
from isolation.pidfd import ancestors
from isolation.platforms import choose_platform
from isolation.pool import Pool, Shape, ShelfFacts
from isolation.sandbox import End, Machine, Sandbox, made_under, post_mortem
from isolation.snapshots import Maker, SnapshotFolder, cpu_features
from isolation.spec import BARE, DEFAULT, Equipment, Resources
from sandbox_api.host import sweeping
from sandbox_api.host.fleet import Fleet
from sandbox_api.host.interface import Egress, KnownExec, Usage
from sandbox_api.host.local_buckets import LocalBuckets
from sandbox_api.host.local_copies import LocalCopies
from sandbox_api.host.local_execs import LocalExecs
from sandbox_api.host.local_files import LocalFiles
from sandbox_api.host.local_gpus import LocalGpus, furnish
from sandbox_api.host.local_images import LocalImages
from sandbox_api.host.local_network import LocalNetworks, local_networks
from sandbox_api.host.local_ports import LocalPorts
from sandbox_api.host.local_templates import Templates
from sandbox_api.host.local_volumes import LocalVolumes
from sandbox_api.host.readiness import Readiness
from sandbox_api.settings import Settings

_log = structlog.get_logger(__name__)

_LAZY = "lazy"
"""What the keeper knows the lazy images' descriptor by."""


@asynccontextmanager
async def local_host(settings: Settings) -> AsyncIterator["LocalHost"]:
    """This machine, ready; at the end everything is let go of, and what runs goes on."""
    found = await runsc.find(settings.runsc, settings.cache)
    if (change := await asyncio.to_thread(digests.change, found.path, settings.cache)) is not None:
        _log.error("runsc was changed", detail=change, hint=digests.HINT)
    chosen = await choose_platform(found, settings.platform, memory=settings.cache / "platform.json")
    run = settings.state / "run"
    for folder in (run, settings.state / "logs"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        layout = cgroups.detect()
        claim = await asyncio.to_thread(owners.claim, settings.state)
        parent = f"{cgroups.ROOT}/{claim.owner.id}"
        stack.callback(lambda: claim.release(nothing_left=cgroups.remove_parent(layout, parent)))
        try:
            cgroups.prepare_root(layout)
        except OSError as error:
            _log.warning("guests cannot be given less of the processor", error=str(error), hint="run `isobox doctor`")
        left = await _take_back(settings.state)
        keeper = Keeper(settings.state / "keeper.sock", claim.owner.id)
        keeper.connect()
        stack.callback(keeper.close)
        tasks = await stack.enter_async_context(TaskOwner())
        tasks.spawn(keeper.watch(), name="keeper")
        networks = await stack.enter_async_context(local_networks(settings, run, claim))
        links = networks if settings.network else None
        machine = Machine(chosen, layout, keeper, run, build.brought(settings.cache), links, parent)
        host = LocalHost(settings, machine, networks, tasks, owner=claim.owner.id, leftovers=left)
        stack.push_async_callback(host.stop)
        yield host


async def _take_back(state: Path) -> list[str]:
    """Remove what dead servers left that had another directory at this path; tell of what others left."""
    try:
        _, others = await sweeping.sweep(only=state)
    except (IsoboxError, OSError, TimeoutError) as error:
        _log.warning("cannot look for what dead servers left", error=str(error), hint="run `isobox doctor`")
        return []
    left = [each.words() for each in others]
    for words in left:
        _log.warning("a dead server left things on this machine", left=words, hint="run `isobox doctor --sweep`")
    return left


class LocalHost:
    """See `sandbox_api.host.interface.Host`; made by `local_host`."""

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        networks: LocalNetworks,
        tasks: TaskOwner,
        *,
        owner: str,
        leftovers: list[str],
    ) -> None:
        """owner: the id of the state directory; leftovers: what dead servers left on the machine, in words."""
        self._settings = settings
        self._machine = machine
        self.leftovers = leftovers
        self._readiness = Readiness(machine, settings.state, owner, lambda: networks.problem, self._probe)
        self._tasks = tasks
        self._held = machine.keeper.take_all()
        self._fleet = Fleet(self._tasks, silence_s=settings.guest_silence_s)
        self._foreground = Foreground()
        kept, loop = self._held.pop(_LAZY, None), asyncio.get_running_loop()
        self._lazy = LazyMount(
            LazySettings(
                folder=settings.state / "lazy",
                store=settings.cache / "images" / "store",
                cache=settings.cache / "lazy",
                profiles=settings.cache / "profiles",
                limit_bytes=settings.lazy_cache_mb << 20,
                owner=owner,
            ),
            None if kept is None else kept[0],
            # The keeper is spoken to by the loop's thread alone.
            keep=lambda fd: loop.call_soon_threadsafe(machine.keeper.put, _LAZY, (fd, fd)),
            drop=lambda: loop.call_soon_threadsafe(machine.keeper.drop, _LAZY),
            on_lost=self._image_lost,
        )
        if kept is not None:
            os.close(kept[1])
            self._lazy.start()  # what runs from it waits for that
        # The sources of PID 1 do not change while we run.
        self._images = ImageStore(
            settings.cache / "images",
            guest=cache(lambda: build.guest(settings.cache)),
            limit_bytes=settings.store_quota_mb << 20,
            limits=Limits(total_bytes=settings.image_limit_mb << 20),
            owner=settings.state,
            lazy=self._lazy,
            stores=settings.stores,
            authorities=settings.ca_bundle,
        )
        patience_s = settings.guest_silence_s
        self.files = LocalFiles(self._fleet.get, allow_root=settings.allow_root, patience_s=patience_s)
        self.system_files = LocalFiles(self._fleet.get, allow_root=True, patience_s=patience_s, no_links=True)
        self.ports = LocalPorts(self._fleet.get, self.files)
        self.networks = networks
        self.volumes = LocalVolumes(self._images)
        self.buckets = LocalBuckets(
            self._fleet.get,
            settings.state / "buckets",
            settings.buckets,
            spool_bytes=settings.bucket_spool_mb << 20,
        )
        self.gpus = LocalGpus(
            machine.runsc,
            settings.state / "gpu",
            enabled=settings.gpus,
            abi=settings.gpu_driver_abi,
            library_folder=settings.gpu_libraries,
            scrub=settings.gpu_scrub,
        )
        self.execs = LocalExecs(self._fleet, settings.state / "logs", working=self._foreground.note)
        snapshots = SnapshotFolder(settings.state / "snapshots")
        maker = Maker(machine.runsc.release, machine.runsc.platform, cpu_features(Path("/proc/cpuinfo").read_text()))
        templates = Templates(snapshots, maker, self.execs)
        self._pool = Pool(
            machine,
            self._foreground,
            floor=settings.pool_floor,
            ceiling=settings.pool_ceiling,
            furnish=templates.furnish,
            discard=templates.discard,
        )
        self.copies = LocalCopies(
            machine,
            self._fleet,
            self.execs,
            snapshots,
            maker,
            templates,
            self._pool,
            self._foreground,
            self._tasks,
            self._images,
            networks,
        )
        self.images = LocalImages(self._images, snapshots, maker, settings.registries)
        self._freezer = Freezer(
            settings.freeze_after_s, lambda: list(self._fleet.running.values()), connections=networks.connections
        )

    # ---- beginning and end

    async def begin(self) -> None:
        if (image := self._images.ready(self._settings.pool_image)) is not None:
            self._pool.keep_warm(self._shape(image, DEFAULT))
        self._tasks.spawn(self._pool.run(), name="pool")
        if self._settings.stores:
            await asyncio.to_thread(self._lazy.start)  # now, not when the first image waits for it
        self._tasks.spawn(self._lazy.run(), name="lazy images")
        self._tasks.spawn(self._freezer.run(), name="freezer")
        self._tasks.spawn(self._readiness.run(), name="readiness")

    def problems(self) -> list[str]:
        return self._readiness.problems()

    async def _probe(self) -> None:
        """Create a sandbox and end it; where there is no image to create it of there is nothing to find out."""
        if (image := self._images.ready(self._settings.pool_image)) is None:
            return
        path = self._images.path(image)
        sandbox = await Sandbox.create(self._machine, new_id("sbx"), image=path, resources=DEFAULT)
        await sandbox.destroy()

    async def stop(self) -> None:
        """Let go of everything; what runs goes on."""
        self._images.stop()  # threads that read or write contents end meanwhile
        await self._tasks.cancel()  # before what the tasks use is gone
        await self._pool.drain()
        await self.buckets.close()
        await asyncio.to_thread(self.gpus.close)
        self.execs.close_logs()
        self.copies.close()
        await self._fleet.leave()
        await asyncio.to_thread(self._lazy.leave)

    def _image_lost(self, thread: int, error: str) -> None:
        """A thread of some sandbox waits for a part of its image that no store gives."""
        family = ancestors(thread)
        for sandbox in list(self._fleet.running.values()):
            if sandbox.pid in family:
                sandbox.give_up(f"a part of its image cannot be had: {error}")

    def _shape(self, image: Image, resources: Resources) -> Shape:
        path = self._images.path(image)
        return Shape(path, resources.memory_mb, resources.disk_mb, namespaces=resources.namespaces)

    # ---- sandboxes

    async def claim_sandbox(
        self, image: str, resources: Resources, egress: Egress, equipment: Equipment = BARE
    ) -> str | None:
        found = self._images.ready(image)
        if found is None:
            return None
        shape = replace(self._shape(found, resources), equipment=equipment)
        if image == self._settings.pool_image and shape == self._shape(found, DEFAULT):
            self._pool.keep_warm(shape)
        if (ready := self._pool.claim(shape)) is None:
            return None
        try:
            async with ready.sandbox.undone_on_failure():
                await self.networks.apply(ready.sandbox.id, egress)
                ready.sandbox.claim(resources)
        except SandboxGone:
            self.execs.remove_logs(ready.sandbox.id)
            return None  # as if there had been none
        self._fleet.adopt(ready.sandbox)
        return ready.sandbox.id

    async def create_sandbox(
        self, id_: str, image: str, resources: Resources, egress: Egress, equipment: Equipment = BARE
    ) -> None:
        path = self._images.path(await self.images.ready(image))
        try:
            with self._foreground.working():
                sandbox = await Sandbox.create(self._machine, id_, image=path, resources=resources, equipment=equipment)
        except Exception:
            self._machine.attempts.doubted.set()
            raise
        async with sandbox.undone_on_failure():
            if equipment != BARE:
                await furnish(sandbox)
            await self.networks.apply(id_, egress)
            sandbox.claim(resources)
        self._fleet.adopt(sandbox)

    def shelves(self) -> list[ShelfFacts]:
        return self._pool.facts()

    async def recover_sandbox(self, id_: str, resources: Resources, execs: list[KnownExec]) -> set[str]:
        if (fds := self._held.pop(id_, None)) is None:
            raise ChannelLost("the keeper was lost, and the way into the sandbox with it")
        guests = [self.execs.known(id_, each) for each in execs]
        try:
            sandbox, missing = await Sandbox.attach(self._machine, id_, resources=resources, fds=fds, execs=guests)
        except BaseException:
            for each in execs:
                self.execs.drop(id_, each.id)
            raise
        self._fleet.adopt(sandbox)
        return self.execs.go_on(sandbox, execs, missing)

    def post_mortem(self, id_: str, resources: Resources) -> End:
        return post_mortem(self._machine, id_, resources)

    async def destroy_sandbox(self, id_: str) -> Usage:
        sandbox = self._fleet.running.pop(id_, None) or self._fleet.prepared.pop(id_, None)
        if sandbox is None:
            for each in self.execs.of(id_):  # it was parked
                each.fail(SandboxGone("the sandbox has ended"))
            await Sandbox.clean_up(self._machine, id_)
            return Usage(0.0, 0, 0, 0, 0)
        return await sandbox.destroy()

    async def reclaim(self, keep: set[str]) -> None:
        machine = self._machine
        left = {path.name for path in machine.folder.iterdir()} | set(self._held)
        claimed = {made_under(machine.folder / name) for name in left}
        # What has lost its folder has its group still.
        left |= cgroups.groups_below(machine.cgroups, machine.parent) - claimed
        for id_ in left - keep:
            _log.info("reclaiming what a crash left", sandbox=id_)
            for fd in self._held.pop(id_, ()):
                with contextlib.suppress(OSError):
                    os.close(fd)
            await Sandbox.clean_up(machine, id_)

    async def next_end(self) -> tuple[str, End]:
        return await self._fleet.ends.get()

    def recover_parked(self, id_: str, execs: list[KnownExec]) -> bool:
        if id_ in self._held:
            return True
        for each in execs:
            self.execs.known(id_, each)
        return False

    def hold(self, id_: str) -> None:
        self._foreground.note()
        self._fleet.hold(id_)

    def let_go(self, id_: str) -> None:
        self._fleet.let_go(id_)

    def is_idle(self, id_: str) -> bool:
        sandbox = self._fleet.running.get(id_)
        return sandbox is not None and (sandbox.frozen or not (sandbox.used or sandbox.cgroup.can_freeze))

    def usage(self, id_: str) -> Usage:
        return self._fleet.get(id_).usage()

    async def processes(self, id_: str) -> int:
        sandbox = self._fleet.get(id_)
        with sandbox.in_use():
            return len(await sandbox.control.processes())
