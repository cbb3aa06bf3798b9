"""One live sandbox: from `runsc create` to the removal of its last file.

folder/            0700, named by the sandbox's id
  bundle/          the OCI spec and the empty folder that the EROFS root covers
  runsc/           runsc's --root: its state file and the control socket
  overlay/         for an older runsc: where the tmpfs that bounds the root's changes is mounted until the sentry has it
  sandbox.json     what a later server needs to take it over
  born             the id that it was made under, where that is another: its control group and container go by that
  runsc.log        runsc's own complaints
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import structlog

from common.tasks import TaskOwner
from isolation import cgroups, layers, mounts, runsc
from isolation.cgroups import Cgroup, Layout, Usage
from isolation.channel.link import GuestExec, Link
from isolation.control import Control
from isolation.errors import CheckpointRefused, DiskFull, GuestUnresponsive, RunscError, SandboxGone
from isolation.guest.build import Brought
from isolation.keeper import Keeper
from isolation.memory_guard import MemoryGuard
from isolation.network import Links
from isolation.pidfd import Process
from isolation.spec import BARE, Equipment, Resources, oci_spec

_log = structlog.get_logger(__name__)
_PIPE_SIZE: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031
_BOOT_TIMEOUT_S: Final = 20.0
_PROBE_TIMEOUT_S: Final = 2.0
_END_TIMEOUT_S: Final = 10.0
_PINGS_MISSED: Final = 2
_CHECKPOINT_ATTEMPTS: Final = 3
_CHECKPOINT_PAUSE_S: Final = 0.1
_CAP_SYS_ADMIN: Final = 1 << 21
_CAP_DAC_OVERRIDE: Final = 1 << 1
CGROUP_PARENT: Final = cgroups.ROOT


class Attempts:
    """Whether sandboxes can be created: how the last plain attempt went, and whether another one is due."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.doubted = asyncio.Event()
        """Set when a creation failed: by the machine's fault, or by what was asked for."""

    def note(self, failure: Exception | None) -> None:
        """An attempt without anything of a tenant's in it has just succeeded (None) or failed."""
        self.failure = failure
        if failure is not None:
            self.doubted.set()


