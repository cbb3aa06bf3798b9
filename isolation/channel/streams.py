"""The host's account of one exec's streams: what arrived, what is safe, how much input may follow. No I/O.

    offsets of an output stream:   acknowledged <= received <= final (known once the process has ended)
    offsets of the input stream:   taken <= received by the guest <= sent <= taken + STDIN_WINDOW

PID 1 repeats what was not acknowledged whenever a link begins, so every byte arrives at least once; the offsets
make that exactly once.
"""

from isolation.channel.frames import STDIN_WINDOW, STREAM_WINDOW, ExitReport, Frame
from isolation.errors import ChannelViolation


class OutputAccount:
    """One output stream as it arrives."""

    def __init__(self, received: int = 0) -> None:
        self.received = received
        self.acknowledged = received
        self.final: int | None = None

    def accept(self, frame: Frame) -> memoryview:
        """The new bytes of an OUT frame, empty for a repetition; ChannelViolation for a hole or beyond credit."""
        end = frame.offset + len(frame.payload)
        if frame.offset > self.received:
            raise ChannelViolation(f"output at {frame.offset}, expected {self.received}")
        if end > self.acknowledged + STREAM_WINDOW:
            raise ChannelViolation("output beyond its credit")
        if self.final is not None and end > self.final:
            raise ChannelViolation("output beyond its end")
        fresh = frame.payload[self.received - frame.offset :] if end > self.received else frame.payload[:0]
        self.received = max(self.received, end)
        return fresh

    def end_at(self, final: int) -> None:
        """The process wrote so many bytes in all."""
        if not self.received <= final <= self.acknowledged + (8 << 20):
            raise ChannelViolation(f"output ends at {final}, received {self.received}")
        self.final = final

    @property
    def complete(self) -> bool:
        """Whether everything the process wrote has arrived."""
        return self.final is not None and self.received == self.final


class InputAccount:
    """The input stream as it is sent."""

    def __init__(self) -> None:
        self.sent = 0
        self.taken = 0
        self.closed = False

    @property
    def credit(self) -> int:
        """How many bytes may be sent now."""
        return STDIN_WINDOW - (self.sent - self.taken)

    def acknowledge(self, frame: Frame, *, resuming: bool) -> None:
        """Note a STDIN_ACK; on a new link it also tells how much had been sent on the old one."""
        received = frame.offset + frame.aux
        if frame.aux > STDIN_WINDOW or frame.offset < self.taken or (not resuming and received > self.sent):
            raise ChannelViolation("input acknowledged that was never sent")
        self.taken = frame.offset
        self.closed = bool(frame.flags & 1)
        if resuming:
            self.sent = received


class ExecAccount:
    """All streams of one exec and how it ended."""

    def __init__(self, received: tuple[int, int] = (0, 0)) -> None:
        self.out = (OutputAccount(received[0]), OutputAccount(received[1]))
        self.input = InputAccount()
        self.report: ExitReport | None = None

    def output(self, frame: Frame) -> memoryview:
        """The new bytes of an OUT frame."""
        if frame.stream not in (1, 2):
            raise ChannelViolation(f"output on stream {frame.stream}")
        return self.out[frame.stream - 1].accept(frame)

    def exited(self, report: ExitReport) -> None:
        """Note how the process ended; a repetition must be the same."""
        if self.report is not None:
            if self.report != report:
                raise ChannelViolation("two different exits of one exec")
            return
        for account, final in zip(self.out, report.final, strict=True):
            account.end_at(final)
        self.report = report

    @property
    def complete(self) -> bool:
        """Whether the process has ended and all its output has arrived."""
        return self.report is not None and all(account.complete for account in self.out)
