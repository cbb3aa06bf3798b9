"""The link to one sandbox's PID 1: two pipes, many execs.

The thin shell around frames.py and streams.py. A link begins with `open`, on a new sandbox and after each restart of
the server alike; from then on frames are handled as they arrive, one read a turn of the loop, each byte going straight
to its exec's sink. What PID 1 sends is hostile: whoever breaks the protocol loses the link.
"""

import asyncio
import contextlib
import os
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from common.text import errno_text
from isolation.channel.frames import (
    EXECS_MAX,
    MAGIC,
    PAYLOAD_FROM_HOST,
    STREAM_WINDOW,
    Frame,
    FrameReader,
    FromGuest,
    Stage,
    StartFlag,
    ToGuest,
    decode_exit,
    encode,
    encode_start,
    hello_back,
)
from isolation.channel.streams import ExecAccount
from isolation.errors import ChannelViolation, GuestUnresponsive, IsolationError, LimitReached, SandboxGone

T = TypeVar("T")
_ACK_EVERY: Final = STREAM_WINDOW // 4
_QUEUE_HIGH: Final = 256  # frames
_INPUT_AT_ONCE: Final = 32 * PAYLOAD_FROM_HOST
_SIGKILL: Final = 9
_RELIEVE_SINCE: Final = 2  # CHANNEL_VERSION in wire.h


class Sink(Protocol):
    """Where an exec's output goes."""

    def write(self, stream: int, data: memoryview) -> None:
        """Take output of stream 1 or 2; data is valid during the call only. Returns once it is safe from a crash."""

    @property
    def holds(self) -> bool:
        """Whether acknowledgement is withheld, and so the process stopped in the end."""


class StartFailed(IsolationError):
    """PID 1 could not start the process."""

    def __init__(self, stage: int, errno: int) -> None:
        super().__init__(f"start failed at {stage}: {errno_text(errno)}")
        self.stage = Stage(stage) if stage in set(Stage) else Stage.SYSTEM
        self.errno = errno


@dataclass(frozen=True, slots=True)
class Relief:
    """PID 1's answer to `Link.relieve`."""

    pid: int
    """The process inside that was killed; 0: none was."""
    resident_bytes: int
    root_bytes: int
    """What the changes to the root occupy, where that was why nothing was killed."""
    exec: "GuestExec | None"
    """The exec whose process it was, or a descendant of whose."""


class GuestExec:
    """One exec as the link sees it."""

    def __init__(self, number: int, sink: Sink, *, received: tuple[int, int] = (0, 0)) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.sink = sink
        self.account = ExecAccount(received)
        self.started: asyncio.Future[int] = loop.create_future()
        """The pid inside; StartFailed or what ended the link otherwise."""
        self.exited: asyncio.Future[None] = loop.create_future()
        """Resolves when the process has ended, output perhaps still to come."""
        self.complete: asyncio.Future[None] = loop.create_future()
        """Resolves when the process has ended and all its output is in the sink."""
        self.out_of_memory: str | None = None
        """Why a process of it was killed to relieve the sandbox, in words; None if none was."""
        self.input_moved = asyncio.Event()
        futures: list[asyncio.Future[Any]] = [self.started, self.exited, self.complete]
        for future in futures:
            future.add_done_callback(_seen)

    def fail(self, error: Exception) -> None:
        """The link is gone."""
        for future in (self.started, self.exited, self.complete):
            if not future.done():
                future.set_exception(error)
        self.input_moved.set()


