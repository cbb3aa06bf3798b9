"""The machine this process runs on. The only module that joins isolation and fs."""

import asyncio
import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import structlog

from common.ids import new_id
from common.tasks import TaskOwner
from fs.images import Image, ImageStore
from isolation import cgroups, execlog, runsc
from isolation.channel.link import GuestExec
from isolation.errors import ChannelLost, DiskFull, SandboxGone, SnapshotUnusable
from isolation.execs import Exec, ExecEnd, ExecSpec
from isolation.files import operate
from isolation.freezer import Freezer
from isolation.guest import build
from isolation.keeper import Keeper
from isolation.platforms import choose_platform
from isolation.pool import Pool, Shape, ShelfFacts
from isolation.sandbox import End, Machine, Sandbox, post_mortem
from isolation.snapshots import Copy, Maker, SnapshotFolder, cpu_features
from isolation.spec import DEFAULT, Resources
from sandbox_api.host.interface import CopyFacts, EventType, ImageFacts, KnownExec, Template, TemplateExec, Usage
from sandbox_api.host.local_files import LocalFiles
from sandbox_api.host.local_ports import LocalPorts
from sandbox_api.settings import Settings

_log = structlog.get_logger(__name__)
_START_TIMEOUT_S = 10.0
_TOUCH_TIMEOUT_S = 10.0


