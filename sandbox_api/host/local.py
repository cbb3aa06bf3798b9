"""The machine this process runs on. The only module that joins isolation and fs."""

import asyncio
import contextlib
import errno
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
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
from isolation.files import Entry, FileFailed, Operation, operate
from isolation.freezer import Freezer
from isolation.guest import build
from isolation.keeper import Keeper
from isolation.platforms import choose_platform
from isolation.pool import Pool, Shape, ShelfFacts
from isolation.sandbox import End, Machine, Sandbox, post_mortem
from isolation.snapshots import Copy, Maker, SnapshotFolder, cpu_features
from isolation.spec import DEFAULT, Resources
from sandbox_api.host.interface import CopyFacts, EventType, ImageFacts, KnownExec, Usage
from sandbox_api.settings import Settings

_log = structlog.get_logger(__name__)
_START_TIMEOUT_S = 10.0


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
        self._holds: Counter[str] = Counter()
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
        self._machine = Machine(chosen, layout, self._keeper, run)
        self._pool = Pool(self._machine, floor=self._settings.pool_floor, ceiling=self._settings.pool_ceiling)

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
        if (sandbox := self._warm_pool.claim(shape)) is None:
            return None
        self._adopt(sandbox)
        sandbox.claim(resources)
        return sandbox.id

    async def create_sandbox(self, id_: str, image: str, resources: Resources) -> None:
        path = self._images.path(await self._image(image))
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
            with sandbox.in_use():
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
        if (copy := self._copies.pop(name, None)) is not None:
            copy.close()
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
            return ready
        return await Sandbox.prepare(self._here, id_, image=path, resources=resources)

    async def restore_sandbox(
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

    async def unpause_sandbox(self, id_: str) -> None:
        sandbox = self._sandbox(id_)
        await sandbox.unpause()
        sandbox.end_use()

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

    # ---- files

    @contextlib.asynccontextmanager
    async def _operate(
        self, sandbox: str, name: str, path: str, argument: str, user: str, *, stdin: bool = False
    ) -> AsyncIterator[Operation]:
        owner, root = self._sandbox(sandbox), self._settings.allow_root
        with owner.in_use():
            async with operate(owner.link, name, path, argument, user=user, allow_root=root, stdin=stdin) as operation:
                yield operation

    async def _entry(self, sandbox: str, name: str, path: str, argument: str, user: str) -> Entry:
        async with self._operate(sandbox, name, path, argument, user) as operation:
            return _required(await operation.result(), path)

    async def stat(self, sandbox: str, path: str, user: str) -> Entry:
        return await self._entry(sandbox, "stat", path, "", user)

    async def list_folder(self, sandbox: str, path: str, depth: int, user: str) -> list[Entry]:
        async with self._operate(sandbox, "list", path, str(depth), user) as operation:
            return await operation.listing()

    async def read(self, sandbox: str, path: str, offset: int, length: int, user: str) -> AsyncIterator[Entry | bytes]:
        async with self._operate(sandbox, "read", path, f"{offset}:{length}", user) as operation:
            yield await operation.head()
            async for piece in operation.contents():
                yield piece
            await operation.result()

    async def write(
        self, sandbox: str, path: str, size: int, mode: int | None, contents: AsyncIterator[bytes], user: str
    ) -> Entry:
        argument = f"{size}" if mode is None else f"{size}:{mode:o}"
        async with self._operate(sandbox, "write", path, argument, user, stdin=True) as operation:
            async for piece in contents:
                if not await operation.feed(piece):
                    break
            operation.end()
            return _required(await operation.result(), path)

    async def mkdir(self, sandbox: str, path: str, parents: bool, user: str) -> Entry:
        return await self._entry(sandbox, "mkdir", path, "1" if parents else "0", user)

    async def remove(self, sandbox: str, path: str, recursive: bool, user: str) -> None:
        async with self._operate(sandbox, "remove", path, "1" if recursive else "0", user) as operation:
            await operation.result()


def _required(entry: Entry | None, path: str) -> Entry:
    if entry is None:
        raise FileFailed(errno.EIO, path)
    return entry


def _facts(image: Image) -> ImageFacts:
    return ImageFacts(image.id, image.name, image.digest, image.size, image.created_at)
