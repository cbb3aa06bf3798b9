"""Frames of the channel, as bytes: the Python side of guest/wire.h. No I/O.

Whatever comes from a sandbox is hostile. The reader holds at most one buffer, takes no size that wire.h does not
allow, and gives views into its buffer: whoever keeps a payload past the loop copies it.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from isolation.errors import ChannelViolation

VERSION: Final = 2
FRAME_FROM_HOST: Final = 4096
DATA_MAX: Final = 128 << 10
STREAM_WINDOW: Final = 1 << 20
STDIN_WINDOW: Final = 1 << 20
START_MAX: Final = 2 << 20
EXECS_MAX: Final = 1024
MAGIC: Final = b"isobox\x00\x01hello\xf5\xfa\xfe"
NONCE_SIZE: Final = 16

HEADER: Final = struct.Struct("<IBBHIIQ")
PAYLOAD_FROM_HOST: Final = FRAME_FROM_HOST - HEADER.size
_EXIT_REPORT: Final = struct.Struct("<IIQQQQ")
_START_HEAD: Final = struct.Struct("<IIQQ")
_NEWS_MAX: Final = 256


class ToGuest(IntEnum):
    """Frame types that the host sends; wire.h says what their fields mean."""

    HELLO = 1
    START_PART = 2
    START = 3
    STDIN = 4
    STDIN_EOF = 5
    ACK = 6
    SIGNAL = 7
    RESIZE = 8
    RESUME = 9
    FORGET = 10
    PING = 11
    RELIEVE = 12


class FromGuest(IntEnum):
    """Frame types that PID 1 sends; wire.h says what their fields mean."""

    HELLO_BACK = 65
    READY = 66
    STARTED = 67
    FAILED = 68
    OUT = 69
    EXIT = 70
    STDIN_ACK = 71
    PONG = 72
    RELIEVED = 73


class StartFlag(IntFlag):
    """How an exec is started."""

    PTY = 1
    FILES = 2
    ROOT_OK = 4
    NO_STDIN = 8
    DIAL = 16


class Stage(IntEnum):
    """Where a start failed."""

    REQUEST = 1
    USER = 2
    CWD = 3
    EXEC = 4
    SYSTEM = 5


class Frame(NamedTuple):
    """A frame as read: header fields and a view of the payload, valid until the next read."""

    type: int
    stream: int
    flags: int
    exec: int
    aux: int
    offset: int
    payload: memoryview


class ExitReport(NamedTuple):
    """How a process ended: its code or signal, CPU µs, peak resident KiB, and bytes of each stream by then."""

    signalled: bool
    code: int
    cpu_us: int
    max_rss_kib: int
    final: tuple[int, int]


def encode(
    type_: int, *, exec_: int = 0, stream: int = 0, flags: int = 0, aux: int = 0, offset: int = 0, payload: bytes = b""
) -> bytes:
    """A whole frame for the guest; at most FRAME_FROM_HOST bytes, so that a pipe takes it in one piece."""
    if len(payload) > PAYLOAD_FROM_HOST:
        raise ValueError(f"payload of {len(payload)} bytes does not fit into one frame")
    return HEADER.pack(len(payload), type_, stream, flags, exec_, aux, offset) + payload


def encode_start(exec_: int, request: bytes, *, flags: int, rows: int = 0, cols: int = 0) -> list[bytes]:
    """The frames that ask for one exec; they must follow each other on the link."""
    if len(request) > START_MAX:
        raise ValueError(f"request of {len(request)} bytes; the init takes {START_MAX}")
    *parts, last = [request[i : i + PAYLOAD_FROM_HOST] for i in range(0, len(request), PAYLOAD_FROM_HOST)]
    frames = [encode(ToGuest.START_PART, exec_=exec_, payload=part) for part in parts]
    frames.append(encode(ToGuest.START, exec_=exec_, flags=flags, aux=rows << 16 | cols, payload=last))
    return frames


def encode_request(
    *, user: str, cwd: str, argv: list[bytes], env: dict[str, str], nproc: int = 0, nofile: int = 0
) -> bytes:
    """The body of a START: no string may hold a NUL (ValueError)."""
    strings = [user.encode(), cwd.encode(errors="surrogateescape"), *argv]
    strings += [f"{name}={value}".encode(errors="surrogateescape") for name, value in env.items()]
    if any(b"\0" in text for text in strings):
        raise ValueError("NUL in a string")
    return _START_HEAD.pack(len(argv), len(env), nproc, nofile) + b"".join(text + b"\0" for text in strings)


def decode_exit(payload: memoryview) -> ExitReport:
    """The payload of EXIT; ChannelViolation if it is none."""
    if len(payload) != _EXIT_REPORT.size:
        raise ChannelViolation(f"exit report of {len(payload)} bytes")
    signalled, code, cpu_us, rss, out, err = _EXIT_REPORT.unpack(payload)
    if code > 255 or signalled > 1 or max(cpu_us, rss, out, err) >= 1 << 63:
        raise ChannelViolation("impossible exit report")
    return ExitReport(bool(signalled), code, cpu_us, rss, (out, err))


def hello_back(nonce: bytes) -> bytes:
    """What PID 1 answers to a HELLO with this nonce, less the version at its end."""
    return HEADER.pack(36, FromGuest.HELLO_BACK, 0, 0, 0, 0, 0) + MAGIC + nonce


class FrameReader:
    """Turns reads into frames, whatever their cuts. `sync` discards all up to an agreed mark."""

    def __init__(self) -> None:
        self._buffer = bytearray(1 << 20)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._mark: bytes | None = None

    def sync(self, mark: bytes) -> None:
        """Discard everything until mark: a link that begins may find the rest of an older one in its pipe."""
        self._mark = mark

    def space(self) -> memoryview:
        """Where the next read goes; never empty, because a frame is smaller than the buffer."""
        if self._start:
            rest = self._end - self._start
            self._view[:rest] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def feed(self, size: int) -> Iterator[Frame]:
        """Take size bytes that were read into `space()`; ChannelViolation where no frame can begin so."""
        self._end += size
        if self._mark is not None and not self._found(self._mark):
            return
        while self._end - self._start >= HEADER.size:
            length, type_, stream, flags, exec_, aux, offset = HEADER.unpack_from(self._buffer, self._start)
            if not FromGuest.HELLO_BACK <= type_ <= FromGuest.RELIEVED:
                raise ChannelViolation(f"frame of unknown type {type_}")
            if length > (DATA_MAX if type_ == FromGuest.OUT else _NEWS_MAX) or offset >= 1 << 63:
                raise ChannelViolation(f"frame of {length} bytes at offset {offset}")
            begin = self._start + HEADER.size
            if self._end - begin < length:
                return
            self._start = begin + length
            yield Frame(type_, stream, flags, exec_, aux, offset, self._view[begin : self._start])

    def _found(self, mark: bytes) -> bool:
        at = self._buffer.find(mark, self._start, self._end)
        if at < 0:
            self._start = max(self._start, self._end - len(mark) + 1)
            return False
        self._start = at
        self._mark = None
        return True
