"""The kernel's FUSE protocol, Linux's and gVisor's, as far as we serve it. Pure: requests in, replies out.

Not a library, because none lets a second process go on with a mount that the first one made: that takes one's own
handling of /dev/fuse, which outlives the process in the keeper (docs/adr/0013) or in the sandbox (docs/adr/0015).
Sources: Linux include/uapi/linux/fuse.h (7.38; resending: 7.40), Documentation/filesystems/fuse.rst; gVisor
pkg/abi/linux/fuse.go, pkg/sentry/fsimpl/fuse at release-20240729.0.
"""

import errno
import stat
import struct
from dataclasses import dataclass
from typing import Final

ROOT: Final = 1
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
SETATTR, MKDIR, UNLINK, RMDIR, RENAME, WRITE, FSYNC, CREATE = 4, 9, 10, 11, 12, 16, 20, 35
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
READ_SIZE: Final = _READ_IN.size
"""Bytes of the body of a READ or READDIR, of which a guest may send fewer."""

_STATFS: Final = struct.Struct("<QQQQQIIII24x")
_BLOCK: Final = 4096
_ATOMIC_O_TRUNC: Final = 1 << 3
_BIG_WRITES: Final = 1 << 5
_SETATTR_IN: Final = struct.Struct("<II QQQ QQQ IIII III")
_WRITE_IN: Final = struct.Struct("<QQIIQII")
_WRITE_OUT: Final = struct.Struct("<II")
_DIRENT: Final = struct.Struct("<QQII")
_SIZE_GIVEN: Final = 1 << 3
WRITE_MAX: Final = 1 << 20


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

    @property
    def handle(self) -> int:
        """Of READ, WRITE, READDIR, FLUSH, FSYNC, RELEASE and RELEASEDIR: the number that OPEN answered."""
        return int.from_bytes(self.body[:8], "little")

    @property
    def flags(self) -> int:
        """Of OPEN and CREATE: those of open(2)."""
        return int.from_bytes(self.body[:4], "little")

    @property
    def written(self) -> tuple[int, bytes]:
        """Of WRITE: where, and what."""
        _, offset, size, *_ = _WRITE_IN.unpack_from(self.body)
        return offset, self.body[_WRITE_IN.size : _WRITE_IN.size + size]

    @property
    def new_size(self) -> int | None:
        """Of SETATTR: the size that is wanted, if one is."""
        valid, _, _, size, *_ = _SETATTR_IN.unpack_from(self.body)
        return int(size) if valid & _SIZE_GIVEN else None

    def named(self, skip: int) -> bytes:
        """A name that follows so many bytes (MKDIR 8, CREATE 16)."""
        return self.body[skip:].partition(b"\0")[0]

    @property
    def renamed(self) -> tuple[int, bytes, bytes]:
        """Of RENAME: the folder that it goes to, the old name and the new one."""
        old, new, *_ = (*self.body[8:].split(b"\0"), b"", b"")
        return int.from_bytes(self.body[:8], "little"), old, new


@dataclass(frozen=True, slots=True)
class Attributes:
    """A file or folder as the kernel hears of it; mtime in seconds since the epoch."""

    node: int
    mode: int
    size: int = 0
    mtime_s: int = 0
    owner: int = 0

    @property
    def packed(self) -> bytes:
        """As struct fuse_attr."""
        links = 2 if stat.S_ISDIR(self.mode) else 1
        times = (self.mtime_s, self.mtime_s, self.mtime_s, 0, 0, 0)
        owners = (self.mode, links, self.owner, self.owner, 0, _BLOCK, 0)
        return _ATTR.pack(self.node, self.size, -(-self.size // 512), *times, *owners)


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


def init_gvisor(request: Request) -> bytes:
    """The answer to gVisor's INIT: it heeds flags that it does not offer (connection_control.go)."""
    pages = _SET_MAX_PAGES | _BIG_WRITES | _ATOMIC_O_TRUNC
    body = _INIT_OUT.pack(7, 31, MAX_READ, pages, 64, 48, WRITE_MAX, 1, _MAX_PAGES, 0, 0, 0)
    return reply(request, body)


def entry(request: Request, found: Attributes, valid_s: int = _FOREVER_S) -> bytes:
    """The answer to LOOKUP and MKDIR, good for so many seconds."""
    return reply(request, _entry(found, valid_s))


def _entry(found: Attributes, valid_s: int) -> bytes:
    return _ENTRY.pack(found.node, 0, valid_s, valid_s, 0, 0) + found.packed


def created(request: Request, found: Attributes, handle: int, valid_s: int) -> bytes:
    """The answer to CREATE."""
    return reply(request, _entry(found, valid_s) + _OPEN_OUT.pack(handle, 0, 0))


def attributes(request: Request, found: Attributes, valid_s: int = _FOREVER_S) -> bytes:
    """The answer to GETATTR and SETATTR."""
    return reply(request, _ATTR_OUT.pack(valid_s, 0, 0) + found.packed)


def opened(request: Request, handle: int = 0) -> bytes:
    """The answer to OPEN and OPENDIR; without a handle, what the kernel has read it may keep: it never changes."""
    return reply(request, _OPEN_OUT.pack(handle, 0 if handle else _KEEP_CACHE, 0))


def written(request: Request, size: int) -> bytes:
    """The answer to WRITE."""
    return reply(request, _WRITE_OUT.pack(size, 0))


def dirent(name: bytes, node: int, is_folder: bool, number: int) -> bytes:
    """An entry of the answer to READDIR; number says where whoever has read this one goes on."""
    head = _DIRENT.pack(node, number, len(name), (stat.S_IFDIR if is_folder else stat.S_IFREG) >> 12)
    return head + name + b"\0" * (-len(name) % 8)


def statfs(request: Request, blocks: int = 0) -> bytes:
    """The answer to STATFS; so many blocks of 4 KiB, all of them free."""
    return reply(request, _STATFS.pack(blocks, blocks, blocks, blocks, blocks, _BLOCK, 255, _BLOCK, 0))
