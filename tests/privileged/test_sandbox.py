"""One sandbox on the real kernel and the real runsc, without the service."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from common.tasks import TaskOwner
from fs.images import ImageStore
from isolation import cgroups, mounts, runsc
from isolation.errors import RunscError
from isolation.foreground import Foreground
from isolation.guest import build
from isolation.keeper import Keeper
from isolation.platforms import choose_platform, works
from isolation.pool import Pool, Shape
from isolation.sandbox import Machine, Sandbox
from isolation.spec import Resources

CACHE = Path(os.environ.get("ISOBOX_CACHE", "/var/cache/isobox"))
ID = "sbx" + "p" * 26
SMALL = Resources(cpu=0.5, memory_mb=128, disk_mb=32, pids=64)


def image() -> Path:
    store = ImageStore(CACHE / "images", guest=lambda: build.guest(CACHE))
    return store.path(store.ensure("python"))


def on_machine(folder: Path, work: Callable[[Machine], Awaitable[None]]) -> None:
    async def run() -> None:
        keeper = Keeper(folder / "keeper.sock")
        keeper.connect()
        (folder / "run").mkdir()
        found = await runsc.find(os.environ.get("ISOBOX_RUNSC"), CACHE)
        try:
            await work(
                Machine(
                    found,
                    cgroups.detect(),
                    keeper,
                    folder / "run",
                    build.brought(CACHE),
                )
            )
        finally:
            keeper.close()

    asyncio.run(run())


def groups() -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"**/{ID}"))


def test_the_kernel_holds_what_was_promised_and_lets_go_of_all(tmp_path: Path) -> None:
    async def work(machine: Machine) -> None:
        sandbox = await Sandbox.create(machine, ID, image=image(), resources=SMALL)
        pids = sandbox.cgroup.processes()
        assert len(pids) > 1, "the sentry and its stubs were born in the group"
        layout = cgroups.detect()
        if layout.unified is None:
            assert (
                int((layout.v1["memory"] / "isobox" / ID / "memory.limit_in_bytes").read_text()) == (160 + 256) << 20
            ), "256 MiB for the time in which the largest process is killed"
            assert int((layout.v1["cpu"] / "isobox" / ID / "cpu.cfs_quota_us").read_text()) == 50_000
        else:
            assert int((layout.unified / "isobox" / ID / "memory.max").read_text()) == (160 + 256) << 20, (
                "256 MiB for the time in which the largest process is killed"
            )
        assert str(machine.folder) not in Path("/proc/self/mountinfo").read_text(), "its tmpfs is detached"
        assert (machine.folder / ID).stat().st_mode & 0o777 == 0o700
        await sandbox.control.pause()
        await sandbox.control.resume()
        assert [each.command for each in await sandbox.control.processes()] == ["init"]
        await sandbox.destroy()
        assert groups() == []
        assert list(machine.folder.iterdir()) == []
        assert not any(Path(f"/proc/{pid}/root").exists() for pid in pids)

    on_machine(tmp_path, work)


def test_nobody_freezes_what_is_being_ended(tmp_path: Path) -> None:
    """Version 1's freezer holds back SIGKILL: what was frozen in that moment stayed for ever."""

    async def work(machine: Machine) -> None:
        sandbox = await Sandbox.create(machine, ID, image=image(), resources=SMALL)
        async with TaskOwner() as tasks:
            ending = tasks.spawn(sandbox.destroy(), name="end")
            await asyncio.sleep(0)
            sandbox.freeze()
            assert not sandbox.frozen
            await ending
        assert groups() == []

    on_machine(tmp_path, work)


def test_one_that_is_given_up_while_it_is_frozen_ends(tmp_path: Path) -> None:
    async def work(machine: Machine) -> None:
        sandbox = await Sandbox.create(machine, ID, image=image(), resources=SMALL)
        sandbox.freeze()
        sandbox.give_up("it was silent")
        await sandbox.watch()
        assert sandbox.ended.result().detail == "it was silent"
        await sandbox.destroy()
        assert groups() == []

    on_machine(tmp_path, work)


