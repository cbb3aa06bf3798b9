"""Buckets in this machine's sandboxes: joins the folders that are mounted inside and what serves them."""

import asyncio
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from common.tasks import TaskOwner
from fs.buckets.hold import HoldViolation
from fs.buckets.objects import Objects
from fs.buckets.server import Server
from fs.buckets.share import Share
from fs.buckets.spools import Budget, Spools
from fs.guarded import Access
from isolation import foldermount
from isolation.channel.link import StartFailed
from isolation.connections import PortClosed, dial
from isolation.errors import GuestUnresponsive, SandboxGone
from isolation.sandbox import Sandbox
from sandbox_api.host.interface import BucketMount

_log = structlog.get_logger(__name__)
_REQUEST_THREADS: Final = 8
_FETCH_THREADS: Final = 4
"""Of each sandbox: a store that does not answer holds up nobody but those who named it."""

_SPOOL_SHARE: Final = 2
"""One sandbox may take half of the room for files that are being written."""

_CHECK_S: Final = 30.0
_SETTLE_S: Final = 3.0
_LEAVE_S: Final = 30.0
_AGAIN_S: Final = 0.2
_TRIES: Final = 5


@dataclass(slots=True)
class _Served:
    mount: BucketMount
    server: Server
    tasks: TaskOwner = field(default_factory=TaskOwner)


