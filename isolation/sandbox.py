"""One live sandbox: from `runsc create` to the removal of its last file.

folder/            0700, named by the sandbox's id
  bundle/          the OCI spec and the empty folder that the EROFS root covers
  runsc/           runsc's --root: its state file and the control socket
  overlay/         mount point of the tmpfs that bounds the root's changes (detached once the sentry holds it)
  sandbox.json     what a later server needs to take it over
  runsc.log        runsc's own complaints
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog

from isolation import mounts, runsc
from isolation.cgroups import Cgroup, Layout, Usage
from isolation.channel.link import GuestExec, Link
from isolation.control import Control
from isolation.errors import SandboxGone
from isolation.keeper import Keeper
from isolation.pidfd import Process
from isolation.spec import Resources, oci_spec

_log = structlog.get_logger(__name__)
_PIPE_SIZE: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031
_BOOT_TIMEOUT_S: Final = 20.0
_END_TIMEOUT_S: Final = 10.0
CGROUP_PARENT: Final = "isobox"


@dataclass(frozen=True, slots=True)
class Machine:
    """What all sandboxes of one server share."""

    runsc: runsc.Runsc
    cgroups: Layout
    keeper: Keeper
    folder: Path


@dataclass(frozen=True, slots=True)
class End:
    """Why a sandbox ended by itself, and what it had used."""

    reason: Literal["oom", "exited", "lost"]
    detail: str
    usage: Usage


class Sandbox:
    """A sandbox that runs. Made by `create` or `attach`; `destroy` is the way out of every state."""

    def __init__(self, machine: Machine, id_: str, resources: Resources) -> None:
        self.id = id_
        self.resources = resources
        self.folder = machine.folder / id_
        self.cgroup = Cgroup(machine.cgroups, CGROUP_PARENT, id_)
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        """Resolves when the sandbox ends by itself."""
        self._machine = machine
        self._process: Process | None = None
        self._control: Control | None = None
        self._link: Link | None = None
        self._violation: str | None = None
        self._destroying = False

    # ---- ways in

    @classmethod
    async def create(cls, machine: Machine, id_: str, *, image: Path, resources: Resources) -> "Sandbox":
        """A new sandbox, its PID 1 up and listening. On failure nothing is left."""
        sandbox = cls(machine, id_, resources)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(sandbox.destroy)
            await sandbox._boot(image)
            undo.pop_all()
        return sandbox

    async def _boot(self, image: Path) -> None:
        bundle, root, overlay = self.folder / "bundle", self.folder / "runsc", self.folder / "overlay"
        self.folder.mkdir(mode=0o700)
        for folder in (bundle, bundle / "root", root, overlay):
            folder.mkdir(mode=0o700)
        self.cgroup.create(self.resources)
        spec = oci_spec(
            hostname=self.id,
            root=str(bundle / "root"),
            image=str(image),
            overlay=str(overlay),
            resources=self.resources,
        )
        (bundle / "config.json").write_text(json.dumps(spec))
        guest_in, to_guest = os.pipe()
        from_guest, guest_out = os.pipe()
        theirs = [guest_in, guest_out, os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)]
        self._set_link(to_guest, from_guest)
        try:
            for fd in (to_guest, from_guest):
                with contextlib.suppress(PermissionError):  # beyond pipe-user-pages-soft: slower, no worse
                    _set_pipe_size(fd)
            self._machine.keeper.put(self.id, (to_guest, from_guest))
            mounts.mount_tmpfs(overlay, size_mb=self.resources.disk_mb)
            created = await runsc.create(
                self._machine.runsc,
                root=root,
                bundle=bundle,
                container=self.id,
                cgroups=self.cgroup.folders,
                stdio=(theirs[0], theirs[1], theirs[2]),
                log=self.folder / "runsc.log",
            )
        finally:
            for fd in theirs:
                os.close(fd)
            mounts.detach(overlay)
        self._adopt(Process(created.pid), created.control_path)
        self._write_record()
        control = self.control
        await control.create_loopback()
        await control.start_root()
        await self.link.open([], timeout=_BOOT_TIMEOUT_S)

    @classmethod
    async def attach(
        cls, machine: Machine, id_: str, *, resources: Resources, fds: tuple[int, int], execs: list[GuestExec]
    ) -> tuple["Sandbox", set[int]]:
        """Take over a sandbox of an earlier server, with the descriptors that the keeper held.

        Returns it and the numbers of the execs that PID 1 never heard of. SandboxGone if it has ended meanwhile
        (the descriptors are closed then), GuestUnresponsive if it does not answer.
        """
        sandbox = cls(machine, id_, resources)
        sandbox._set_link(*fds)
        try:
            record = json.loads((sandbox.folder / "sandbox.json").read_text())
            process = Process(record["pid"], start_time=record["start_time"])
        except (FileNotFoundError, ProcessLookupError, ValueError, KeyError) as error:
            sandbox.link.close()
            raise SandboxGone("it ended while no server ran") from error
        sandbox._adopt(process, record["control_path"])
        missing = await sandbox.link.open(execs, timeout=_BOOT_TIMEOUT_S)
        return sandbox, missing

    def _set_link(self, to_guest: int, from_guest: int) -> None:
        self._link = Link(to_guest, from_guest, lost=self._link_lost)

    def _adopt(self, process: Process, control_path: str) -> None:
        self._process = process
        self._control = Control(control_path, self.id)

    def _write_record(self) -> None:
        assert self._process is not None
        record = {
            "pid": self._process.pid,
            "start_time": self._process.start_time,
            "control_path": self.control.path,
        }
        partial = self.folder / "sandbox.json.new"
        partial.write_text(json.dumps(record))
        partial.rename(self.folder / "sandbox.json")

    # ---- while it lives

    @property
    def link(self) -> Link:
        """The channel to PID 1."""
        if self._link is None:
            raise SandboxGone("the sandbox has ended")
        return self._link

    @property
    def control(self) -> Control:
        """The sentry's control server: the way in that needs no help of the guest."""
        if self._control is None:
            raise SandboxGone("the sandbox has ended")
        return self._control

    async def watch(self) -> None:
        """Wait until the sandbox ends by itself and tell why in `ended`. Run as a task for its whole life."""
        process = self._process
        assert process is not None
        await process.wait()
        if self._destroying or self.ended.done():
            return
        if self._violation:
            self.ended.set_result(End("lost", self._violation, self.cgroup.usage()))
        else:
            self.ended.set_result(post_mortem(self._machine, self.id, self.resources))

    def _link_lost(self, error: Exception) -> None:
        # EOF comes with the sandbox's end and is told by `watch`; anything else ends it here and now.
        if not isinstance(error, SandboxGone):
            self._violation = f"PID 1 broke the channel's protocol: {error}"
            _log.warning("channel violated", sandbox=self.id, error=str(error))
            if self._process is not None:
                self._process.kill()

    def usage(self) -> Usage:
        """The counters of its control group."""
        return self.cgroup.usage()

    # ---- the ways out

    def release(self) -> None:
        """Let go of it without ending it: the next server takes it over."""
        self._destroying = True
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.close()
            self._process = None

    async def destroy(self) -> Usage:
        """End it and remove every trace; never asks the guest. Returns what it had used. Idempotent."""
        self._destroying = True
        usage = self.cgroup.usage()
        if self._process is not None:
            self._process.kill()
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self._process.wait()
            self._process.close()
            self._process = None
        if self._link is not None:
            self._link.close()
            self._link = None
        await self.clean_up(self._machine, self.id)
        return usage

    @staticmethod
    async def clean_up(machine: Machine, id_: str) -> None:
        """Remove whatever a sandbox of that id left on this machine, dead or alive."""
        folder = machine.folder / id_
        cgroup = Cgroup(machine.cgroups, CGROUP_PARENT, id_)
        deadline = time.monotonic() + _END_TIMEOUT_S
        cgroup.kill()
        pause = 0.001
        while not cgroup.remove():
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes of {id_} do not end: {sorted(cgroup.processes())}")
            cgroup.kill()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)
        machine.keeper.drop(id_)
        mounts.detach(folder / "overlay")
        # Ours alone and small: a handful of files that runsc and we wrote.
        shutil.rmtree(folder, ignore_errors=True)


def post_mortem(machine: Machine, id_: str, resources: Resources) -> End:
    """Why a sandbox that ended by itself did so: its control group remembers until it is removed."""
    usage = Cgroup(machine.cgroups, CGROUP_PARENT, id_).usage()
    if usage.oom_kills:
        limit, peak = resources.cgroup_memory_bytes >> 20, usage.memory_peak_bytes >> 20
        return End("oom", f"out of memory: peak {peak} MiB, limit {limit} MiB (memory_mb + disk_mb)", usage)
    return End("exited", "PID 1 of the sandbox has ended", usage)


def _set_pipe_size(fd: int) -> None:

    fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_SIZE)
