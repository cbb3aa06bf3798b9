"""PID 1 as a plain Linux program: built with sanitizers, driven over two pipes, fuzzed."""

import asyncio
import contextlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isolation.channel import frames
from isolation.channel.frames import FrameReader, FromGuest, Stage, StartFlag, ToGuest
from isolation.channel.link import Link, StartFailed
from isolation.errors import ChannelViolation
from isolation.guest import build


@pytest.fixture(scope="session")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the system's sanitizers where there is a C compiler, else with zig's own for undefined behaviour."""
    target = tmp_path_factory.mktemp("init") / "init"
    sources = [str(build.FOLDER / name) for name in build.INIT.sources]
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is not None:
        flags = ["-g", "-O1", "-Wall", "-Wextra", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        command = [compiler, *flags, *sources, "-o", str(target)]
    else:
        command = [sys.executable, "-m", "ziglang", "cc", "-fsanitize=undefined", "-g", *sources, "-o", str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


class Process:
    """A running init and our ends of its channel."""

    def __init__(self, program: Path) -> None:
        theirs_in, self.to_guest = os.pipe()
        self.from_guest, theirs_out = os.pipe()
        # No setsid, no capabilities needed; files it makes land in its own folder.
        self.process = subprocess.Popen(
            [str(program)], stdin=theirs_in, stdout=theirs_out, stderr=subprocess.PIPE, cwd=program.parent,
            env={"ASAN_OPTIONS": "detect_leaks=0"},
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)

    def end(self) -> bytes:
        for fd in (self.to_guest, self.from_guest):
            try:
                os.close(fd)
            except OSError:
                continue
        try:
            _, words = self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return words


@pytest.fixture
def running(init: Path) -> Iterator[Process]:
    process = Process(init)
    yield process
    words = process.end()
    assert process.process.returncode == 0, words.decode()[-2000:]


class Collector:
    def __init__(self) -> None:
        self.data = [b"", b""]
        self.holds = False

    def write(self, stream: int, data: memoryview) -> None:
        self.data[stream - 1] += bytes(data)


def linked(process: Process) -> Link:
    failures: list[Exception] = []
    return Link(os.dup(process.to_guest), os.dup(process.from_guest), lost=failures.append)


def request(*argv: str, user: str = "root", cwd: str = "/", **env: str) -> bytes:
    return frames.encode_request(user=user, cwd=cwd, argv=[a.encode() for a in argv], env=env)


async def run(
    link: Link, *argv: str, stdin: bytes | None = None, flags: StartFlag = StartFlag.ROOT_OK
) -> tuple[Collector, object]:
    sink = Collector()
    flags |= StartFlag(0) if stdin is not None else StartFlag.NO_STDIN
    guest = await link.start(sink, request(*argv), flags=flags, timeout=5)
    if stdin is not None:
        await link.write_input(guest, stdin)
        link.end_input(guest)
    await asyncio.wait_for(guest.complete, 20)
    link.forget(guest)
    return sink, guest.account.report


def test_exec_streams_and_exit(running: Process) -> None:
    async def work() -> None:
        link = linked(running)
        await link.open([], timeout=5)
        sink, report = await run(link, "sh", "-c", "cat; echo err >&2; exit 9", stdin=b"x" * 300_000)
        assert sink.data == [b"x" * 300_000, b"err\n"]
        assert (report.signalled, report.code) == (False, 9)  # type: ignore[attr-defined]
        sink, report = await run(link, "sh", "-c", "kill -TERM $$")
        assert (report.signalled, report.code) == (True, signal.SIGTERM)  # type: ignore[attr-defined]
        sink, report = await run(link, "head", "-c", "5000000", "/dev/zero")
        assert sink.data[0] == bytes(5_000_000)
        await link.ping(timeout=5)
        results = await asyncio.gather(*(run(link, "echo", str(i)) for i in range(40)))
        assert [sink.data[0] for sink, _ in results] == [f"{i}\n".encode() for i in range(40)]
        link.close()

    asyncio.run(work())


def test_starts_that_fail_say_where(running: Process) -> None:
    async def work() -> None:
        link = linked(running)
        await link.open([], timeout=5)
        for body, flags, stage in (
            (request("/no/such"), StartFlag.ROOT_OK, Stage.EXEC),
            (request("true", cwd="/no/such"), StartFlag.ROOT_OK, Stage.CWD),
            (request("true", user="no-such-user"), StartFlag.ROOT_OK, Stage.USER),
            (request("true"), StartFlag(0), Stage.USER),
            (b"garbage", StartFlag.ROOT_OK, Stage.REQUEST),
            (struct.pack("<IIQQ", 1 << 30, 1 << 30, 0, 0) + b"a\0b\0", StartFlag.ROOT_OK, Stage.REQUEST),
        ):
            with pytest.raises(StartFailed) as failed:
                await link.start(Collector(), body, flags=flags | StartFlag.NO_STDIN, timeout=5)
            assert failed.value.stage == stage
        link.close()

    asyncio.run(work())


def test_a_new_link_hears_the_rest_once(running: Process) -> None:
    """The host dies again and again, even in the middle of reading; the log says how far it got."""

    async def work() -> None:
        script = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; exit 3"
        expected = b"".join(b"%d\n" % i for i in range(20000))
        link = linked(running)
        await link.open([], timeout=5)
        sink = Collector()
        guest = await link.start(
            sink, request("sh", "-c", script), flags=StartFlag.ROOT_OK | StartFlag.NO_STDIN, timeout=5
        )
        for _ in range(12):
            await asyncio.sleep(0.005)
            link.close()
            os.set_blocking(running.from_guest, False)
            with contextlib.suppress(BlockingIOError):
                os.read(running.from_guest, 777)  # lost with the host that read it
            link = linked(running)
            from isolation.channel.link import GuestExec

            guest = GuestExec(guest.number, sink, received=(len(sink.data[0]), len(sink.data[1])))
            missing = await link.open([guest, GuestExec(999, Collector())], timeout=5)
            assert missing == {999}
        await asyncio.wait_for(guest.complete, 30)
        assert sink.data[0] == expected
        assert guest.account.report is not None
        assert guest.account.report.code == 3
        link.close()

    asyncio.run(work())


def test_a_slow_reader_stops_its_own_process_only(running: Process) -> None:
    async def work() -> None:
        link = linked(running)
        await link.open([], timeout=5)
        slow = Collector()
        slow.holds = True
        flags = StartFlag.ROOT_OK | StartFlag.NO_STDIN
        flood = await link.start(slow, request("head", "-c", "9000000", "/dev/zero"), flags=flags, timeout=5)
        sink, _ = await run(link, "echo", "quick")
        assert sink.data[0] == b"quick\n"
        await asyncio.sleep(0.2)
        assert len(slow.data[0]) == frames.STREAM_WINDOW
        assert not flood.exited.done()
        slow.holds = False
        link.acknowledge(flood)
        await asyncio.wait_for(flood.complete, 20)
        assert len(slow.data[0]) == 9_000_000
        link.close()

    asyncio.run(work())


def test_background_processes_outlive_their_exec_quietly(running: Process) -> None:
    async def work() -> None:
        link = linked(running)
        await link.open([], timeout=5)
        began = time.monotonic()
        sink, _ = await run(link, "sh", "-c", "(sleep 0.3; echo late) & echo early")
        assert sink.data[0] == b"early\n"
        assert time.monotonic() - began < 0.3
        await asyncio.sleep(0.5)
        sink, _ = await run(link, "echo", "fine")
        assert sink.data[0] == b"fine\n"
        link.close()

    asyncio.run(work())


small = st.integers(0, 6)
forged = st.builds(
    lambda type_, stream, flags, exec_, aux, offset, payload, lie: (
        frames.HEADER.pack(lie if lie is not None else len(payload), type_, stream, flags, exec_, aux, offset) + payload
    ),
    type_=st.sampled_from([*(t.value for t in ToGuest if t != ToGuest.HELLO), 0, 99]),
    stream=st.integers(0, 3),
    flags=st.integers(0, 15),
    exec_=small,
    aux=st.one_of(st.integers(0, 3), st.integers(0, (1 << 32) - 1)),
    offset=st.one_of(small, st.integers(0, (1 << 64) - 1)),
    payload=st.one_of(
        st.binary(max_size=300),
        st.sampled_from([request("true"), request("cat"), request("/no/such"), request("sh", "-c", "echo hi")]),
    ),
    lie=st.one_of(st.none(), st.none(), st.none(), st.integers(0, (1 << 32) - 1)),
)


@given(st.lists(forged, max_size=25))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_frames_crash_it_and_a_hello_brings_it_back(init: Path, items: list[bytes]) -> None:
    """Signals are aimed at processes it started itself (an exec's number), so the host is in no danger."""
    process = Process(init)
    os.set_blocking(process.from_guest, False)
    for item in items:
        os.write(process.to_guest, item[: frames.FRAME_FROM_HOST])
    deadline = time.monotonic() + 10
    nonce, reader, back = os.urandom(16), FrameReader(), False
    reader.sync(frames.hello_back(nonce))
    said = 0.0
    while not back:
        assert time.monotonic() < deadline, "it does not answer"
        if time.monotonic() - said > 0.05:  # it takes a hello at the head of a read: say it to an empty pipe
            os.write(process.to_guest, frames.encode(ToGuest.HELLO, payload=frames.MAGIC + nonce))
            said = time.monotonic()
        try:
            n = os.readv(process.from_guest, [reader.space()])
        except BlockingIOError:
            time.sleep(0.002)
            continue
        assert n > 0, process.end().decode()[-2000:]
        back = any(frame.type == FromGuest.HELLO_BACK for frame in reader.feed(n))
    words = process.end()
    assert process.process.returncode == 0, words.decode()[-2000:]


def test_the_largest_process_is_killed_and_its_exec_named(running: Process) -> None:
    async def work() -> None:
        link = linked(running)
        await link.open([], timeout=5)
        assert link.can_relieve
        hungry = "x = bytearray(64 << 20); print('full', flush=True); input()"
        flags, sinks = StartFlag.ROOT_OK, [Collector(), Collector(), Collector()]
        small = await link.start(sinks[0], request("sleep", "100"), flags=flags, timeout=5)
        large = await link.start(sinks[1], request(sys.executable, "-c", hungry), flags=flags, timeout=5)
        parent = f"import subprocess, sys; print(subprocess.run([sys.executable, '-c', {hungry!r}]).returncode)"
        family = await link.start(sinks[2], request(sys.executable, "-c", parent), flags=flags, timeout=5)
        async with asyncio.timeout(20):
            while not sinks[1].data[0] or not sinks[2].data[0]:
                await asyncio.sleep(0.01)
        spared = await link.relieve(spare=1, least_mb=0, timeout=5)
        assert (spared.pid, spared.exec) == (0, None)
        assert spared.root_bytes > 0
        assert (await link.relieve(spare=0, least_mb=4096, timeout=5)).pid == 0, "nothing is so large"
        first = await link.relieve(spare=0, least_mb=32, timeout=5)
        second = await link.relieve(spare=0, least_mb=32, timeout=5)
        assert {first.exec, second.exec} == {large, family}, "a child's exec is that of its parent"
        assert min(first.resident_bytes, second.resident_bytes) >= 64 << 20
        assert (await link.relieve(spare=0, least_mb=32, timeout=5)).pid == 0, "nobody is killed twice"
        await asyncio.wait_for(asyncio.gather(large.exited, family.complete), 20)
        assert large.account.report is not None
        assert (large.account.report.signalled, large.account.report.code) == (True, signal.SIGKILL)
        assert sinks[2].data[0].endswith(b"-9\n")
        link.signal(small, signal.SIGKILL, group=True)
        await asyncio.wait_for(small.complete, 20)
        link.close()

    asyncio.run(work())


def test_the_build_is_reproducible(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for program in (build.INIT, build.FILES):
        program.compile(tmp_path / "a")
        program.compile(tmp_path / "elsewhere" / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "elsewhere" / "b").read_bytes()
    parts = [build.FOLDER / name for name in (*build.INIT.sources, *build.INIT.headers)]
    assert sum(len(path.read_text().splitlines()) for path in parts) < 1800, "PID 1 can be read in an hour"


def test_the_reader_refuses_what_no_init_sends() -> None:
    reader = FrameReader()
    space = reader.space()
    space[:24] = frames.HEADER.pack(10, 3, 0, 0, 0, 0, 0)
    with pytest.raises(ChannelViolation):
        list(reader.feed(24))
