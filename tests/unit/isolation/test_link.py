"""A link whose other side is hostile, or takes nothing: driven over two pipes, without a guest."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable

import pytest

from isolation.channel import link as link_module
from isolation.channel.frames import EXECS_MAX, HEADER, MAGIC, STREAM_WINDOW, FromGuest, StartFlag, ToGuest, hello_back
from isolation.channel.inbox import Inbox
from isolation.channel.link import GuestExec, Link
from isolation.errors import ChannelViolation, GuestUnresponsive, SandboxGone

_F_SETPIPE_SZ = 1031


def frame(
    type_: FromGuest, exec_: int = 0, payload: bytes = b"", *, stream: int = 0, aux: int = 0, offset: int = 0
) -> bytes:
    return HEADER.pack(len(payload), type_, stream, 0, exec_, aux, offset) + payload


class Peer:
    """PID 1's side of a channel, in the test's hands."""

    def __init__(self) -> None:
        self.hears, to_guest = os.pipe()
        from_guest, self.says = os.pipe()
        fcntl.fcntl(self.says, _F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(self.hears, False)
        os.set_blocking(self.says, False)
        self.lost: list[Exception] = []
        self.link = Link(to_guest, from_guest, lost=self.lost.append)

    async def open(self, execs: list[GuestExec], *numbers: int) -> None:
        """Answer HELLO, and tell of these execs, which were started."""
        opening = asyncio.get_running_loop().create_task(self.link.open(execs, timeout=30))
        await asyncio.sleep(0)
        hello = os.read(self.hears, 4096)
        assert hello[HEADER.size :].startswith(MAGIC)
        nonce = hello[HEADER.size + len(MAGIC) :]
        self.say(
            hello_back(nonce) + b"\1\0\0\0",
            *(frame(FromGuest.STARTED, n, aux=7) for n in numbers),
            frame(FromGuest.READY),
        )
        await opening

    def say(self, *frames: bytes) -> None:
        data = b"".join(frames)
        assert os.write(self.says, data) == len(data)

    def heard(self) -> list[tuple[int, int, int]]:
        """(type, exec, aux) of the frames that came."""
        data, found = b"", []
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.hears, 1 << 20):
                data += piece
        while data:
            length, type_, _, _, exec_, aux, _ = HEADER.unpack_from(data)
            found.append((type_, exec_, aux))
            data = data[HEADER.size + length :]
        return found

    def close(self) -> None:
        self.link.close()
        for fd in (self.hears, self.says):
            with contextlib.suppress(OSError):
                os.close(fd)


class Sink:
    def __init__(self) -> None:
        self.size = 0
        self.holds = False
        self.on_write: Callable[[], None] = lambda: None

    def write(self, stream: int, data: memoryview) -> None:
        self.size += len(data)
        self.on_write()


def with_peer(work: Callable[[Peer], Awaitable[None]]) -> None:
    async def run() -> None:
        peer = Peer()
        try:
            async with asyncio.timeout(60):
                await work(peer)
        finally:
            peer.close()

    asyncio.run(run())


async def settled(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


# ---- however a link ends, whoever waits for something is told


def rubbish(peer: Peer) -> None:
    peer.say(b"\xff" * 64)


def gone(peer: Peer) -> None:
    os.close(peer.says)


def closed(peer: Peer) -> None:
    peer.link.close()


@pytest.mark.parametrize("end", [rubbish, gone, closed])
def test_however_it_ends_every_waiter_is_told_that_the_sandbox_has_gone(end: Callable[[Peer], None]) -> None:
    async def work(peer: Peer) -> None:
        guest, inbox = GuestExec(1, Sink()), Inbox()
        reading = GuestExec(2, inbox)
        await peer.open([guest, reading], 1, 2)
        guest.account.input.sent = 1 << 20  # no credit: the process takes nothing

        async def quiet() -> None:
            async with peer.link.quiet(timeout=30):
                raise AssertionError("nobody answered")

        async def read() -> None:
            async for _ in inbox.pieces(peer.link, reading):
                raise AssertionError("nothing came")

        waiting = asyncio.gather(
            asyncio.shield(guest.exited),
            asyncio.shield(guest.complete),
            peer.link.write_input(guest, b"more"),
            peer.link.start(Sink(), b"request", flags=StartFlag(0), timeout=30),
            peer.link.ping(timeout=30),
            quiet(),
            read(),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
        end(peer)
        told = await waiting
        input_, *others = [told[2], *told[:2], *told[3:]]
        assert input_ is False or isinstance(input_, SandboxGone), input_
        assert all(isinstance(each, SandboxGone) for each in others), told
        with pytest.raises(SandboxGone):
            await peer.link.start(Sink(), b"request", flags=StartFlag(0), timeout=30)
        peer.link.signal(guest, 15, group=True)
        peer.link.abandon(guest)
        peer.link.forget(guest)

    with_peer(work)


@pytest.mark.parametrize(
    "frames",
    [
        [frame(FromGuest.FAILED, 1, stream=4, aux=1 << 31)],
        [frame(FromGuest.FAILED, 1, stream=4, aux=0)],
        [frame(FromGuest.STARTED, 2)],
        [frame(FromGuest.OUT, 1 << 31, b"x", stream=1)],
        [frame(FromGuest.STARTED, 0)],
        [frame(FromGuest.PONG, aux=1)],
        [frame(FromGuest.READY)],
        [frame(FromGuest.OUT, 1, b"x", stream=3)],
        [frame(FromGuest.EXIT, 1, b"x")],
    ],
)
def test_what_no_init_of_ours_says_is_a_violation(frames: list[bytes]) -> None:
    async def work(peer: Peer) -> None:
        guest = GuestExec(1, Sink())
        await peer.open([guest], 1)
        peer.say(*frames)
        await settled(lambda: peer.lost)
        assert isinstance(peer.lost[0], ChannelViolation)
        assert isinstance(guest.complete.exception(), SandboxGone)
        assert "channel" in str(guest.complete.exception())

    with_peer(work)


def test_execs_beyond_the_most_that_there_may_be_are_a_violation() -> None:
    async def work(peer: Peer) -> None:
        with pytest.raises(SandboxGone):
            await peer.open([], *range(1, EXECS_MAX + 2))
        assert isinstance(peer.lost[0], ChannelViolation)

    with_peer(work)


@pytest.mark.parametrize("late", [frame(FromGuest.STDIN_ACK, 1), frame(FromGuest.PONG), frame(FromGuest.HELLO_BACK)])
def test_frames_that_nobody_waits_for_are_let_pass_a_while_and_no_longer(
    late: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_STRANGERS_AT_FIRST", 100)

    async def work(peer: Peer) -> None:
        guest = GuestExec(1, Sink())
        await peer.open([guest], 1)
        peer.link.forget(guest)
        peer.say(*[late] * 60)
        await peer_has_been_heard(peer)
        assert not peer.lost
        peer.say(*[late] * 200)
        await settled(lambda: peer.lost)
        assert "nobody waits for" in str(peer.lost[0])

    with_peer(work)


async def peer_has_been_heard(peer: Peer) -> None:
    """All that was said before has been handled."""
    asking = asyncio.get_running_loop().create_task(peer.link.ping(timeout=30))
    await asyncio.sleep(0)
    *_, (type_, _, number) = peer.heard()
    assert type_ == ToGuest.PING
    peer.say(frame(FromGuest.PONG, aux=number))
    await asking


# ---- what one turn of the loop does for it


def test_a_turn_handles_so_many_frames_and_no_more() -> None:
    async def work(peer: Peer) -> None:
        sink, turn, handled = Sink(), [0], dict[int, int]()
        guest = GuestExec(1, sink)
        await peer.open([guest], 1)

        def count() -> None:
            handled[turn[0]] = handled.get(turn[0], 0) + 1

        sink.on_write = count
        peer.say(*(frame(FromGuest.OUT, 1, b"x", stream=1, offset=n) for n in range(2000)))
        while sink.size < 2000:
            turn[0] += 1
            await asyncio.sleep(0)
        # Two callbacks may come between two looks of this task: the reader's, and the line's.
        assert max(handled.values()) <= 2 * link_module._FRAMES_A_TURN
        assert len(handled) >= 2000 / (2 * link_module._FRAMES_A_TURN)

    with_peer(work)


def test_a_flood_of_one_sandbox_leaves_the_other_its_turn() -> None:
    async def work(flooding: Peer) -> None:
        quiet_one = Peer()
        flood, drop = Sink(), Sink()
        await flooding.open([GuestExec(1, flood)], 1)
        await quiet_one.open([GuestExec(1, drop)], 1)
        when: list[int] = []
        drop.on_write = lambda: when.append(flood.size)
        count = 20_000
        flooding.say(*(frame(FromGuest.OUT, 1, b"x", stream=1, offset=n) for n in range(count)))
        await settled(lambda: flood.size)
        quiet_one.say(frame(FromGuest.OUT, 1, b"x", stream=1))
        await settled(lambda: flood.size == count)
        assert when
        assert when[0] < count // 10
        quiet_one.close()

    with_peer(work)


# ---- a PID 1 that takes nothing


def test_whoever_sends_waits_when_it_takes_nothing() -> None:
    async def work(peer: Peer) -> None:
        guests = [GuestExec(n, Sink()) for n in range(1, 41)]
        await peer.open(guests, *range(1, 41))
        peer.heard()
        writing = [
            asyncio.get_running_loop().create_task(peer.link.write_input(guest, bytes(1 << 20))) for guest in guests
        ]
        for _ in range(500):
            await asyncio.sleep(0)
        bound = link_module._QUEUE_HIGH + link_module._INPUT_AT_ONCE + (64 << 10)
        assert link_module._QUEUE_HIGH < peer.link._queued <= bound
        with pytest.raises(GuestUnresponsive):
            peer.link.resize(guests[0], 1, 1)
        with pytest.raises(GuestUnresponsive):
            peer.link.signal(guests[0], 15, group=True)
        with pytest.raises(GuestUnresponsive):
            await peer.link.start(Sink(), bytes(2 << 20), flags=StartFlag(0), timeout=0.01)
        queued = peer.link._queued
        for _ in range(1000):
            peer.link.signal(guests[0], 9, group=True)
            peer.link.end_input(guests[1])
        assert peer.link._queued - queued == 2 * HEADER.size, "said once"
        taken = 0
        while not all(each.done() for each in writing):
            taken += sum(type_ == ToGuest.STDIN for type_, _, _ in peer.heard())
            await asyncio.sleep(0)
        assert all(each.result() for each in writing)

    with_peer(work)


def fill(peer: Peer) -> None:
    """As much in the queue as makes others wait."""
    while not peer.link._full:
        peer.link._post(frame(ToGuest.PING, payload=bytes(4000)))  # type: ignore[arg-type]


def test_output_is_not_acknowledged_meanwhile_and_beyond_its_credit_a_violation() -> None:
    async def work(peer: Peer) -> None:
        sink = Sink()
        await peer.open([GuestExec(1, sink)], 1)
        fill(peer)
        queued, piece = peer.link._queued, bytes(64 << 10)
        for at in range(0, STREAM_WINDOW, len(piece)):
            peer.say(frame(FromGuest.OUT, 1, piece, stream=1, offset=at))
            await settled(lambda at=at: sink.size >= at + len(piece))
        assert peer.link._queued == queued, "no acknowledgement"
        heard = []
        while (ToGuest.ACK, 1, 0) not in heard:
            heard = peer.heard()
            await asyncio.sleep(0)
        assert peer.link._queued == 0
        fill(peer)
        for at in range(STREAM_WINDOW, 2 * STREAM_WINDOW, len(piece)):
            peer.say(frame(FromGuest.OUT, 1, piece, stream=1, offset=at))
            await settled(lambda at=at: sink.size >= at + len(piece))
        peer.say(frame(FromGuest.OUT, 1, piece, stream=1, offset=2 * STREAM_WINDOW))
        await settled(lambda: peer.lost)
        assert "credit" in str(peer.lost[0])

    with_peer(work)


def test_what_may_not_wait_has_a_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_QUEUE_MAX", 2 << 20)

    async def work(peer: Peer) -> None:
        await peer.open([])
        with pytest.raises(SandboxGone):
            for _ in range(1000):
                peer.link._post(bytes(4096))
        assert isinstance(peer.lost[0], ChannelViolation)

    with_peer(work)


def test_output_byte_by_byte_is_kept_in_few_pieces() -> None:
    async def work(peer: Peer) -> None:
        inbox = Inbox()
        for _ in range(100_000):
            inbox.write(1, memoryview(b"x"))
        assert len(inbox._pieces) <= 2
        for _ in range(3):
            inbox.write(2, memoryview(bytes(40_000)))
        assert inbox.overflowed
        assert len(inbox.notes) <= 64 << 10

    with_peer(work)


def test_a_start_is_announced_before_any_output_even_of_the_same_read() -> None:
    async def work(peer: Peer) -> None:
        await peer.open([])
        order: list[str] = []
        sink = Sink()
        sink.on_write = lambda: order.append("output")
        starting = asyncio.get_running_loop().create_task(
            peer.link.start(sink, b"request", flags=StartFlag(0), timeout=30, announce=lambda: order.append("started"))
        )
        await asyncio.sleep(0)
        peer.say(frame(FromGuest.STARTED, 1, aux=7), frame(FromGuest.OUT, 1, b"x", stream=1))
        await starting
        await settled(lambda: len(order) == 2)
        assert order == ["started", "output"]

    with_peer(work)


def test_while_one_question_for_memory_is_unanswered_no_other_is_asked() -> None:
    async def work(peer: Peer) -> None:
        await peer.open([])
        with pytest.raises(GuestUnresponsive):
            await peer.link.relieve(spare=0, least_mb=1, timeout=0)
        again = asyncio.get_running_loop().create_task(peer.link.relieve(spare=0, least_mb=2, timeout=30))
        await asyncio.sleep(0)
        assert [aux for type_, _, aux in peer.heard() if type_ == ToGuest.RELIEVE] == [1], "it would kill for each"
        peer.say(frame(FromGuest.RELIEVED, aux=9, offset=1 << 20))
        assert (await again).pid == 9, "who asks again is told of what was killed meanwhile"
        third = asyncio.get_running_loop().create_task(peer.link.relieve(spare=0, least_mb=3, timeout=30))
        await asyncio.sleep(0)
        peer.say(frame(FromGuest.RELIEVED))
        assert (await third).pid == 0
        assert [aux for type_, _, aux in peer.heard() if type_ == ToGuest.RELIEVE] == [3]

    with_peer(work)
