"""PID 1's channel, attacked by root inside, on the real runsc: out of reach, or the sandbox's own end."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from common.tasks import TaskOwner
from fs.images import ImageStore
from isolation import cgroups, runsc
from isolation.channel.frames import StartFlag, encode_request
from isolation.channel.inbox import Inbox
from isolation.errors import SandboxGone
from isolation.guest import build
from isolation.keeper import Keeper
from isolation.platforms import choose_platform
from isolation.sandbox import Machine, Sandbox
from isolation.spec import Resources

CACHE = Path(os.environ.get("ISOBOX_CACHE", "/var/cache/isobox"))
ID = "sbx" + "q" * 26
SMALL = Resources(cpu=1, memory_mb=256, disk_mb=64, pids=64)

ATTACKS = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.argtypes = [ctypes.c_long] * 7
told = {}

def tried(name, deed):
    try:
        deed()
        told[name] = "done"
    except OSError as error:
        told[name] = errno.errorcode.get(error.errno, str(error.errno))

def syscall(number, *arguments):
    ctypes.set_errno(0)
    got = libc.syscall(number, *arguments, *[0] * (6 - len(arguments)))
    if got < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return got

for path in ("/proc/1/fd/0", "/proc/1/fd/1", "/proc/1/fd/2", "/proc/1/task/1/fd/1", "/proc/1/mem"):
    tried("read " + path, lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    tried("write " + path, lambda: os.open(path, os.O_WRONLY | os.O_NONBLOCK))
tried("link /proc/1/exe", lambda: os.readlink("/proc/1/exe"))
tried("umount /proc/1/fd", lambda: syscall(166, ctypes.cast(ctypes.c_char_p(b"/proc/1/fd"), ctypes.c_void_p).value, 2))
tried("ptrace attach", lambda: syscall(101, 16, 1))
tried("ptrace seize", lambda: syscall(101, 0x4206, 1))
buffer = ctypes.create_string_buffer(8)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
at = ctypes.addressof(vector)
tried("process_vm_readv", lambda: syscall(310, 1, at, 1, at, 1))
tried("process_vm_writev", lambda: syscall(311, 1, at, 1, at, 1))

def steal():
    pidfd = syscall(434, 1)
    syscall(438, pidfd, 1)

tried("pidfd_getfd", steal)
print(json.dumps(told))
"""


def image() -> Path:
    store = ImageStore(CACHE / "images", guest=lambda: build.guest(CACHE))
    return store.path(store.ensure("python"))


def in_sandbox(folder: Path, work: Callable[[Sandbox], Awaitable[None]]) -> None:
    async def run() -> None:
        keeper = Keeper(folder / "keeper.sock")
        keeper.connect()
        (folder / "run").mkdir()
        found = await choose_platform(await runsc.find(os.environ.get("ISOBOX_RUNSC"), CACHE), "auto")
        machine = Machine(found, cgroups.detect(), keeper, folder / "run", build.brought(CACHE))
        sandbox = await Sandbox.create(machine, ID, image=image(), resources=SMALL)
        try:
            await work(sandbox)
        finally:
            await sandbox.destroy()
            keeper.close()

    asyncio.run(run())


async def as_root(sandbox: Sandbox, *argv: str) -> str:
    inbox = Inbox()
    request = encode_request(user="root", cwd="/", argv=[each.encode() for each in argv], env={"PATH": os.defpath})
    flags = StartFlag.ROOT_OK | StartFlag.NO_STDIN
    guest = await sandbox.link.start(inbox, request, flags=flags, timeout=20)
    said = b"".join([piece async for piece in inbox.pieces(sandbox.link, guest)])
    sandbox.link.forget(guest)
    assert not inbox.notes, inbox.notes.decode()
    return said.decode()


RACE = """
import json, os
names = set()
while not os.path.exists("/tmp/enough"):
    newest = max(int(name) for name in os.listdir("/proc") if name.isdigit())
    for pid in range(newest, newest + 3):
        for number, way in (("0", os.O_RDONLY), ("1", os.O_WRONLY)):
            try:
                fd = os.open(f"/proc/{pid}/fd/{number}", way | os.O_NONBLOCK)
            except OSError:
                continue
            names.add(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0])
            os.close(fd)
print(json.dumps(sorted(names)))
"""


def test_root_inside_gets_neither_descriptors_nor_memory_of_pid_1(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        told = json.loads(await as_root(sandbox, "python3", "-c", ATTACKS))
        assert "done" not in told.values(), told

    in_sandbox(tmp_path, work)


def test_nor_does_it_get_them_from_a_process_that_is_just_being_started(tmp_path: Path) -> None:
    """Until it has become its program it is a copy of PID 1, and 0 and 1 the channel ("host:[…]" by name)."""

    async def work(sandbox: Sandbox) -> None:
        async with TaskOwner() as tasks:
            racing = tasks.spawn(as_root(sandbox, "python3", "-c", RACE), name="race")
            for _ in range(60):
                assert await as_root(sandbox, "echo", "x") == "x\n"
            await as_root(sandbox, "touch", "/tmp/enough")
            opened = json.loads(await racing)
        assert opened, "it raced"
        assert "host" not in opened

    in_sandbox(tmp_path, work)


def test_a_pid_1_that_root_has_stopped_is_given_up_and_whoever_waits_is_told(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        async with TaskOwner() as tasks:
            tasks.spawn(sandbox.watch(), name="watch")
            with sandbox.in_use():
                waiting = tasks.spawn(as_root(sandbox, "sleep", "1000"), name="wait")
                tasks.spawn(as_root(sandbox, "sh", "-c", "kill -STOP 1"), name="stop")
                tasks.spawn(sandbox.watch_guest(1.0), name="heartbeat")
                end = await sandbox.ended
                assert (end.reason, "did not answer" in end.detail) == ("lost", True)
                with pytest.raises(SandboxGone):
                    await waiting

    in_sandbox(tmp_path, work)


def test_one_that_answers_is_not_given_up_whatever_its_limit(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        async with TaskOwner() as tasks:
            asked = [0]
            ping = sandbox.link.ping

            async def counting(*, timeout: float) -> None:
                asked[0] += 1
                await ping(timeout=30)

            sandbox.link.ping = counting  # type: ignore[method-assign]
            tasks.spawn(sandbox.watch_guest(0.04), name="heartbeat")
            with sandbox.in_use():
                while asked[0] < 10:
                    await as_root(sandbox, "true")
            assert sandbox.alive
            assert not sandbox.ended.done()

    in_sandbox(tmp_path, work)
