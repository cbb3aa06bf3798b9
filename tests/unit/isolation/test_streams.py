import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolation.channel.frames import STDIN_WINDOW, STREAM_WINDOW, ExitReport, Frame, FromGuest
from isolation.channel.streams import ExecAccount, InputAccount
from isolation.errors import ChannelViolation


def out(offset: int, payload: bytes, stream: int = 1) -> Frame:
    return Frame(FromGuest.OUT, stream, 0, 1, 0, offset, memoryview(payload))


@given(st.binary(min_size=1, max_size=400), st.lists(st.tuples(st.integers(0, 400), st.integers(1, 80)), max_size=60))
def test_whatever_is_repeated_each_byte_counts_once(data: bytes, pieces: list[tuple[int, int]]) -> None:
    account, taken = ExecAccount(), b""
    for start, size in pieces:
        start = min(start, len(taken))  # PID 1 never leaves a hole
        taken += bytes(account.output(out(start, data[start : start + size])))
    assert taken == data[: len(taken)]
    assert account.out[0].received == len(taken)


def test_a_hole_a_flood_and_a_foreign_stream_are_violations() -> None:
    with pytest.raises(ChannelViolation):
        ExecAccount().output(out(5, b"x"))
    with pytest.raises(ChannelViolation):
        ExecAccount().output(out(0, b"x" * (STREAM_WINDOW + 1)))
    with pytest.raises(ChannelViolation):
        ExecAccount().output(out(0, b"x", stream=3))


def test_complete_means_ended_and_all_arrived() -> None:
    account = ExecAccount()
    account.output(out(0, b"abc"))
    account.exited(ExitReport(False, 0, 1, 1, (5, 0)))
    assert not account.complete
    account.output(out(3, b"de"))
    assert account.complete
    with pytest.raises(ChannelViolation):
        account.output(out(5, b"f"))
    with pytest.raises(ChannelViolation):
        account.exited(ExitReport(False, 1, 1, 1, (5, 0)))


def test_an_end_before_what_was_received_is_a_violation() -> None:
    account = ExecAccount()
    account.output(out(0, b"abc"))
    with pytest.raises(ChannelViolation):
        account.exited(ExitReport(False, 0, 1, 1, (2, 0)))


def ack(taken: int, waiting: int, flags: int = 0) -> Frame:
    return Frame(FromGuest.STDIN_ACK, 0, flags, 1, waiting, taken, memoryview(b""))


@given(st.lists(st.integers(0, STDIN_WINDOW), max_size=20))
def test_input_never_exceeds_its_credit(steps: list[int]) -> None:
    account = InputAccount()
    for step in steps:
        account.sent += min(step, account.credit)
        assert account.sent - account.taken <= STDIN_WINDOW
        account.acknowledge(ack(account.taken + (account.sent - account.taken) // 2, 0), resuming=False)


def test_input_that_was_never_sent_cannot_be_acknowledged() -> None:
    with pytest.raises(ChannelViolation):
        InputAccount().acknowledge(ack(1, 0), resuming=False)
    account = InputAccount()
    account.acknowledge(ack(100, 20), resuming=True)  # a new link learns what the old one had sent
    assert (account.sent, account.taken) == (120, 100)