def _seen(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()  # who is interested awaits it; nobody being so is no fault


class Link:
    """See the module. `lost` is called once, with the reason, when the link ends by itself."""

    def __init__(self, to_guest: int, from_guest: int, *, lost: Callable[[Exception], None]) -> None:
        """Takes over both descriptors."""
        self._loop = asyncio.get_running_loop()
        self._to_guest = to_guest
        self._from_guest = from_guest
        self._lost = lost
        self._error: Exception | None = None
        self._reader = FrameReader()
        self._queue: deque[bytes] = deque()
        self._writing = False
        self._drained = asyncio.Event()
        self._drained.set()
        self._execs: dict[int, GuestExec] = {}
        self._mentioned: set[int] = set()
        self._resuming = False
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._pongs: dict[int, asyncio.Future[None]] = {}
        self._pings = 0
        self._relief: asyncio.Future[Relief] | None = None
        self._version = 0
        self._silence = asyncio.Lock()
        self._allowed: int | None = None
        """How many queued frames may still be sent; None: all."""
        self._next = 1
        os.set_blocking(to_guest, False)
        os.set_blocking(from_guest, False)

    # ---- beginning and end

    @property
    def ended(self) -> bool:
        """Whether it has let go of its descriptors: their numbers may be others' by now."""
        return self._error is not None

    async def open(self, execs: list[GuestExec], *, timeout: float) -> set[int]:
        """Say hello and go on with these execs; returns the numbers of those that PID 1 has never heard of.

        What PID 1 runs beyond them is killed. GuestUnresponsive after timeout seconds.
        """
        nonce = secrets.token_bytes(16)
        self._execs = {each.number: each for each in execs}
        self._resuming = True
        self._reader.sync(hello_back(nonce))
        self._loop.add_reader(self._from_guest, self._readable)
        self._send(encode(ToGuest.HELLO, payload=MAGIC + nonce))
        await self._bounded(self._ready, timeout, "say hello")
        missing = set(self._execs) - self._mentioned
        self._next = max([0, *self._mentioned, *self._execs]) + 1
        for number in missing:
            del self._execs[number]
        return missing

    async def _bounded(self, future: "asyncio.Future[T]", timeout: float, deed: str) -> "T":
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(future)
        except TimeoutError:
            raise GuestUnresponsive(
                f"the sandbox's PID 1 did not {deed} within {timeout:g} s",
                hint="it may be starved or out of memory; terminate it if this goes on",
            ) from None

    def detach(self, execs: set[GuestExec]) -> None:
        """Let go of the descriptors and of these execs, which wait for another link; the others fail."""
        self._execs = {number: each for number, each in self._execs.items() if each not in execs}
        self._end(SandboxGone("the sandbox is paused"))

    @asynccontextmanager
    async def quiet(self, *, timeout: float) -> AsyncIterator[None]:
        """Inside, PID 1 has obeyed all that was sent and nothing more is sent: a checkpoint cuts no frame of ours."""
        await self._silence.acquire()
        try:
            answered = self._ask()
            self._allowed = len(self._queue)
            await self._bounded(answered, timeout, "answer")
            yield
        finally:
            self._allowed = None
            self._silence.release()
            if self._error is None and self._queue and not self._writing:
                self._write()

    def close(self) -> None:
        """Let go of the descriptors; PID 1 does not notice, the keeper has copies."""
        self._end(SandboxGone("the link was closed"))

    def _end(self, error: Exception) -> None:
        if self._error is not None:
            return
        self._error = error
        self._loop.remove_reader(self._from_guest)
        if self._writing:
            self._loop.remove_writer(self._to_guest)
        os.close(self._from_guest)
        os.close(self._to_guest)
        self._drained.set()
        for each in list(self._execs.values()):
            each.fail(error)
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._pongs.values()]
        for future in [*waiting, self._relief] if self._relief is not None else waiting:
            if not future.done():
                future.set_exception(error)
                _seen(future)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._end(error)
            self._lost(error)

    # ---- what we say

    def _send(self, *frames: bytes) -> None:
        if self._error is not None:
            raise self._error
        self._queue.extend(frames)
        if len(self._queue) > _QUEUE_HIGH:
            self._drained.clear()
        if not self._writing:
            self._write()

    def _write(self) -> None:
        while self._queue and self._allowed != 0:
            try:
                # One frame a write: a pipe takes so little whole or not at all, so that no crash of ours tears one.
                os.write(self._to_guest, self._queue[0])
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    self._loop.add_writer(self._to_guest, self._write)
                return
            except OSError:
                self._fail(SandboxGone("the sandbox has ended"))
                return
            self._queue.popleft()
            if self._allowed is not None:
                self._allowed -= 1
        if len(self._queue) <= _QUEUE_HIGH:
            self._drained.set()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._to_guest)

    async def start(
        self,
        sink: Sink,
        request: bytes,
        *,
        flags: StartFlag,
        rows: int = 0,
        cols: int = 0,
        timeout: float,
        number: int | None = None,
    ) -> GuestExec:
        """Start a process; StartFailed, GuestUnresponsive, LimitReached or SandboxGone."""
        if len(self._execs) >= EXECS_MAX * 3 // 4:
            raise LimitReached(f"{len(self._execs)} execs at once in one sandbox", hint="wait for some to end")
        await self._drained.wait()
        guest = GuestExec(self.reserve() if number is None else number, sink)
        self._execs[guest.number] = guest
        self._send(*encode_start(guest.number, request, flags=flags, rows=rows, cols=cols))
        try:
            await self._bounded(guest.started, timeout, "start the process")
        except StartFailed:
            self.forget(guest)
            raise
        except BaseException:
            self.abandon(guest)  # it may start yet, and nobody would know
            raise
        return guest

    def reserve(self) -> int:
        """A number for an exec that will be started."""
        self._next += 1
        return self._next - 1

    def forget(self, guest: GuestExec) -> None:
        """PID 1 may forget the exec: its exit and its output are safe."""
        if self._execs.pop(guest.number, None) is not None and self._error is None:
            self._send(encode(ToGuest.FORGET, exec_=guest.number))

    def abandon(self, guest: GuestExec, signal: int = _SIGKILL) -> None:
        """Nobody waits for this exec any more: it is ended, and forgotten once PID 1 tells of that."""
        self.signal(guest, signal, group=True)
        self._execs.pop(guest.number, None)

    def acknowledge(self, guest: GuestExec) -> None:
        """Tell PID 1 what is safe, unless the sink holds that back; worth a frame every so often."""
        for stream, account in enumerate(guest.account.out, 1):
            if account.received - account.acknowledged >= _ACK_EVERY and not guest.sink.holds and self._error is None:
                account.acknowledged = account.received
                self._send(encode(ToGuest.ACK, exec_=guest.number, stream=stream, offset=account.received))

    def signal(self, guest: GuestExec, signal: int, *, group: bool) -> None:
        """Send a signal to the process, or to its whole group."""
        with contextlib.suppress(SandboxGone):
            self._send(encode(ToGuest.SIGNAL, exec_=guest.number, aux=signal, flags=int(group)))

    def resize(self, guest: GuestExec, rows: int, cols: int) -> None:
        """Tell the exec's terminal its new size."""
        self._send(encode(ToGuest.RESIZE, exec_=guest.number, aux=rows << 16 | cols))

    async def write_input(self, guest: GuestExec, data: bytes) -> bool:
        """Send input as the process takes it; False if it takes no more."""
        view, account = memoryview(data), guest.account.input
        while view:
            if account.closed or guest.exited.done():
                return False
            if not account.credit:
                guest.input_moved.clear()
                await guest.input_moved.wait()
                continue
            await self._drained.wait()
            room = min(account.credit, _INPUT_AT_ONCE, len(view))
            frames = []
            for begin in range(0, room, PAYLOAD_FROM_HOST):
                piece = bytes(view[begin : min(begin + PAYLOAD_FROM_HOST, room)])
                frames.append(encode(ToGuest.STDIN, exec_=guest.number, offset=account.sent + begin, payload=piece))
            self._send(*frames)
            account.sent += room
            view = view[room:]
        return True

    def end_input(self, guest: GuestExec) -> None:
        """No more input will come."""
        self._send(encode(ToGuest.STDIN_EOF, exec_=guest.number, offset=guest.account.input.sent))

    async def ping(self, *, timeout: float) -> None:
        """Whether PID 1 answers; GuestUnresponsive if not."""
        await self._bounded(self._ask(), timeout, "answer")

    def _ask(self) -> "asyncio.Future[None]":
        """Send a PING; what is returned resolves with its PONG."""
        self._pings = number = self._pings % 0xFFFFFFFF + 1
        pong = self._pongs[number] = self._loop.create_future()
        pong.add_done_callback(lambda _: self._pongs.pop(number, None))
        self._send(encode(ToGuest.PING, aux=number))
        return pong

    @property
    def can_relieve(self) -> bool:
        """Whether PID 1 knows RELIEVE: that of a sandbox made by an older server does not."""
        return self._version >= _RELIEVE_SINCE and self._error is None

    async def relieve(self, *, spare: int, least_mb: int, timeout: float) -> Relief:
        """Have PID 1 kill the process that holds most memory; one call at a time.

        spare: where the changes to the root occupy so many bytes, nothing is killed (0: whatever they occupy).
        least_mb: a process that holds less MiB is not killed.
        GuestUnresponsive after timeout seconds; SandboxGone.
        """
        answer = self._relief = self._loop.create_future()
        answer.add_done_callback(_seen)
        try:
            self._send(encode(ToGuest.RELIEVE, aux=least_mb, offset=spare))
            return await self._bounded(answer, timeout, "free memory")
        finally:
            self._relief = None

    # ---- what we hear

    def _readable(self) -> None:
        try:
            size = os.readv(self._from_guest, [self._reader.space()])
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(SandboxGone(f"the channel broke: {error}"))
            return
        if size == 0:
            self._fail(SandboxGone("the sandbox has ended"))
            return
        try:
            for frame in self._reader.feed(size):
                self._handle(frame)
                if self._error is not None:
                    return
        except ChannelViolation as error:
            self._fail(error)

    def _handle(self, frame: Frame) -> None:
        if frame.type == FromGuest.HELLO_BACK:
            self._version = int.from_bytes(frame.payload[-4:], "little")
            return
        if frame.type == FromGuest.RELIEVED:
            self._relieved(frame)
            return
        if frame.type == FromGuest.READY:
            self._resume()
            return
        if frame.type == FromGuest.PONG:
            # An answer stands for every question before it.
            for number, pong in list(self._pongs.items()):
                if number <= frame.aux and not pong.done():
                    pong.set_result(None)
            return
        if self._resuming:
            self._mentioned.add(frame.exec)
        guest = self._execs.get(frame.exec)
        if guest is None:
            self._handle_stranger(frame)
        else:
            self._handle_exec(guest, frame)

    def _handle_stranger(self, frame: Frame) -> None:
        # Of an earlier server that did not live to write it down, or whose end we had not acknowledged.
        if frame.type == FromGuest.STARTED:
            self._send(encode(ToGuest.SIGNAL, exec_=frame.exec, aux=_SIGKILL, flags=1))
        elif frame.type in (FromGuest.EXIT, FromGuest.FAILED):
            self._send(encode(ToGuest.FORGET, exec_=frame.exec))

    def _relieved(self, frame: Frame) -> None:
        if self._relief is None or self._relief.done():
            return  # the answer to a question that was given up
        killed = bool(frame.aux)
        self._relief.set_result(
            Relief(
                pid=frame.aux,
                resident_bytes=frame.offset if killed else 0,
                root_bytes=0 if killed else frame.offset,
                exec=self._execs.get(frame.exec),
            )
        )

    def _handle_exec(self, guest: GuestExec, frame: Frame) -> None:
        account = guest.account
        if frame.type == FromGuest.OUT:
            fresh = account.output(frame)
            if fresh:
                guest.sink.write(frame.stream, fresh)
                self.acknowledge(guest)
        elif frame.type == FromGuest.STARTED:
            if not guest.started.done():
                guest.started.set_result(frame.aux)
        elif frame.type == FromGuest.FAILED:
            if not guest.started.done():
                guest.started.set_exception(StartFailed(frame.stream, frame.aux))
        elif frame.type == FromGuest.STDIN_ACK:
            account.input.acknowledge(frame, resuming=self._resuming)
            guest.input_moved.set()
        elif frame.type == FromGuest.EXIT:
            account.exited(decode_exit(frame.payload))
            guest.input_moved.set()
            if not guest.exited.done():
                guest.exited.set_result(None)
        if account.complete and not guest.complete.done():
            guest.complete.set_result(None)

    def _resume(self) -> None:
        if not self._resuming:
            raise ChannelViolation("READY out of turn")
        self._resuming = False
        for number in self._mentioned & set(self._execs):
            for stream, account in enumerate(self._execs[number].account.out, 1):
                self._send(encode(ToGuest.RESUME, exec_=number, stream=stream, offset=account.received))
        if not self._ready.done():
            self._ready.set_result(None)
