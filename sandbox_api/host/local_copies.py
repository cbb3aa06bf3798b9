"""Copies of this machine's sandboxes: taken, kept, restored, paused, and had ready in the pool."""

import asyncio
from pathlib import Path

import structlog

from common.ids import new_id
from common.tasks import TaskOwner
from fs.images import ImageStore
from isolation.errors import DiskFull, SandboxGone, SnapshotUnusable
from isolation.foreground import Foreground
from isolation.pool import Pool, Shape
from isolation.sandbox import Machine, Sandbox
from isolation.snapshots import LAYER, Copy, Maker, SnapshotFolder
from isolation.spec import Resources
from sandbox_api.host.fleet import Fleet
from sandbox_api.host.interface import CopyFacts, Egress, KnownExec, Template
from sandbox_api.host.local_execs import LocalExecs
from sandbox_api.host.local_network import LocalNetworks
from sandbox_api.host.local_templates import Templates

_log = structlog.get_logger(__name__)
_QUIET_TIMEOUT_S = 10.0
_LAYER_SLACK = 1.25
"""A layer may be so many times the disk that its sandbox has: headers, and holes that are written out."""


class LocalCopies:
    """See `sandbox_api.host.interface.Copies`."""

    def __init__(
        self,
        machine: Machine,
        fleet: Fleet,
        execs: LocalExecs,
        snapshots: SnapshotFolder,
        maker: Maker,
        templates: Templates,
        pool: Pool,
        foreground: Foreground,
        tasks: TaskOwner,
        images: ImageStore,
        networks: LocalNetworks,
    ) -> None:
        self._machine = machine
        self._fleet = fleet
        self._execs = execs
        self._snapshots = snapshots
        self._maker = maker
        self._templates = templates
        self._pool = pool
        self._foreground = foreground
        self._tasks = tasks
        self._images = images
        self._networks = networks
        self._unnamed: dict[str, Copy] = {}

    def close(self) -> None:
        """Let go of the copies that are not kept."""
        for copy in self._unnamed.values():
            copy.close()

    # ---- taking

    async def take(self, id_: str, name: str, *, keep: bool) -> CopyFacts:
        sandbox, copy = self._fleet.get(id_), self._snapshots.blank()
        try:
            with sandbox.in_use(), self._foreground.working():
                async with sandbox.link.quiet(timeout=_QUIET_TIMEOUT_S):
                    offsets = self._execs.offsets(id_)
                    await sandbox.checkpoint(copy.emptied)
            if keep:
                return await self._kept(name, copy, offsets)
        except BaseException:
            copy.close()
            raise
        self._unnamed[name] = copy
        return CopyFacts(name, "", copy.size, offsets)

    async def take_files(self, id_: str, name: str, image_digest: str) -> CopyFacts:
        sandbox, copy = self._fleet.get(id_), self._snapshots.blank(LAYER)
        most = int(sandbox.resources.disk_mb * _LAYER_SLACK) << 20
        try:
            listing, made = await asyncio.to_thread(self._images.names, image_digest)
            with sandbox.in_use():
                await sandbox.save_layer(listing, made, copy.fds[0], most=most)
            return await self._kept(name, copy, {})
        except BaseException:
            copy.close()
            raise

    async def lay_out(self, copy: CopyFacts, image_digest: str, resources: Resources, egress: Egress) -> str:
        path = self._image_file(image_digest)
        opened = await asyncio.to_thread(self._snapshots.open, copy.name, copy.digest, self._maker)
        try:
            with self._foreground.working():
                shape = Shape(path, resources.memory_mb, resources.disk_mb, namespaces=resources.namespaces)
                ready = self._pool.claim(shape)
                sandbox = (
                    ready.sandbox
                    if ready is not None
                    else await Sandbox.create(self._machine, new_id("sbx"), image=path, resources=resources)
                )
                async with sandbox.undone_on_failure():
                    await self._networks.apply(sandbox.id, egress)
                    sandbox.claim(resources)
                    with sandbox.in_use():
                        await sandbox.apply_layer(opened.fds[0])
        finally:
            opened.close()
        self._fleet.adopt(sandbox)
        return sandbox.id

    async def _kept(self, name: str, copy: Copy, offsets: dict[str, tuple[int, int]]) -> CopyFacts:
        try:
            sealed = await asyncio.to_thread(self._snapshots.seal, name, copy, self._maker)
        except OSError as error:
            raise DiskFull(
                f"the copy cannot be kept: {error.strerror}", hint="see the state directory's disk"
            ) from error
        copy.close()
        return CopyFacts(name, sealed.digest, sealed.size, offsets)

    async def drop(self, name: str) -> None:
        if self._templates.forget(name):
            self._pool.forget(name)
        if (copy := self._unnamed.pop(name, None)) is not None:
            # To free its pages takes a while (0.2 ms a MiB), and nobody need wait for that.
            self._tasks.spawn(asyncio.to_thread(copy.close), name=f"close {name}")
        else:
            await asyncio.to_thread(self._snapshots.remove, name)

    async def reclaim(self, keep: set[str]) -> None:
        if gone := await asyncio.to_thread(self._snapshots.reclaim, keep):
            _log.info("copies that nobody knows deleted", names=gone)

    # ---- going on from one

    async def prepare(self, image_digest: str, resources: Resources) -> str:
        sandbox = await self._prepare(None, image_digest, resources)
        self._fleet.prepared[sandbox.id] = sandbox
        return sandbox.id

    def _image_file(self, digest: str) -> Path:
        if not self._images.has_file(digest):
            raise SnapshotUnusable("the image that it was made with is gone", hint="make another one")
        return self._images.file(digest)

    def _created(self, image_digest: str, resources: Resources) -> Shape:
        return Shape(
            self._image_file(image_digest),
            resources.memory_mb,
            resources.disk_mb,
            started=False,
            namespaces=resources.namespaces,
        )

    async def _prepare(self, id_: str | None, image_digest: str, resources: Resources) -> Sandbox:
        """One that has not started, of this id or of any."""
        shape = self._created(image_digest, resources)
        if (ready := self._pool.claim(shape)) is None:
            return await Sandbox.prepare(self._machine, id_ or new_id("sbx"), image=shape.image, resources=resources)
        if id_ is not None:
            async with ready.sandbox.undone_on_failure():
                ready.sandbox.take_the_place(id_)
        return ready.sandbox

    async def restore(
        self,
        id_: str,
        copy: CopyFacts,
        image_digest: str,
        resources: Resources,
        execs: list[KnownExec],
        egress: Egress,
    ) -> set[str]:
        with self._foreground.working():
            opened = self._unnamed.get(copy.name)
            if stored := opened is None:
                opened = await asyncio.to_thread(self._snapshots.open, copy.name, copy.digest, self._maker)
            try:
                sandbox = self._fleet.prepared.pop(id_, None) or await self._prepare(id_, image_digest, resources)
                async with sandbox.undone_on_failure():
                    await self._networks.apply(id_, egress)  # before its first packet
                    sandbox.claim(resources)
                    guests = [self._execs.known(id_, each) for each in execs]
                    with opened.reading() as fds:
                        missing = await sandbox.restore(fds, guests, rename=copy.name != id_)
            finally:
                if stored:
                    opened.close()
            self._fleet.adopt(sandbox)
            return self._execs.go_on(sandbox, execs, missing)

    # ---- had ready

    def _shape(self, template: Template, resources: Resources) -> Shape:
        path = self._images.file(template.image_digest)
        return Shape(
            path,
            resources.memory_mb,
            resources.disk_mb,
            started=False,
            namespaces=resources.namespaces,
            copy=template.copy.name,
        )

    def keep_template(self, template: Template) -> None:
        self._templates.add(template)
        self._pool.keep_warm(self._shape(template, template.resources))

    async def claim_template(
        self, template: Template, resources: Resources, egress: Egress
    ) -> tuple[str, dict[str, str]] | None:
        self._templates.add(template)
        ready = self._pool.claim(self._shape(template, resources))
        if ready is None:
            return None
        sandbox = ready.sandbox
        if ready.execs:
            (sandbox.folder / "logs").rename(self._execs.folder(sandbox.id))
        try:
            await self._networks.apply(sandbox.id, egress)
            sandbox.claim(resources)
        except BaseException as error:
            await self._templates.discard(sandbox)
            if isinstance(error, SandboxGone):
                return None  # as if there had been none
            raise
        self._fleet.adopt(sandbox)
        for id_ in ready.execs.values():
            exec_ = self._execs.get(sandbox.id, id_)
            if exec_.spec.keeps_awake:
                exec_.holds_sandbox.enter_context(sandbox.in_use())
        return sandbox.id, dict(ready.execs)

    # ---- pauses

    async def pause(self, id_: str) -> CopyFacts:
        sandbox, copy = self._fleet.get(id_), self._snapshots.blank()
        sandbox.begin_use()
        try:
            async with sandbox.link.quiet(timeout=_QUIET_TIMEOUT_S):
                await sandbox.pause()
                try:
                    await sandbox.checkpoint(copy.emptied)
                    return await self._kept(id_, copy, self._execs.offsets(id_))
                except BaseException:
                    await sandbox.unpause()
                    raise
        except BaseException:
            copy.close()
            sandbox.end_use()
            raise

    async def park(self, id_: str, image_digest: str) -> None:
        sandbox = self._fleet.get(id_)
        if self._images.has_file(image_digest):
            self._pool.expect(self._created(image_digest, sandbox.resources))
        mine = self._execs.of(id_)
        for each in mine:
            each.suspend()
        sandbox.link.detach({each.guest for each in mine if each.guest is not None})
        del self._fleet.running[id_]
        await sandbox.destroy()