class LocalHost:
    """See `sandbox_api.host.interface.Host`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # The sources of PID 1 do not change while we run.
        self._images = ImageStore(settings.cache / "images", init=cache(lambda: build.binary(settings.cache)))
        self._keeper = Keeper(settings.state / "keeper.sock")
        self._logs = settings.state / "logs"
        self._machine: Machine | None = None
        self._pool: Pool | None = None
        self._snapshots = SnapshotFolder(settings.state / "snapshots")
        self._copies: dict[str, Copy] = {}
        self._prepared: dict[str, Sandbox] = {}
        self._templates: dict[str, Template] = {}
        self._holds: Counter[str] = Counter()
        self.files = LocalFiles(self._sandbox, allow_root=settings.allow_root)
        self.ports = LocalPorts(self._sandbox, self.files)
        self._cpu = cpu_features(Path("/proc/cpuinfo").read_text())
        self._freezer = Freezer(settings.freeze_after_s, lambda: list(self._sandboxes.values()))
        self._tasks = TaskOwner()
        self._sandboxes: dict[str, Sandbox] = {}
        self._execs: dict[tuple[str, str], Exec] = {}
        self._ends: asyncio.Queue[tuple[str, End]] = asyncio.Queue()
        self._held: dict[str, tuple[int, int]] = {}
        self._building = asyncio.Lock()

    # ---- beginning and end

    async def start(self) -> None:
        found = await runsc.find(self._settings.runsc, self._settings.cache)
        chosen = await choose_platform(found, self._settings.platform)
        run = self._settings.state / "run"
        for folder in (run, self._logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        layout = cgroups.detect()
        self._keeper.connect()
        self._tasks.spawn(self._keeper.watch(), name="keeper")
        self._held = self._keeper.take_all()
        self._machine = Machine(chosen, layout, self._keeper, run, build.binary(self._settings.cache))
        self._pool = Pool(
            self._machine,
            floor=self._settings.pool_floor,
            ceiling=self._settings.pool_ceiling,
            furnish=self._furnish,
            discard=self._discard,
        )

    async def begin(self) -> None:
        if (image := self._images.ready(self._settings.pool_image)) is not None:
            self._warm_pool.keep_warm(self._shape(image, DEFAULT))
        self._tasks.spawn(self._warm_pool.run(), name="pool")
        self._tasks.spawn(self._freezer.run(), name="freezer")

    async def stop(self) -> None:
        await self._tasks.cancel()
        if self._pool is not None:
            await self._pool.drain()
        for each in self._execs.values():
            each.log.close()
        for copy in self._copies.values():
            copy.close()
        for sandbox in self._prepared.values():
            await sandbox.destroy()
        for sandbox in self._sandboxes.values():
            sandbox.release()
        self._keeper.close()

    @property
    def _here(self) -> Machine:
        if self._machine is None:
            raise RuntimeError("the host was not started")
        return self._machine

    @property
    def _warm_pool(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("the host was not started")
        return self._pool

    def _shape(self, image: Image, resources: Resources) -> Shape:
        return Shape(self._images.path(image), resources.memory_mb, resources.disk_mb)

    # ---- images

    def images(self) -> list[ImageFacts]:
        return [_facts(image) for image in self._images.all()]

    async def image(self, name: str) -> ImageFacts:
        return _facts(await self._image(name))

    async def _image(self, name: str) -> Image:
        if (image := self._images.ready(name)) is not None:
            return image
        async with self._building:
            return await asyncio.to_thread(self._images.ensure, name)

    # ---- sandboxes

    def claim_sandbox(self, image: str, resources: Resources) -> str | None:
        found = self._images.ready(image)
        if found is None:
            return None
        shape = self._shape(found, resources)
        if image == self._settings.pool_image and shape == self._shape(found, DEFAULT):
            self._warm_pool.keep_warm(shape)
        if (ready := self._warm_pool.claim(shape)) is None:
            return None
        self._adopt(ready.sandbox)
        ready.sandbox.claim(resources)
        return ready.sandbox.id

    async def create_sandbox(self, id_: str, image: str, resources: Resources) -> None:
        path = self._images.path(await self._image(image))
        with self._warm_pool.standing_back():
            sandbox = await Sandbox.create(self._here, id_, image=path, resources=resources)
        async with sandbox.undone_on_failure():
            sandbox.claim(resources)
        self._adopt(sandbox)

    def shelves(self) -> list[ShelfFacts]:
        return self._warm_pool.facts()

    def _adopt(self, sandbox: Sandbox) -> None:
        self._sandboxes[sandbox.id] = sandbox
        for _ in range(self._holds[sandbox.id]):
            sandbox.begin_use()
        self._tasks.spawn(self._watch(sandbox), name=f"watch {sandbox.id}")

    async def _watch(self, sandbox: Sandbox) -> None:
        await sandbox.watch()
        if sandbox.ended.done():
            sandbox.link.close()  # ends its execs
            self._ends.put_nowait((sandbox.id, sandbox.ended.result()))

    async def recover_sandbox(self, id_: str, resources: Resources, execs: list[KnownExec]) -> set[str]:
        if (fds := self._held.pop(id_, None)) is None:
            raise ChannelLost("the keeper was lost, and the way into the sandbox with it")
        known = {each.number: each.id for each in execs}
        guests = [self._known(id_, each) for each in execs]
        try:
            sandbox, missing = await Sandbox.attach(self._here, id_, resources=resources, fds=fds, execs=guests)
        except BaseException:
            for each in execs:
                self._execs.pop((id_, each.id)).log.close()
            raise
        self._adopt(sandbox)
        return self._go_on(sandbox, known, missing)

    def post_mortem(self, id_: str, resources: Resources) -> End:
        return post_mortem(self._here, id_, resources)

    async def destroy_sandbox(self, id_: str) -> Usage:
        sandbox = self._sandboxes.pop(id_, None) or self._prepared.pop(id_, None)
        if sandbox is None:
            for (of, _), each in self._execs.items():
                if of == id_:  # it was parked
                    each.fail(SandboxGone("the sandbox has ended"))
            await Sandbox.clean_up(self._here, id_)
            return Usage(0.0, 0, 0, 0, 0)
        return await sandbox.destroy()

    async def reclaim(self, keep: set[str]) -> None:
        machine = self._here
        left = {path.name for path in machine.folder.iterdir()} | set(self._held)
        for id_ in left - keep:
            _log.info("reclaiming what a crash left", sandbox=id_)
            for fd in self._held.pop(id_, ()):
                with contextlib.suppress(OSError):
                    os.close(fd)
            await Sandbox.clean_up(machine, id_)

    async def next_end(self) -> tuple[str, End]:
        return await self._ends.get()

    def _sandbox(self, id_: str) -> Sandbox:
        sandbox = self._sandboxes.get(id_)
        if sandbox is None:
            raise SandboxGone("the sandbox has ended")
        return sandbox

    # ---- copies

    async def copy_sandbox(self, id_: str, name: str, *, keep: bool) -> CopyFacts:
        sandbox, copy = self._sandbox(id_), self._snapshots.blank()
        try:
            with sandbox.in_use(), self._warm_pool.standing_back():
                async with sandbox.link.quiet(timeout=_START_TIMEOUT_S):
                    offsets = self._offsets(id_)
                    await sandbox.checkpoint(copy.emptied)
            return await self._kept(name, copy, offsets) if keep else self._unnamed(name, copy, offsets)
        except BaseException:
            copy.close()
            raise

    def _offsets(self, sandbox: str) -> dict[str, tuple[int, int]]:
        return {exec_: each.received for (of, exec_), each in self._execs.items() if of == sandbox and each.guest}

    def _unnamed(self, name: str, copy: Copy, offsets: dict[str, tuple[int, int]]) -> CopyFacts:
        self._copies[name] = copy
        return CopyFacts(name, "", copy.size, offsets)

    async def _kept(self, name: str, copy: Copy, offsets: dict[str, tuple[int, int]]) -> CopyFacts:
        try:
            sealed = await asyncio.to_thread(self._snapshots.seal, name, copy, self._maker)
        except OSError as error:
            raise DiskFull(
                f"the copy cannot be kept: {error.strerror}", hint="see the state directory's disk"
            ) from error
        copy.close()
        return CopyFacts(name, sealed.digest, sealed.size, offsets)

    @property
    def _maker(self) -> Maker:
        return Maker(self._here.runsc.release, self._here.runsc.platform, self._cpu)

    async def drop_copy(self, name: str) -> None:
        if self._templates.pop(name, None) is not None:
            self._warm_pool.forget(name)
        if (copy := self._copies.pop(name, None)) is not None:
            # To free its pages takes a while (0.2 ms a MiB), and nobody need wait for that.
            self._tasks.spawn(asyncio.to_thread(copy.close), name=f"close {name}")
        else:
            await asyncio.to_thread(self._snapshots.remove, name)

    async def reclaim_copies(self, keep: set[str]) -> None:
        if gone := await asyncio.to_thread(self._snapshots.reclaim, keep):
            _log.info("copies that nobody knows deleted", names=gone)

    async def prepare_sandbox(self, image_digest: str, resources: Resources) -> str:
        sandbox = await self._prepare(new_id("sbx"), image_digest, resources, pooled=True)
        self._prepared[sandbox.id] = sandbox
        return sandbox.id

    async def _prepare(self, id_: str, image_digest: str, resources: Resources, *, pooled: bool) -> Sandbox:
        path = self._images.file(image_digest)
        if not path.exists():
            raise SnapshotUnusable("the image that it was made with is gone", hint="make another one")
        shape = Shape(path, resources.memory_mb, resources.disk_mb, started=False)
        if pooled and (ready := self._warm_pool.claim(shape)) is not None:
            return ready.sandbox
        return await Sandbox.prepare(self._here, id_, image=path, resources=resources)

    async def restore_sandbox(
        self, id_: str, copy: CopyFacts, image_digest: str, resources: Resources, execs: list[KnownExec]
    ) -> set[str]:
        with self._warm_pool.standing_back():
            return await self._restore_sandbox(id_, copy, image_digest, resources, execs)

    async def _restore_sandbox(
        self, id_: str, copy: CopyFacts, image_digest: str, resources: Resources, execs: list[KnownExec]
    ) -> set[str]:
        opened = self._copies.get(copy.name)
        if stored := opened is None:
            opened = await asyncio.to_thread(self._snapshots.open, copy.name, copy.digest, self._maker)
        try:
            sandbox = self._prepared.pop(id_, None) or await self._prepare(id_, image_digest, resources, pooled=False)
            async with sandbox.undone_on_failure():
                sandbox.claim(resources)
                known = {each.number: each.id for each in execs}
                guests = [self._known(id_, each) for each in execs]
                with opened.reading() as fds:
                    missing = await sandbox.restore(fds, guests)
        finally:
            if stored:
                opened.close()
        self._adopt(sandbox)
        return self._go_on(sandbox, known, missing)

    # ---- what waits in the pool

    async def _furnish(self, shape: Shape, sandbox: Sandbox) -> dict[str, str]:
        if shape.copy:
            if (template := self._templates.get(shape.copy)) is None:
                raise SnapshotUnusable("the snapshot was deleted")
            return await self._restore_template(template, sandbox)
        if shape.started:
            await sandbox.start()
            async with operate(sandbox.link, "stat", "/", user="0", allow_root=True) as first:
                await first.result()  # the first process of a sandbox takes twice as long as others
        return {}

    async def _restore_template(self, template: Template, sandbox: Sandbox) -> dict[str, str]:
        own: dict[int, tuple[str, str]] = {}
        guests = []
        for each in template.execs:
            id_ = new_id("exe")
            exec_ = self._execs[sandbox.id, id_] = self._begun(sandbox, id_, each)
            own[each.number] = each.id, id_
            guests.append(exec_.prepare_resume(each.number))
        opened = await asyncio.to_thread(self._snapshots.open, template.copy.name, template.copy.digest, self._maker)
        try:
            with opened.reading() as fds:
                missing = await sandbox.restore(fds, guests)
        finally:
            opened.close()
        for number in missing:
            self._execs.pop((sandbox.id, own.pop(number)[1])).log.close()
        for _, id_ in own.values():
            self._execs[sandbox.id, id_].resumed(sandbox.link, nullcontext())
        for each in template.execs:
            if each.touch and each.number in own:
                await _touch(self._execs[sandbox.id, own[each.number][1]], each.touch)
        return dict(own.values())

    def _begun(self, sandbox: Sandbox, id_: str, template: TemplateExec) -> Exec:
        """An exec of a copy, its log in the sandbox's own folder until somebody claims it."""
        folder = sandbox.folder / "logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        exec_ = Exec(template.spec, folder / id_)
        said = {"exec_id": id_, "argv": template.argv, "forked_from": template.id}
        exec_.log.append(EventType.STARTED, json.dumps(said).encode())
        for type_, data in zip((EventType.STDOUT, EventType.STDERR), template.rest, strict=True):
            if data:
                exec_.log.append(type_, data)
        return exec_

    async def _discard(self, sandbox: Sandbox) -> None:
        for key in [key for key in self._execs if key[0] == sandbox.id]:
            self._execs.pop(key).log.close()
        await sandbox.destroy()

    def _template_shape(self, template: Template, resources: Resources) -> Shape:
        self._templates[template.copy.name] = template
        path = self._images.file(template.image_digest)
        return Shape(path, resources.memory_mb, resources.disk_mb, started=False, copy=template.copy.name)

    def keep_template(self, template: Template) -> None:
        self._warm_pool.keep_warm(self._template_shape(template, template.resources))

    def claim_template(self, template: Template, resources: Resources) -> tuple[str, dict[str, str]] | None:
        ready = self._warm_pool.claim(self._template_shape(template, resources))
        if ready is None:
            return None
        sandbox = ready.sandbox
        if ready.execs:
            (sandbox.folder / "logs").rename(self._logs / sandbox.id)
        self._adopt(sandbox)
        for id_ in ready.execs.values():
            exec_ = self._execs[sandbox.id, id_]
            if exec_.spec.keeps_awake:
                exec_.holds_sandbox.enter_context(sandbox.in_use())
        sandbox.claim(resources)
        return sandbox.id, dict(ready.execs)

    def _known(self, sandbox: str, each: KnownExec) -> GuestExec:
        known = self._execs.get((sandbox, each.id))
        if known is None:
            path = self.log_path(sandbox, each.id)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            known = self._execs[sandbox, each.id] = Exec(each.spec, path)
        return known.guest or known.prepare_resume(each.number)

    def _go_on(self, sandbox: Sandbox, known: dict[int, str], missing: set[int]) -> set[str]:
        for number, exec_id in known.items():
            if number in missing:
                self._execs.pop((sandbox.id, exec_id)).log.close()
            else:
                exec_ = self._execs[sandbox.id, exec_id]
                exec_.resumed(sandbox.link, sandbox.in_use() if exec_.spec.keeps_awake else nullcontext())
        return {known[number] for number in missing}

    async def pause_sandbox(self, id_: str) -> CopyFacts:
        sandbox, copy = self._sandbox(id_), self._snapshots.blank()
        sandbox.begin_use()
        try:
            async with sandbox.link.quiet(timeout=_START_TIMEOUT_S):
                await sandbox.pause()
                try:
                    await sandbox.checkpoint(copy.emptied)
                    return await self._kept(id_, copy, self._offsets(id_))
                except BaseException:
                    await sandbox.unpause()
                    raise
        except BaseException:
            copy.close()
            sandbox.end_use()
            raise

    async def park_sandbox(self, id_: str) -> None:
        sandbox = self._sandbox(id_)
        mine = [each for (of, _), each in self._execs.items() if of == id_]
        for each in mine:
            each.suspend()
        sandbox.link.detach({each.guest for each in mine if each.guest is not None})
        del self._sandboxes[id_]
        await sandbox.destroy()

    def recover_parked(self, id_: str, execs: list[KnownExec]) -> bool:
        if id_ in self._held:
            return True
        for each in execs:
            self._known(id_, each)
        return False

    def hold(self, id_: str) -> None:
        self._holds[id_] += 1  # counted here, because a pause ends the Sandbox and a resume makes another
        self._warm_pool.note_work()
        if (sandbox := self._sandboxes.get(id_)) is not None:
            sandbox.begin_use()

    def let_go(self, id_: str) -> None:
        self._holds[id_] -= 1
        if not self._holds[id_]:
            del self._holds[id_]
        if (sandbox := self._sandboxes.get(id_)) is not None:
            sandbox.end_use()

    def is_idle(self, id_: str) -> bool:
        sandbox = self._sandboxes.get(id_)
        return sandbox is not None and (sandbox.frozen or not (sandbox.used or sandbox.cgroup.can_freeze))

    def usage(self, id_: str) -> Usage:
        return self._sandbox(id_).usage()

    async def processes(self, id_: str) -> int:
        sandbox = self._sandbox(id_)
        with sandbox.in_use():
            return len(await sandbox.control.processes())

    # ---- execs

    def reserve_exec(self, sandbox: str) -> int:
        return self._sandbox(sandbox).link.reserve()

    async def start_exec(self, sandbox: str, id_: str, number: int, spec: ExecSpec) -> None:
        owner = self._sandbox(sandbox)
        self._warm_pool.note_work()
        path = self.log_path(sandbox, id_)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        started = self._execs[sandbox, id_] = Exec(spec, path)
        started.holds_sandbox.enter_context(owner.in_use())
        try:
            await started.start(owner.link, number=number, timeout=_START_TIMEOUT_S)
            if not spec.keeps_awake:
                started.holds_sandbox.close()
        except BaseException:
            del self._execs[sandbox, id_]
            started.close()
            execlog.remove(path)
            raise

    def _exec(self, sandbox: str, id_: str) -> Exec | None:
        return self._execs.get((sandbox, id_))

    def _with_exec(self, sandbox: str, id_: str, deed: Callable[[Exec], None]) -> None:
        if (each := self._exec(sandbox, id_)) is not None:
            with contextlib.suppress(SandboxGone):
                deed(each)

    async def wait_exec(self, sandbox: str, id_: str) -> ExecEnd:
        return await self._execs[sandbox, id_].wait()

    def append(self, sandbox: str, id_: str, type_: EventType, payload: bytes) -> None:
        self._execs[sandbox, id_].append(type_, payload)

    def close_exec(self, sandbox: str, id_: str) -> None:
        self._execs.pop((sandbox, id_)).close()

    def signal_exec(self, sandbox: str, id_: str, signal: int, *, group: bool) -> None:
        self._with_exec(sandbox, id_, lambda each: each.signal(signal, group=group))

    def resize_exec(self, sandbox: str, id_: str, rows: int, cols: int) -> None:
        self._with_exec(sandbox, id_, lambda each: each.resize(rows, cols))

    async def write_input(self, sandbox: str, id_: str, data: bytes) -> bool:
        each = self._exec(sandbox, id_)
        return each is not None and await each.write_input(data)

    def end_input(self, sandbox: str, id_: str) -> None:
        self._with_exec(sandbox, id_, Exec.end_input)

    def input_offset(self, sandbox: str, id_: str) -> int:
        each = self._exec(sandbox, id_)
        return 0 if each is None or each.guest is None else each.guest.account.input.sent

    def log_path(self, sandbox: str, id_: str) -> Path:
        return self._logs / sandbox / id_

    def remove_logs(self, sandbox: str) -> None:
        shutil.rmtree(self._logs / sandbox, ignore_errors=True)

    async def log_changed(self, sandbox: str, id_: str, after: int, follower: str) -> None:
        if (each := self._exec(sandbox, id_)) is not None:
            await each.changed(after, follower)

    def unfollow(self, sandbox: str, id_: str, follower: str) -> None:
        self._with_exec(sandbox, id_, lambda each: each.unfollow(follower))


async def _touch(exec_: Exec, data: bytes) -> None:
    """Have it answer once: restored memory is not mapped yet, and the first to use it would wait for that."""
    before = exec_.log.last
    async with asyncio.timeout(_TOUCH_TIMEOUT_S):
        await exec_.write_input(data)
        await exec_.changed(before, "")
    exec_.unfollow("")


def _facts(image: Image) -> ImageFacts:
    return ImageFacts(image.id, image.name, image.digest, image.size, image.created_at)
