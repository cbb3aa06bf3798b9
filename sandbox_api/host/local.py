"""The machine this process runs on. The only module that joins isolation and fs."""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog

from common.tasks import TaskOwner
from fs.images import Image, ImageStore
from isolation import cgroups, execlog, runsc
from isolation.errors import ChannelLost, SandboxGone
from isolation.execs import Exec, ExecEnd, ExecSpec
from isolation.files import Entry, FileFailed, Operation, operate
from isolation.guest import build
from isolation.keeper import Keeper
from isolation.platforms import choose_platform
from isolation.sandbox import End, Machine, Sandbox, post_mortem
from isolation.spec import Resources
from sandbox_api.host.interface import EventType, ImageFacts, KnownExec, Usage
from sandbox_api.settings import Settings

_log = structlog.get_logger(__name__)
_START_TIMEOUT_S = 10.0


class LocalHost:
    """See `sandbox_api.host.interface.Host`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._images = ImageStore(settings.cache / "images", init=lambda: build.binary(settings.cache))
        self._keeper = Keeper(settings.state / "keeper.sock")
        self._logs = settings.state / "logs"
        self._machine: Machine | None = None
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

    async def stop(self) -> None:
        await self._tasks.cancel()
        for each in self._execs.values():
            each.log.close()
        for sandbox in self._sandboxes.values():
            sandbox.release()
        self._keeper.close()

    @property
    def _here(self) -> Machine:
        if self._machine is None:
            raise RuntimeError("the host was not started")
        return self._machine

    # ---- images

    def images(self) -> list[ImageFacts]:
        return [_facts(image) for image in self._images.all()]

    async def image(self, name: str) -> ImageFacts:
        return _facts(await self._image(name))

    async def _image(self, name: str) -> Image:
        async with self._building:
            return await asyncio.to_thread(self._images.ensure, name)

    # ---- sandboxes

    async def create_sandbox(self, id_: str, image: str, resources: Resources) -> None:
        path = self._images.path(await self._image(image))
        self._adopt(await Sandbox.create(self._here, id_, image=path, resources=resources))

    def _adopt(self, sandbox: Sandbox) -> None:
        self._sandboxes[sandbox.id] = sandbox
        self._tasks.spawn(self._watch(sandbox), name=f"watch {sandbox.id}")

    async def _watch(self, sandbox: Sandbox) -> None:
        await sandbox.watch()
        if sandbox.ended.done():
            sandbox.link.close()  # ends its execs
            self._ends.put_nowait((sandbox.id, sandbox.ended.result()))

    async def recover_sandbox(self, id_: str, resources: Resources, execs: list[KnownExec]) -> set[str]:
        if (fds := self._held.pop(id_, None)) is None:
            raise ChannelLost("the keeper was lost, and the way into the sandbox with it")
        known: dict[int, str] = {}
        guests = []
        for each in execs:
            resumed = Exec(each.spec, self.log_path(id_, each.id))
            self._execs[id_, each.id] = resumed
            known[each.number] = each.id
            guests.append(resumed.prepare_resume(each.number))
        sandbox, missing = await Sandbox.attach(self._here, id_, resources=resources, fds=fds, execs=guests)
        self._adopt(sandbox)
        for number, exec_id in known.items():
            if number in missing:
                self._execs.pop((id_, exec_id)).log.close()
            else:
                self._execs[id_, exec_id].resumed(sandbox.link)
        return {known[number] for number in missing}

    def post_mortem(self, id_: str, resources: Resources) -> End:
        return post_mortem(self._here, id_, resources)

    async def destroy_sandbox(self, id_: str) -> Usage:
        sandbox = self._sandboxes.pop(id_, None)
        if sandbox is None:
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

    async def pause(self, id_: str) -> None:
        await self._sandbox(id_).control.pause()

    async def resume(self, id_: str) -> None:
        await self._sandbox(id_).control.resume()

    def usage(self, id_: str) -> Usage:
        return self._sandbox(id_).usage()

    async def processes(self, id_: str) -> int:
        return len(await self._sandbox(id_).control.processes())

    # ---- execs

    def reserve_exec(self, sandbox: str) -> int:
        return self._sandbox(sandbox).link.reserve()

    async def start_exec(self, sandbox: str, id_: str, number: int, spec: ExecSpec) -> None:
        link = self._sandbox(sandbox).link
        path = self.log_path(sandbox, id_)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        started = self._execs[sandbox, id_] = Exec(spec, path)
        try:
            await started.start(link, number=number, timeout=_START_TIMEOUT_S)
        except BaseException:
            del self._execs[sandbox, id_]
            started.log.close()
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

    def _operate(
        self, sandbox: str, name: str, path: str, argument: str, user: str, *, stdin: bool = False
    ) -> contextlib.AbstractAsyncContextManager[Operation]:
        link = self._sandbox(sandbox).link
        return operate(link, name, path, argument, user=user, allow_root=self._settings.allow_root, stdin=stdin)

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
