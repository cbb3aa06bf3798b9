"""The link to one sandbox's PID 1: two pipes, many execs.

The thin shell around frames.py and streams.py. A link begins with `open`, on a new sandbox and after each restart of
the server alike; from then on frames are handled as they arrive, each byte going straight to its exec's sink. What
PID 1 sends is hostile: whoever breaks the protocol loses the link. However a link ends, all that wait on it are told
that the sandbox has gone.

Neither side can make the other's work or memory grow (docs/adr/0023):

- A turn of the loop handles a few frames of a link. More of them wait in line with all that is long (`common.turns`).
- Frames that nobody asked for are counted; beyond a count they are a violation.
- What PID 1 has not taken yet is bounded. Beyond the bound input and starts wait, acknowledgements are held back, so
  that PID 1 has to wait, and signals and sizes are refused.
"""

import asyncio
import os
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from common.text import errno_text
from common.turns import turn_budget
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
_QUEUE_HIGH: Final = 1 << 20
"""Bytes that may wait for PID 1 before whoever sends has to wait as well."""

_QUEUE_MAX: Final = 16 << 20
"""Bytes after which the link ends: even what may not wait has a bound."""

_READ_MAX: Final = 256 << 10
_FRAMES_A_TURN: Final = 64
_FRAME_COST: Final = 4 << 10
"""Handling a frame takes as long as so many bytes."""

_STRANGERS_MAX: Final = 1 << 18
_STRANGERS_AT_FIRST: Final = 1 << 16
_STRANGERS_ABANDONED: Final = 1 << 16
"""Frames without an exec of ours: what a full pipe may hold of one that was abandoned while it printed byte by byte."""