def test_what_was_forgotten_while_it_was_made_is_ended_though_the_pool_stops(tmp_path: Path) -> None:
    async def work(machine: Machine) -> None:
        made, forgotten, ending = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def furnish(_: Shape, __: Sandbox) -> dict[str, str]:
            made.set()
            await forgotten.wait()
            return {}

        async def discard(sandbox: Sandbox) -> None:
            ending.set()
            await sandbox.destroy()

        pool = Pool(machine, Foreground(), floor=1, ceiling=1, furnish=furnish, discard=discard)
        assert pool.claim(Shape(image(), SMALL.memory_mb, SMALL.disk_mb, started=False, copy="of it")) is None
        tasks = TaskOwner()
        tasks.spawn(pool.run(), name="pool")
        await made.wait()
        pool.forget("of it")
        forgotten.set()
        await ending.wait()
        await tasks.cancel()
        await pool.drain()
        assert list(machine.folder.iterdir()) == []

    on_machine(tmp_path, work)


def test_a_create_that_fails_unwinds(tmp_path: Path) -> None:
    async def work(machine: Machine) -> None:
        (tmp_path / "no.erofs").write_bytes(b"not an image")
        with pytest.raises(RunscError, match="image size is too small"):
            await Sandbox.create(machine, ID, image=tmp_path / "no.erofs", resources=SMALL)
        assert groups() == []
        assert list(machine.folder.iterdir()) == []
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()

    on_machine(tmp_path, work)


def test_a_create_that_is_cancelled_unwinds(tmp_path: Path) -> None:
    async def work(machine: Machine) -> None:
        for limit in (0.001, 0.02, 0.06, 0.1, 0.14):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    sandbox = await Sandbox.create(machine, ID, image=image(), resources=SMALL)
                await sandbox.destroy()
            assert groups() == []
            assert list(machine.folder.iterdir()) == []

    on_machine(tmp_path, work)


def test_a_platform_is_tried_within_a_bound_and_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("isolation.platforms.PROBE_TIMEOUT_S", 3.0)

    async def work() -> None:
        found = await runsc.find(os.environ.get("ISOBOX_RUNSC"), CACHE)
        assert (await choose_platform(found, "auto")).platform in ("systrap", "kvm", "ptrace")
        memory = tmp_path / "platform.json"
        chosen = await choose_platform(found, "auto", memory=memory)
        with monkeypatch.context() as unasked:
            unasked.setattr("isolation.platforms.works", None)
            assert await choose_platform(found, "auto", memory=memory) == chosen
        memory.write_text("damaged")
        assert await choose_platform(found, "auto", memory=memory) == chosen
        with pytest.raises(RunscError, match="runs no sandbox on this machine"):
            await choose_platform(found, "no-such-platform")
        problem = await works(found, "kvm")  # whatever it says, it says it soon and leaves nothing
        assert problem is None or problem

    asyncio.run(work())


def test_detaching_what_is_not_mounted_is_no_error(tmp_path: Path) -> None:
    mounts.detach(tmp_path)
    mounts.mount_tmpfs(tmp_path, size_mb=1)
    mounts.detach(tmp_path)
    mounts.detach(tmp_path / "absent")


def test_the_sentry_has_no_rights_of_its_own(tmp_path: Path) -> None:
    async def work(machine: Machine) -> None:
        sandbox = await Sandbox.create(machine, ID, image=image(), resources=SMALL)
        lines = (line.partition(":") for line in Path(f"/proc/{sandbox.pid}/status").read_text().splitlines())
        status = {name: text.strip() for name, _, text in lines}
        files = set(os.listdir(f"/proc/{sandbox.pid}/root"))
        await sandbox.destroy()
        assert status["Uid"].split() == ["65534"] * 4
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), "a filter of system calls"
        assert files <= {"etc", "proc"}, "none of the host's"

    on_machine(tmp_path, work)