@dataclass(frozen=True, slots=True)
class Machine:
    """What all sandboxes of one server share."""

    runsc: runsc.Runsc
    cgroups: Layout
    keeper: Keeper
    folder: Path
    programs: Brought
    links: Links | None = None
    """Where sandboxes get their links to the outside; None: they have a loopback alone."""
    parent: str = CGROUP_PARENT
    """The control group that their groups are made in; it carries the owner's id (common/owners.py)."""
    attempts: Attempts = field(default_factory=Attempts)

    def cgroup(self, name: str) -> Cgroup:
        """The control group of the sandbox that was made under this id, also by a server of before."""
        before = Cgroup(self.cgroups, CGROUP_PARENT, name)
        return before if before.exists else Cgroup(self.cgroups, self.parent, name)


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
        self._born = made_under(self.folder)
        self.cgroup = machine.cgroup(self._born)
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        """Resolves when the sandbox ends by itself."""
        self._machine = machine
        self._process: Process | None = None
        self._control: Control | None = None
        self._link: Link | None = None
        self._violation: str | None = None
        self._destroying = False
        self._ends: tuple[int, int] | None = None
        self._uses = 0
        self._unborn = False
        self._naming: asyncio.Task[None] | None = None
        self._guard: MemoryGuard | None = None
        self.kernel_kills = 0
        """How many of its processes the kernel has killed for want of memory, as far as that was dealt with."""
        self._tasks = TaskOwner()
        self._copying = asyncio.Lock()
        self.frozen = False
        self._paused = False
        self.serves_folders = False
        """Whether folders of it are served by the host (`foldermount`)."""
        self.idle_since = time.monotonic()

    # ---- ways in
    #
    #   prepare ──▶ start or restore ──▶ claim         attach ──▶ (as claimed)
    #   runsc create  PID 1 is up          limits, keeper

    @classmethod
    async def create(
        cls, machine: Machine, id_: str, *, image: Path, resources: Resources, equipment: Equipment = BARE
    ) -> "Sandbox":
        """A new sandbox, its PID 1 up and listening. On failure nothing is left."""
        sandbox = await cls.prepare(machine, id_, image=image, resources=resources, equipment=equipment)
        async with sandbox.undone_on_failure():
            await sandbox.start()
        return sandbox

    @classmethod
    async def prepare(
        cls,
        machine: Machine,
        id_: str,
        *,
        image: Path,
        resources: Resources,
        equipment: Equipment = BARE,
        in_background: bool = False,
    ) -> "Sandbox":
        """A sandbox whose sentry runs and whose PID 1 does not yet. On failure nothing is left.

        With in_background it gets little of a busy processor, until it is claimed.
        """
        sandbox = cls(machine, id_, resources)
        async with sandbox.undone_on_failure():
            await sandbox._prepare(image, equipment, in_background)
        return sandbox

    @asynccontextmanager
    async def undone_on_failure(self) -> AsyncIterator[None]:
        """Destroy it if the block fails."""
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.destroy)
            yield
            undo.pop_all()

    async def _prepare(self, image: Path, equipment: Equipment, in_background: bool) -> None:
        bundle, root, overlay = self.folder / "bundle", self.folder / "runsc", self.folder / "overlay"
        self.folder.mkdir(mode=0o700)
        for folder in (bundle, bundle / "root", root, overlay):
            folder.mkdir(mode=0o700)
        self.cgroup.create(self.resources)
        self.cgroup.yield_to_others(in_background)
        spec = oci_spec(
            hostname=self.id,
            root=str(bundle / "root"),
            image=str(image),
            overlay=None if self._machine.runsc.bounds_overlays else str(overlay),
            resources=self.resources,
            equipment=equipment,
            hides_descriptors=not self._machine.runsc.guards_descriptors,
        )
        (bundle / "config.json").write_text(json.dumps(spec))
        guest_in, to_guest = os.pipe()
        from_guest, guest_out = os.pipe()
        theirs = [guest_in, guest_out, os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)]
        self._ends = (to_guest, from_guest)
        try:
            for fd in (to_guest, from_guest):
                with contextlib.suppress(PermissionError):  # beyond pipe-user-pages-soft: slower, no worse
                    _set_pipe_size(fd)
            if not self._machine.runsc.bounds_overlays:
                mounts.mount_tmpfs(overlay, size_mb=self.resources.disk_mb)
            created = await runsc.create(
                self._machine.runsc,
                root=root,
                bundle=bundle,
                container=self._born,
                cgroups=self.cgroup.folders,
                stdio=(theirs[0], theirs[1], theirs[2]),
                log=self.folder / "runsc.log",
                flags=equipment.flags,
            )
        finally:
            for fd in theirs:
                os.close(fd)
            mounts.detach(overlay)
        self._adopt(Process(created.pid), created.control_path)
        await self._connect()

    async def _connect(self) -> None:
        by_argument = self._machine.runsc.makes_links_itself
        if (links := self._machine.links) is None:
            await self.control.create_links(None, by_argument=by_argument)
            return
        link = await links.lease(self.id)
        try:
            await self.control.create_links(link, by_argument=by_argument)
        finally:
            os.close(link.fd)

    def take_the_place(self, id_: str) -> None:
        """Go by the id of one that was parked and is to go on in this one; before `claim`."""
        target = self._machine.folder / id_
        control = replace(self.control, path=str(target / Path(self.control.path).relative_to(self.folder)))
        (self.folder / "born").write_text(self._born)  # first: whoever cleans up must find its control group
        self.folder.rename(target)
        if self._machine.links is not None:
            self._machine.links.rename(self.id, id_)
        self.id, self.folder, self._control = id_, target, control

    async def start(self) -> None:
        """Start PID 1."""
        await self.control.start_root()
        await self._open([])

    async def restore(self, files: Sequence[int], execs: list[GuestExec], *, rename: bool) -> set[int]:
        """Go on from a checkpoint instead of starting; returns the numbers of execs that it does not hold.

        With rename it takes a name of its own, unlike its original: `named` waits for that. A failure leaves it
        alive but useless: destroy it.
        """
        await self.control.restore(files)
        try:
            missing = await self._open(execs)
            if self._unborn:
                self._unborn = False
                self._write_record()
                self._guard_memory()
        except BaseException:
            if self._link is not None:
                self._link.detach(set(execs))
            raise
        if rename or (self._born != self.id and self._machine.runsc.names_at_restore):
            self._begin_naming()
        return missing

    def _begin_naming(self) -> None:
        self._naming = self._tasks.spawn(self._take_name(), name=f"name {self.id}")
        if (self.folder / "sandbox.json").exists():  # claimed: a later server must know
            self._write_record()

    async def _take_name(self) -> None:
        argv = ["isobox-hostname", self.id]
        if status := await self._as_root(self._machine.programs.init, argv, _CAP_SYS_ADMIN):
            raise RunscError(f"isobox-hostname ended with status {status}")
        self._naming = None
        if (self.folder / "sandbox.json").exists():
            self._write_record()

    async def named(self) -> None:
        """Wait until it goes by its own name: what starts from now on sees no other."""
        if self._naming is not None:
            await asyncio.shield(self._naming)

    async def _open(self, execs: list[GuestExec]) -> set[int]:
        assert self._ends is not None
        self._set_link(*self._ends)
        return await self.link.open(execs, timeout=_BOOT_TIMEOUT_S)

    def claim(self, resources: Resources) -> None:
        """From now on it is somebody's: with these limits, known to the keeper, for the next server to take over.

        One that has not started is claimed for a `restore`: until that is done no other server need wait for its PID 1.
        SandboxGone if it ended while it waited.
        """
        assert self._ends is not None
        if self._link is not None and self._link.ended:
            raise SandboxGone("the sandbox has ended")
        self._unborn = self._link is None
        self.cgroup.limit(resources)
        self.cgroup.yield_to_others(False)
        self.resources = resources
        self._machine.keeper.put(self.id, self._ends)
        self._write_record()
        if not self._unborn:
            self._guard_memory()
        self.idle_since = time.monotonic()
        self.thaw()

    def _guard_memory(self) -> None:
        def spawn() -> None:
            self._tasks.spawn(self._relieve(), name=f"memory {self.id}")

        self._guard = MemoryGuard(
            self.cgroup, self.resources, lambda: self.link, kernel_kills=self.kernel_kills, spawn=spawn
        )
        self._guard.start()

    async def _relieve(self) -> None:
        guard = self._guard
        if guard is None:
            return
        await guard.relieve()
        if guard.kernel_kills != self.kernel_kills and self.alive:
            self.kernel_kills = guard.kernel_kills
            self._write_record()

    @classmethod
    async def attach(
        cls, machine: Machine, id_: str, *, resources: Resources, fds: tuple[int, int], execs: list[GuestExec]
    ) -> tuple["Sandbox", set[int]]:
        """Take over a sandbox of an earlier server, with the descriptors that the keeper held.

        Returns it and the numbers of the execs that PID 1 never heard of. SandboxGone if it has ended meanwhile
        (the descriptors are closed then), GuestUnresponsive if it does not answer.
        """
        sandbox = cls(machine, id_, resources)
        sandbox._ends = fds
        sandbox._set_link(*fds)
        try:
            record = json.loads((sandbox.folder / "sandbox.json").read_text())
            process = Process(record["pid"], start_time=record["start_time"])
        except (FileNotFoundError, ProcessLookupError, ValueError, KeyError) as error:
            sandbox.link.close()
            raise SandboxGone("it ended while no server ran") from error
        if record.get("unborn"):
            process.close()
            sandbox.link.close()
            raise SandboxGone("its server died before it had begun")
        sandbox._adopt(process, record["control_path"])
        sandbox.cgroup.thaw()
        try:
            missing = await sandbox._reopen(execs, paused=bool(record.get("paused")))
        except BaseException:
            sandbox.link.detach(set(execs))
            await sandbox.release()
            raise
        if record.get("nameless"):
            sandbox._begin_naming()
        sandbox.kernel_kills = record.get("kernel_kills", 0)
        sandbox._guard_memory()
        return sandbox, missing

    async def _reopen(self, execs: list[GuestExec], *, paused: bool) -> set[int]:
        if paused:
            # Its server died at a checkpoint. To unpause what was not paused would kill it: see whether it answers.
            try:
                return await self.link.open(execs, timeout=_PROBE_TIMEOUT_S)
            except GuestUnresponsive:
                await self.unpause()
        return await self.link.open(execs, timeout=_BOOT_TIMEOUT_S)

    def _set_link(self, to_guest: int, from_guest: int) -> None:
        self._link = Link(to_guest, from_guest, lost=self._link_lost)

    def _adopt(self, process: Process, control_path: str) -> None:
        self._process = process
        self._control = Control(control_path, self._born)

    def _write_record(self, *, paused: bool = False) -> None:
        assert self._process is not None
        record = {
            "paused": paused,
            "unborn": self._unborn,
            "nameless": self._naming is not None,
            "pid": self._process.pid,
            "start_time": self._process.start_time,
            "control_path": self.control.path,
            "kernel_kills": self.kernel_kills,
            "link": self._machine.links.number(self.id) if self._machine.links is not None else None,
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
        if isinstance(error, SandboxGone):
            # EOF comes with the sandbox's end and is told by `watch`; without a channel it is of no use to anybody.
            asyncio.get_running_loop().call_later(_END_TIMEOUT_S, self._end_without_channel)
        else:
            _log.warning("channel violated", sandbox=self.id, error=str(error))
            self.give_up(f"PID 1 broke the channel's protocol: {error}")

    def _end_without_channel(self) -> None:
        if self.alive and not self._destroying:
            self.give_up("PID 1 closed its channel")

    async def watch_guest(self, silence_s: float) -> None:
        """End it when PID 1 answers nothing for silence_s seconds while somebody uses it. Run as a task.

        Whoever waits for something inside would wait for ever.
        """
        missed = 0
        while (link := self._link) is not None and not link.ended:
            await asyncio.sleep(silence_s / 4)
            if not self._free_to_answer(link):
                missed = 0
                continue
            try:
                await link.ping(timeout=silence_s / 4)
                missed = 0
            except GuestUnresponsive:
                missed += self._free_to_answer(link)
            except SandboxGone:
                return
            if missed >= _PINGS_MISSED:
                _log.warning("PID 1 does not answer", sandbox=self.id, silence_s=silence_s)
                self.give_up(f"PID 1 did not answer for {silence_s:g} s")
                return

    def _free_to_answer(self, link: Link) -> bool:
        """Whether PID 1 is in use, and not stopped by us."""
        return self.used and not (self.frozen or self._paused or self._destroying or link.is_quiet)

    @property
    def pid(self) -> int:
        """Its sentry's; 0 if it has none."""
        return self._process.pid if self._process is not None else 0

    def give_up(self, reason: str) -> None:
        """End it for a reason of the host's: `ended` tells."""
        self._violation = self._violation or reason
        if self._process is not None:
            self._process.kill()
            self.thaw()

    def usage(self) -> Usage:
        """The counters of its control group."""
        return self.cgroup.usage()

    @property
    def alive(self) -> bool:
        """Whether its sentry runs, as far as the kernel knows."""
        return self._process is not None and not self._process.ended

    # ---- frozen while nobody uses it

    @property
    def used(self) -> bool:
        """Whether somebody holds it thawed."""
        return self._uses > 0

    def begin_use(self) -> None:
        """Thaw it and keep it so until `end_use`."""
        self._uses += 1
        self.thaw()

    def end_use(self) -> None:
        """The other end of `begin_use`."""
        self._uses -= 1
        self.idle_since = time.monotonic()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Both, around a block."""
        self.begin_use()
        try:
            yield
        finally:
            self.end_use()

    def freeze(self) -> None:
        """Stop it where it stands: no CPU, no loss; whoever uses it thaws it. Of a runsc that parks, a name only."""
        if self._destroying or self._violation:
            return  # version 1's freezer would hold back the SIGKILL that is on its way
        if not self.frozen and self.cgroup.can_freeze:
            self.frozen = True
            if self._machine.runsc.bears_freezing:
                self.cgroup.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        if self.frozen:
            self.frozen = False
            self.cgroup.thaw()

    # ---- copies

    async def pause(self) -> None:
        """Stop every task inside, so that nothing happens after the checkpoint that follows."""
        self._write_record(paused=True)  # before the deed: a later server looks whether it was done
        self._paused = True
        await self.control.pause()

    async def unpause(self) -> None:
        """Let them go on."""
        await self.control.resume()
        self._paused = False
        self._write_record()

    async def checkpoint(self, files: Callable[[], Sequence[int]]) -> None:
        """Write its state into fresh files; it goes on afterwards, or stays paused if it was.

        CheckpointRefused with what stands in the way, after some attempts: the sandbox is as before.
        """
        async with self._copying:  # programs of the host's would be in the way
            await self.named()
            await self._checkpoint(files)

    async def _checkpoint(self, files: Callable[[], Sequence[int]]) -> None:
        # ProcfsDump asks for the state of every open file from no task of the guest's, and of one that is served by
        # FUSE that ends the sentry (release-20240729.0, fuse/connection.go: Call blocks as the task).
        held = [] if self.serves_folders else await self.control.host_descriptors()
        foreign = [each for each in held if each.pid != 1 or each.number not in (0, 1, 2)]
        if foreign:
            names = ", ".join(sorted({f"{each.command} (pid {each.pid})" for each in foreign})[:5])
            raise CheckpointRefused(
                f"processes with descriptors of the host are in the way: {names}", hint="end them, then try again"
            )
        for attempt in range(_CHECKPOINT_ATTEMPTS):
            try:
                await self.control.checkpoint(files())
                return
            except RunscError as error:
                refusal = error
            if "no space left" in refusal.detail:
                raise DiskFull("the disk is full", hint="delete snapshots, or give the state directory more room")
            if attempt < _CHECKPOINT_ATTEMPTS - 1:
                await asyncio.sleep(_CHECKPOINT_PAUSE_S)
        inside = ", ".join(sorted({each.command for each in await self.control.processes() if each.pid != 1})[:10])
        raise CheckpointRefused(
            f"runsc refused the checkpoint: {refusal.detail}; running inside: {inside or 'nothing'}",
            hint="close its network connections or end what runs, then try again",
        )

    async def save_layer(self, names: Path, since: int, target: int, *, most: int) -> None:
        """Write what changed in its files into target; see `isolation.layers.save`."""
        async with self._copying:
            await layers.save(self.control, self._machine.programs.layer, names, since, target, most=most)

    async def apply_layer(self, source: int) -> None:
        """Lay such a layer over its files; see `isolation.layers.apply`."""
        async with self._copying:
            await layers.apply(self.control, self._machine.programs.layer, source)

    async def mount_folder(self, address: str, path: str) -> int:
        """Run guest/mount.c inside: 0, or the errno of what failed."""
        async with self._copying:
            rights = _CAP_SYS_ADMIN | _CAP_DAC_OVERRIDE
            return await self._as_root(self._machine.programs.mount, ["isobox-mount", address, path], rights) >> 8

    async def _as_root(self, program: Path, argv: Sequence[str], capabilities: int) -> int:
        """Run a program of ours inside: its wait status."""
        binary = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self.in_use():
                pid = await self.control.start_as_root(binary, argv, capabilities=capabilities)
                return await self.control.wait(pid, timeout=_BOOT_TIMEOUT_S)
        finally:
            os.close(binary)

    # ---- the ways out

    async def release(self) -> None:
        """Let go of it without ending it: the next server takes it over."""
        self._destroying = True
        await self._tasks.cancel()
        self._close_ends()
        if self._process is not None:
            self._process.close()
            self._process = None

    def _close_ends(self) -> None:
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._link is not None:
            self._link.close()
            self._link = None
        elif self._ends is not None:  # never opened
            for fd in self._ends:
                os.close(fd)
        self._ends = None

    async def destroy(self) -> Usage:
        """End it and remove every trace; never asks the guest. Returns what it had used. Idempotent."""
        self._destroying = True
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        await self._tasks.cancel()
        usage = self.cgroup.usage()
        if self._process is not None:
            self._process.kill()
            self.cgroup.thaw()  # version 1's freezer holds even SIGKILL back
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self._process.wait()
            self._process.close()
            self._process = None
        self._close_ends()
        await self.clean_up(self._machine, self.id)
        return usage

    @staticmethod
    async def clean_up(machine: Machine, id_: str) -> None:
        """Remove whatever a sandbox of that id left on this machine, dead or alive."""
        folder = machine.folder / id_
        cgroup = machine.cgroup(made_under(folder))
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
        if machine.links is not None:
            await machine.links.release(id_)
        mounts.detach(folder / "overlay")
        mounts.detach(folder / "runsc" / "null-netns")  # a newer runsc keeps its gofer's network namespace there
        # Ours alone and small: a handful of files that runsc and we wrote.
        shutil.rmtree(folder, ignore_errors=True)


def post_mortem(machine: Machine, id_: str, resources: Resources) -> End:
    """Why a sandbox that ended by itself did so: its control group remembers until it is removed."""
    usage = machine.cgroup(made_under(machine.folder / id_)).usage()
    if usage.oom_kills:
        limit, peak = resources.memory_mb, usage.memory_peak_bytes >> 20
        return End("oom", f"out of memory: peak {peak} MiB with its files on disk, memory_mb is {limit}", usage)
    return End("exited", "PID 1 of the sandbox has ended", usage)


def made_under(folder: Path) -> str:
    """The id that the sandbox of this folder was made under."""
    try:
        return (folder / "born").read_text()
    except FileNotFoundError:
        return folder.name


def _set_pipe_size(fd: int) -> None:
    fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_SIZE)