_STRANGERS_FORGOTTEN: Final = 64
_ERRNO_MAX: Final = 4095
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
        self.announce: Callable[[], None] | None = None
        """Called when it has started, before any of its output is written."""
        self.input_ended = False
        """Whether PID 1 was told that no more input comes."""
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
        self._frames: Iterator[Frame] | None = None
        """What the last read brought and no turn has handled yet."""
        self._in_line = False
        self._turn = turn_budget()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._writing = False
        self._drained = asyncio.Event()
        self._drained.set()
        self._owed: set[GuestExec] = set()
        """Execs whose acknowledgements are held back until PID 1 takes frames again."""
        self._strangers = _STRANGERS_AT_FIRST
        """How many more frames without an exec of ours are let pass."""
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

    @property
    def is_quiet(self) -> bool:
        """Whether a checkpoint has it say nothing."""
        return self._silence.locked()

    async def open(self, execs: list[GuestExec], *, timeout: float) -> set[int]:
        """Say hello and go on with these execs; returns the numbers of those that PID 1 has never heard of.

        What PID 1 runs beyond them is killed. GuestUnresponsive after timeout seconds.
        """
        nonce = secrets.token_bytes(16)
        self._execs = {each.number: each for each in execs}
        self._resuming = True
        self._frames = None
        self._reader.sync(hello_back(nonce))
        self._loop.add_reader(self._from_guest, self._readable)
        self._post(encode(ToGuest.HELLO, payload=MAGIC + nonce))
        await self._bounded(asyncio.shield(self._ready), timeout, "say hello")
        missing = set(self._execs) - self._mentioned
        for number in missing:
            del self._execs[number]
        return missing

    async def _bounded(self, result: Awaitable[T], timeout: float, deed: str) -> T:
        try:
            async with asyncio.timeout(timeout):
                return await result
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
            await self._bounded(asyncio.shield(answered), timeout, "answer")
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
            # Whatever broke it: who waits for something inside is told that there is nothing any more.
            gone = error if isinstance(error, SandboxGone) else SandboxGone(f"the sandbox broke its channel: {error}")
            self._end(gone)
            self._lost(error)

    # ---- what we say

    def _post(self, *frames: bytes) -> None:
        """Queue frames that may not wait: each answers something of which there is a bounded number."""
        if self._error is not None:
            raise self._error
        self._queue.extend(frames)
        self._queued += sum(map(len, frames))
        if self._queued > _QUEUE_MAX:
            self._fail(ChannelViolation("PID 1 takes nothing of what it is told"))
            return
        if self._queued > _QUEUE_HIGH:
            self._drained.clear()
        if not self._writing:
            self._write()

    @property
    def _full(self) -> bool:
        return self._queued > _QUEUE_HIGH

    async def _room(self) -> None:
        """Wait until PID 1 has taken enough of what was queued; what ended the link."""
        while self._full and self._error is None:
            await self._drained.wait()
        if self._error is not None:
            raise self._error

    def _refuse_if_full(self) -> None:
        if self._full:
            raise GuestUnresponsive(
                "the sandbox's PID 1 takes nothing of what it is told",
                hint="it may be stopped, starved or out of memory; terminate it if this goes on",
            )

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
            self._queued -= len(self._queue.popleft())
            if self._allowed is not None:
                self._allowed -= 1
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._to_guest)
        if not self._full:
            self._drained.set()
            owed, self._owed = self._owed, set()
            for guest in owed:
                self.acknowledge(guest)

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
        announce: Callable[[], None] | None = None,
    ) -> GuestExec:
        """Start a process; StartFailed, GuestUnresponsive, LimitReached or SandboxGone.

        announce is called before any of its output is written.
        """
        if len(self._execs) >= EXECS_MAX * 3 // 4:
            raise LimitReached(f"{len(self._execs)} execs at once in one sandbox", hint="wait for some to end")
        await self._bounded(self._room(), timeout, "take the request")
        guest = GuestExec(self.reserve() if number is None else number, sink)
        guest.announce = announce
        self._next = max(self._next, guest.number + 1)  # it may have been reserved on the link before this one
        self._execs[guest.number] = guest
        self._post(*encode_start(guest.number, request, flags=flags, rows=rows, cols=cols))
        try:
            await self._bounded(asyncio.shield(guest.started), timeout, "start the process")
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
        self._owed.discard(guest)
        if self._execs.pop(guest.number, None) is not None and self._error is None:
            self._expect_strangers(_STRANGERS_FORGOTTEN)
            self._post(encode(ToGuest.FORGET, exec_=guest.number))

    def abandon(self, guest: GuestExec, signal: int = _SIGKILL) -> None:
        """Nobody waits for this exec any more: it is ended, and forgotten once PID 1 tells of that."""
        self._owed.discard(guest)
        if self._execs.pop(guest.number, None) is not None and self._error is None:
            self._expect_strangers(_STRANGERS_ABANDONED)
            self._post(encode(ToGuest.SIGNAL, exec_=guest.number, aux=signal, flags=1))

    def _expect_strangers(self, count: int) -> None:
        self._strangers = min(_STRANGERS_MAX, self._strangers + count)

    def acknowledge(self, guest: GuestExec) -> None:
        """Tell PID 1 what is safe, unless the sink holds that back; worth a frame every so often."""
        for stream, account in enumerate(guest.account.out, 1):
            if account.received - account.acknowledged < _ACK_EVERY or guest.sink.holds or self._error is not None:
                continue
            if self._full:  # it has to wait, and whatever it sends beyond its credit is a violation
                self._owed.add(guest)
                return
            account.acknowledged = account.received
            self._post(encode(ToGuest.ACK, exec_=guest.number, stream=stream, offset=account.received))

    def signal(self, guest: GuestExec, signal: int, *, group: bool) -> None:
        """Send a signal to the process, or to its whole group; GuestUnresponsive where too much waits for PID 1.

        SIGKILL is never refused: it waits, once an exec, for PID 1 to take it.
        """
        if self._error is not None:
            return
        frame = encode(ToGuest.SIGNAL, exec_=guest.number, aux=signal, flags=int(group))
        if signal != _SIGKILL:
            self._refuse_if_full()
        elif self._full and frame in self._queue:
            return
        self._post(frame)

    def resize(self, guest: GuestExec, rows: int, cols: int) -> None:
        """Tell the exec's terminal its new size; GuestUnresponsive where too much waits for PID 1."""
        self._refuse_if_full()
        self._post(encode(ToGuest.RESIZE, exec_=guest.number, aux=rows << 16 | cols))

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
            if self._full:
                await self._room()
                continue  # others may have had the credit meanwhile
            room = min(account.credit, _INPUT_AT_ONCE, len(view))
            frames = []
            for begin in range(0, room, PAYLOAD_FROM_HOST):
                piece = bytes(view[begin : min(begin + PAYLOAD_FROM_HOST, room)])
                frames.append(encode(ToGuest.STDIN, exec_=guest.number, offset=account.sent + begin, payload=piece))
            self._post(*frames)
            account.sent += room
            view = view[room:]
        return True

    def end_input(self, guest: GuestExec) -> None:
        """No more input will come; said once."""
        if not guest.input_ended:
            guest.input_ended = True
            self._post(encode(ToGuest.STDIN_EOF, exec_=guest.number, offset=guest.account.input.sent))

    async def ping(self, *, timeout: float) -> None:
        """Whether PID 1 answers; GuestUnresponsive if not."""
        await self._bounded(asyncio.shield(self._ask()), timeout, "answer")

    def _ask(self) -> "asyncio.Future[None]":
        """Send a PING; what is returned resolves with its PONG."""
        self._pings = number = self._pings % 0xFFFFFFFF + 1
        pong = self._pongs[number] = self._loop.create_future()
        pong.add_done_callback(lambda _: self._pongs.pop(number, None))
        self._post(encode(ToGuest.PING, aux=number))
        return pong

    @property
    def can_relieve(self) -> bool:
        """Whether PID 1 knows RELIEVE: that of a sandbox made by an older server does not."""
        return self._version >= _RELIEVE_SINCE and self._error is None

    async def relieve(self, *, spare: int, least_mb: int, timeout: float) -> Relief:
        """Have PID 1 kill the process that holds most memory.

        Where a question before is not answered yet, its answer is waited for and no other is asked: a PID 1 that was
        frozen or starved would kill a process for each.

        spare: where the changes to the root occupy so many bytes, nothing is killed (0: whatever they occupy).
        least_mb: a process that holds less MiB is not killed.
        GuestUnresponsive after timeout seconds; SandboxGone.
        """
        if (answer := self._relief) is None:
            self._post(encode(ToGuest.RELIEVE, aux=least_mb, offset=spare))
            answer = self._relief = self._loop.create_future()
            answer.add_done_callback(_seen)
        relief = await self._bounded(asyncio.shield(answer), timeout, "free memory")
        self._relief = None
        return relief

    # ---- what we hear

    def _readable(self) -> None:
        if not self._in_line:  # else what was read before comes first
            self._work()

    def _stand_in_line(self) -> None:
        if not self._in_line:
            self._in_line = True
            self._turn.later(self._work_in_line)

    def _work_in_line(self) -> None:
        self._in_line = False
        if self._error is None:
            self._work()

    def _work(self) -> None:
        """Read, and handle so much as one turn may; the rest, and whoever fills whole reads, waits in line."""
        size = 0
        if self._frames is None:
            try:
                size = os.readv(self._from_guest, [self._reader.space()[:_READ_MAX]])
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(SandboxGone(f"the channel broke: {error}"))
                return
            if size == 0:
                self._fail(SandboxGone("the sandbox has ended"))
                return
            self._frames = self._reader.feed(size)
        handled, more = self._handle_some(self._frames)
        self._turn.spend(size + handled * _FRAME_COST)
        if self._error is None:
            if not more:
                self._frames = None
            if more or size == _READ_MAX:
                self._stand_in_line()

    def _handle_some(self, frames: Iterator[Frame]) -> tuple[int, bool]:
        """Handle some frames: how many, and whether there may be more."""
        handled = 0
        try:
            for frame in frames:
                try:
                    self._handle(frame)
                except OSError as error:  # of a sink: the disk is full; the other frames are not to stand behind it
                    self._loop.call_exception_handler({"message": "output could not be kept", "exception": error})
                handled += 1
                if self._error is not None or handled == _FRAMES_A_TURN:
                    return handled, True
        except ChannelViolation as error:
            self._fail(error)
        except (
            Exception
        ) as error:  # a fault of ours ends the link, too: a frame that is left out would be lost in silence
            self._fail(error)
            raise
        return handled, False

    def _handle(self, frame: Frame) -> None:
        if frame.type == FromGuest.HELLO_BACK:
            self._version = int.from_bytes(frame.payload[-4:], "little")
            self._tolerate("HELLO_BACK")
            return
        if frame.type == FromGuest.RELIEVED:
            self._relieved(frame)
            return
        if frame.type == FromGuest.READY:
            self._resume()
            return
        if frame.type == FromGuest.PONG:
            self._handle_pong(frame)
            return
        if self._resuming:
            self._mentioned.add(frame.exec)
            if len(self._mentioned) > EXECS_MAX:
                raise ChannelViolation(f"more than {EXECS_MAX} execs")
        guest = self._execs.get(frame.exec)
        if guest is None:
            self._handle_stranger(frame)
        else:
            self._handle_exec(guest, frame)

    def _handle_pong(self, frame: Frame) -> None:
        if frame.aux > self._pings:
            raise ChannelViolation("PONG that answers no PING")
        # An answer stands for every question before it.
        answered = [number for number in self._pongs if number <= frame.aux]
        if not answered:
            self._tolerate("PONG")
        for number in answered:
            if not (pong := self._pongs[number]).done():
                pong.set_result(None)

    def _tolerate(self, what: str) -> None:
        """Let a frame pass that nobody waits for, so many times."""
        self._strangers -= 1
        if self._strangers < 0:
            raise ChannelViolation(f"too many frames that nobody waits for, the last a {what}")

    def _handle_stranger(self, frame: Frame) -> None:
        if not self._resuming and not 0 < frame.exec < self._next:
            raise ChannelViolation(f"frame of exec {frame.exec}, a number that was never given")
        self._tolerate(FromGuest(frame.type).name)
        # Of an earlier server that did not live to write it down, or whose end we had not acknowledged.
        if frame.type == FromGuest.STARTED:
            self._post(encode(ToGuest.SIGNAL, exec_=frame.exec, aux=_SIGKILL, flags=1))
        elif frame.type in (FromGuest.EXIT, FromGuest.FAILED):
            self._post(encode(ToGuest.FORGET, exec_=frame.exec))

    def _relieved(self, frame: Frame) -> None:
        if self._relief is None or self._relief.done():
            self._tolerate("RELIEVED")
            return
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
                if guest.announce is not None:
                    guest.announce()
        elif frame.type == FromGuest.FAILED:
            if not 0 < frame.aux <= _ERRNO_MAX:
                raise ChannelViolation(f"start failed with errno {frame.aux}")
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
        self._next = max([0, *self._mentioned, *self._execs]) + 1
        for number in self._mentioned & set(self._execs):
            for stream, account in enumerate(self._execs[number].account.out, 1):
                self._post(encode(ToGuest.RESUME, exec_=number, stream=stream, offset=account.received))
        if not self._ready.done():
            self._ready.set_result(None)