class _Resources:
    """What the mounts of one sandbox use together: memory, spools' room, threads."""

    def __init__(self, whole: Budget) -> None:
        self.share = Share()
        self.budget = Budget(whole.limit // _SPOOL_SHARE, whole)
        self.requests = ThreadPoolExecutor(_REQUEST_THREADS, "bucket")
        self.fetches = ThreadPoolExecutor(_FETCH_THREADS, "bucket-fetch")

    def close(self) -> None:
        """Let go of the threads, which come to their ends."""
        self.requests.shutdown(wait=False, cancel_futures=True)
        self.fetches.shutdown(wait=False, cancel_futures=True)


class LocalBuckets:
    """See `sandbox_api.host.interface.Buckets`."""

    def __init__(self, sandbox: Callable[[str], Sandbox], folder: Path, access: Access, *, spool_bytes: int) -> None:
        self._sandbox = sandbox
        self._folder = folder
        self._access = access
        self._budget = Budget(spool_bytes)
        self._checking: set[Objects] = set()
        self._resources: dict[str, _Resources] = {}
        self._served: dict[str, list[_Served]] = {}
        self._ending = TaskOwner()
        self._failures: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def check(self, mount: BucketMount) -> None:
        def work() -> None:
            objects = Objects(mount.place, mount.keys, self._access)
            self._checking.add(objects)
            try:
                objects.check(_CHECK_S)
            finally:
                self._checking.discard(objects)
                objects.close()

        thread = ThreadPoolExecutor(1, "bucket-check")  # its own: one that waits is in nobody's way
        try:
            await asyncio.get_running_loop().run_in_executor(thread, work)
        finally:
            thread.shutdown(wait=False)

    async def mount(self, sandbox: str, mount: BucketMount) -> None:
        running = self._sandbox(sandbox)
        with running.in_use():
            await foldermount.mount(running, mount.address, mount.path)
        await self._begin(sandbox, mount)

    async def serve(self, sandbox: str, mounts: list[BucketMount]) -> None:
        self._sandbox(sandbox).serves_folders = True
        known = {each.mount.address: each for each in self._served.get(sandbox, [])}
        for mount in mounts:
            if (served := known.get(mount.address)) is not None:
                await served.tasks.cancel()
                served.tasks.spawn(self._talk(sandbox, served), name=f"bucket of {sandbox}")
            else:
                await self._begin(sandbox, mount)

    async def _begin(self, sandbox: str, mount: BucketMount) -> None:
        served = await self._make(sandbox, mount)
        await served.server.finish_left()
        self._served.setdefault(sandbox, []).append(served)
        served.tasks.spawn(self._talk(sandbox, served), name=f"bucket of {sandbox}")

    async def _make(self, sandbox: str, mount: BucketMount) -> _Served:
        def on_failure(file: str, detail: str) -> None:
            self._failures.put_nowait((sandbox, {"path": mount.path, "file": file, "detail": detail}))

        objects = await asyncio.to_thread(Objects, mount.place, mount.keys, self._access)
        if (resources := self._resources.get(sandbox)) is None:
            resources = self._resources[sandbox] = _Resources(self._budget)
        server = Server(
            objects,
            Spools(self._folder / sandbox / mount.address, resources.budget),
            read_only=mount.read_only,
            owner=mount.owner,
            on_failure=on_failure,
            requests=resources.requests,
            fetches=resources.fetches,
            share=resources.share,
        )
        return _Served(mount, server)

    async def _talk(self, sandbox: str, served: _Served) -> None:
        """Be connected to what holds the mount for as long as the sandbox runs."""
        tries = violations = 0
        while tries < _TRIES and violations < _TRIES:
            try:
                running = self._sandbox(sandbox)
                async with AsyncExitStack() as stack:
                    with running.in_use():
                        connection = await stack.enter_async_context(dial(running.link, served.mount.address))
                    tries = 0
                    await served.server.serve(connection)
            except SandboxGone:
                return
            except HoldViolation as error:
                _log.info("what holds a mount says what it should not", sandbox=sandbox, error=str(error))
                violations += 1
            except (PortClosed, StartFailed, GuestUnresponsive) as error:
                _log.info("a mount does not answer", sandbox=sandbox, path=served.mount.path, error=str(error))
            tries += 1
            await asyncio.sleep(_AGAIN_S)
        detail = "what holds the mount inside has ended"
        self._failures.put_nowait((sandbox, {"path": served.mount.path, "file": "", "detail": detail}))

    async def settle(self, sandbox: str) -> None:
        try:
            running = self._sandbox(sandbox)
        except SandboxGone:  # it has ended by itself, or is parked: it says no more
            return
        with running.in_use():
            await asyncio.gather(*(each.server.hear_all(_SETTLE_S) for each in self._served.get(sandbox, [])))

    async def leave(self, sandbox: str) -> None:
        if not (served := self._served.pop(sandbox, [])):
            return
        for each in served:
            await each.tasks.cancel()
            await each.server.leave()
        ending = self._ending.spawn(self._end(sandbox, served), name=f"buckets of {sandbox}")
        await asyncio.wait([ending], timeout=_LEAVE_S)

    async def _end(self, sandbox: str, served: list[_Served]) -> None:
        try:
            for each in served:
                await each.server.stored()
        finally:  # also where this server ends: a later one stores the rest
            for each in served:
                await each.server.close()
        if (resources := self._resources.pop(sandbox, None)) is not None:
            resources.close()
        await asyncio.to_thread(shutil.rmtree, self._folder / sandbox, ignore_errors=True)

    def left(self) -> set[str]:
        return {each.name for each in self._folder.iterdir()} if self._folder.exists() else set()

    async def finish(self, sandbox: str, mounts: list[BucketMount]) -> None:
        served = [await self._make(sandbox, mount) for mount in mounts]
        for each in served:
            await each.server.finish_left()
        self._ending.spawn(self._end(sandbox, served), name=f"buckets of {sandbox}")

    async def next_failure(self) -> tuple[str, dict[str, Any]]:
        return await self._failures.get()

    async def close(self) -> None:
        """Answer nobody any more; what has to be stored is stored by a later server."""
        await self._ending.cancel()
        for served in self._served.values():
            for each in served:
                await each.tasks.cancel()
                await each.server.close()
        self._served.clear()
        for objects in list(self._checking):
            objects.abort(writes=True)
        for resources in self._resources.values():
            resources.close()
        self._resources.clear()
