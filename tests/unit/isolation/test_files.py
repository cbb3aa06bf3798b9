"""What a program that stands in the place of ours may say, and not say."""

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolation.channel.frames import ExitReport
from isolation.channel.inbox import Inbox
from isolation.channel.link import GuestExec, Link
from isolation.errors import GuestUnresponsive, HelperBroken, IsolationError, SandboxGone
from isolation.files import FileFailed, Operation, parse_entries
from sandbox_api.problems import from_error

ENTRY = b"file\x00644\x000\x000\x0012\x001700000000000000000\x00/etc/x\x00\x00"


def with_operation(work: Callable[[Operation, Inbox, GuestExec], Awaitable[None]], patience_s: float = 30.0) -> None:
    async def run() -> None:
        to_guest, from_guest = os.pipe(), os.pipe()
        link = Link(to_guest[1], from_guest[0], lost=lambda _: None)
        inbox = Inbox()
        guest = GuestExec(1, inbox)
        try:
            async with asyncio.timeout(60):
                await work(Operation(link, inbox, guest, patience_s), inbox, guest)
        finally:
            link.close()
            for fd in (to_guest[0], from_guest[1]):
                os.close(fd)

    asyncio.run(run())


@pytest.mark.parametrize("number", [b"9" * 20, b"9" * 5000, b"-1", b"0", b"4096", b"", b"x", b"1e3"])
def test_an_errno_that_no_kernel_has_is_told_as_what_it_is(number: bytes) -> None:
    async def work(operation: Operation, inbox: Inbox, guest: GuestExec) -> None:
        inbox.write(2, memoryview(b"error\x00" + number + b"\x00/etc/x\x00"))
        guest.complete.set_result(None)
        with pytest.raises(HelperBroken) as refused:
            await operation.result()
        assert from_error(refused.value).code == "helper_broken"
        assert from_error(refused.value).status == 502

    with_operation(work)


@pytest.mark.parametrize("asked", ["head", "result"])
def test_a_sandbox_that_goes_meanwhile_is_told_as_that(asked: str) -> None:
    async def work(operation: Operation, inbox: Inbox, guest: GuestExec) -> None:
        waiting = asyncio.get_running_loop().create_task(getattr(operation, asked)())
        await asyncio.sleep(0)
        guest.fail(SandboxGone("it broke its channel"))
        with pytest.raises(SandboxGone):
            await waiting

    with_operation(work)


@pytest.mark.parametrize("asked", ["head", "result"])
def test_one_that_the_guest_has_killed_is_told_as_that(asked: str) -> None:
    async def work(operation: Operation, inbox: Inbox, guest: GuestExec) -> None:
        guest.account.report = ExitReport(True, 9, 0, 0, (0, 0))
        guest.complete.set_result(None)
        with pytest.raises(FileFailed, match="interrupted"):
            await getattr(operation, asked)()

    with_operation(work)


def test_an_errno_of_the_kernel_is_told() -> None:
    async def work(operation: Operation, inbox: Inbox, guest: GuestExec) -> None:
        inbox.write(2, memoryview(b"error\x002\x00/etc/x\x00"))
        guest.complete.set_result(None)
        with pytest.raises(FileFailed) as refused:
            await operation.result()
        assert from_error(refused.value).code == "file_not_found"

    with_operation(work)


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_whatever_is_said_is_an_entry_or_an_error_that_has_a_code(said: list[bytes]) -> None:
    async def work(operation: Operation, inbox: Inbox, guest: GuestExec) -> None:
        for piece in said:
            inbox.write(2, memoryview(piece))
        guest.complete.set_result(None)
        for asked in (operation.head, operation.result):
            try:
                await asked()
            except IsolationError as error:
                assert from_error(error).status in (400, 403, 404, 409, 413, 502, 507)

    with_operation(work)


def test_one_that_says_more_than_ours_is_not_read_to_its_end() -> None:
    async def work(operation: Operation, inbox: Inbox, guest: GuestExec) -> None:
        waiting = asyncio.get_running_loop().create_task(operation.result())
        for _ in range(100):
            inbox.write(2, memoryview(bytes(4096)))
        with pytest.raises(HelperBroken):
            await waiting

    with_operation(work)


@pytest.mark.parametrize("asked", ["head", "result", "listing", "feed"])
def test_one_that_hangs_is_given_up(asked: str) -> None:
    async def work(operation: Operation, inbox: Inbox, guest: GuestExec) -> None:
        guest.account.input.sent = 1 << 20
        with pytest.raises(GuestUnresponsive) as refused:
            await (operation.feed(b"x") if asked == "feed" else getattr(operation, asked)())
        assert from_error(refused.value).status == 504
        assert "sign of life" in refused.value.detail

    with_operation(work, patience_s=0.01)


def test_one_that_is_slow_is_not() -> None:
    async def work(operation: Operation, inbox: Inbox, guest: GuestExec) -> None:
        looks = 0
        loop = asyncio.get_running_loop()

        def prints() -> None:
            # As often as it is looked at: what it printed before each look counts.
            nonlocal looks
            looks += 1
            inbox.write(1, memoryview(b"x"))
            if looks < 20:
                loop.call_later(0, prints)
            else:
                inbox.write(2, memoryview(ENTRY))
                guest.complete.set_exception(RuntimeError("done"))

        waiting = asyncio.get_running_loop().create_task(operation.result())
        prints()
        with pytest.raises(RuntimeError, match="done"):
            await waiting

    with_operation(work, patience_s=30.0)


def test_entries_are_read_as_they_were() -> None:
    entry = parse_entries(ENTRY)[0]
    assert (entry.type, entry.mode, entry.size, entry.name) == ("file", 0o644, 12, "/etc/x")
