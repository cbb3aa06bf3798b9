"""The kernel's FUSE protocol, as far as a folder of read-only files needs it. Pure: requests in, replies out.

Not a library, because none lets a second process go on with a mount that the first one made: that takes one's own
handling of /dev/fuse, which outlives the process in the keeper (docs/adr/0013).
Source: Linux include/uapi/linux/fuse.h (7.38; resending: 7.40), Documentation/filesystems/fuse.rst.
"""

import errno
import stat
import struct
from dataclasses import dataclass
from typing import Final

ROOT: Final = 1
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 25, 26, 27, 28, 29, 34, 36, 38, 42
SILENT: Final = frozenset({FORGET, BATCH_FORGET, INTERRUPT})
"""What is not answered."""

BUFFER: Final = 1 << 17
"""Bytes to read requests into: more than any that a reader of files sends, and no less than the kernel insists on."""

MAX_READ: Final = 1 << 20
_MAX_PAGES: Final = MAX_READ >> 12
_ASYNC_READ: Final = 1 << 0
_PARALLEL_DIROPS: Final = 1 << 18
_SET_MAX_PAGES: Final = 1 << 22
_INIT_EXT: Final = 1 << 30
_HAS_RESEND: Final = 1 << 39
_NOTIFY_RESEND: Final = 7
_KEEP_CACHE: Final = 1 << 1
_FOREVER_S: Final = 86400
_IN: Final = struct.Struct("<IIQQIIIHH")
_OUT: Final = struct.Struct("<IiQ")
_INIT_IN: Final = struct.Struct("<IIII")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHII24x")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY: Final = struct.Struct("<QQQQII")
_ATTR_OUT: Final = struct.Struct("<QII")
_OPEN_OUT: Final = struct.Struct("<QIi")
_READ_IN: Final = struct.Struct("<QQII")
_STATFS: Final = struct.Struct("<QQQQQIIII24x")
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """What the kernel asks; `body` is what follows the header, `pid` the thread that it asks for."""

    opcode: int
    unique: int
    node: int
    body: bytes
    pid: int = 0

    @property
    def name(self) -> bytes:
        """Of a LOOKUP: the name."""
        return self.body.partition(b"\0")[0]

    @property
    def range(self) -> tuple[int, int]:
        """Of a READ: where to begin, and how many bytes."""
        _, offset, size, _ = _READ_IN.unpack_from(self.body)
        return offset, min(size, MAX_READ)


def parse(packet: bytes) -> Request:
    """A packet as it is read from /dev/fuse; ValueError for one that the kernel would not send."""
    if len(packet) < _IN.size:
        raise ValueError("a short packet")
    length, opcode, unique, node, _, _, pid, _, _ = _IN.unpack_from(packet)
    if length != len(packet):
        raise ValueError("a packet of another length than it says")
    return Request(opcode, unique, node, packet[_IN.size :], pid)


def error(request: Request, number: int) -> bytes:
    """A refusal."""
    return _OUT.pack(_OUT.size, -number, request.unique)


def reply(request: Request, body: bytes = b"") -> bytes:
    """An answer."""
    return _OUT.pack(_OUT.size + len(body), 0, request.unique) + body


def reply_head(request: Request, size: int) -> bytes:
    """The beginning of an answer of that many bytes, which follow it."""
    return _OUT.pack(_OUT.size + size, 0, request.unique)


def init(request: Request) -> tuple[bytes, bool]:
    """The answer to INIT, and whether the kernel can send again what a process died over."""
    major, minor, readahead, flags = _INIT_IN.unpack_from(request.body)
    if major != 7:
        return error(request, errno.EPROTO), False
    high = struct.unpack_from("<I", request.body, _INIT_IN.size)[0] if len(request.body) >= 20 else 0
    offered = flags | high << 32
    taken = offered & (_ASYNC_READ | _PARALLEL_DIROPS | _SET_MAX_PAGES | _INIT_EXT | _HAS_RESEND)
    body = _INIT_OUT.pack(
        *(7, min(minor, 40), max(readahead, MAX_READ), taken & 0xFFFFFFFF, 64, 48, BUFFER // 2, 1),
        *(_MAX_PAGES, 0, taken >> 32, 0),
    )
    return reply(request, body), bool(taken & _HAS_RESEND)


def resend() -> bytes:
    """Asks the kernel to send again what was asked and not answered."""
    return _OUT.pack(_OUT.size, _NOTIFY_RESEND, 0)


def _attributes(node: int, size: int) -> bytes:
    mode, links = (stat.S_IFDIR | 0o555, 2) if node == ROOT else (stat.S_IFREG | 0o444, 1)
    return _ATTR.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, _BLOCK, 0)


def entry(request: Request, node: int, size: int) -> bytes:
    """The answer to LOOKUP: a file of that many bytes."""
    return reply(request, _ENTRY.pack(node, 0, _FOREVER_S, _FOREVER_S, 0, 0) + _attributes(node, size))


def attributes(request: Request, size: int) -> bytes:
    """The answer to GETATTR."""
    return reply(request, _ATTR_OUT.pack(_FOREVER_S, 0, 0) + _attributes(request.node, size))


def opened(request: Request) -> bytes:
    """The answer to OPEN and OPENDIR: what the kernel has read it may keep, for images never change."""
    return reply(request, _OPEN_OUT.pack(0, _KEEP_CACHE, 0))


def statfs(request: Request) -> bytes:
    """The answer to STATFS."""
    return reply(request, _STATFS.pack(0, 0, 0, 0, 0, _BLOCK, 255, _BLOCK, 0))
