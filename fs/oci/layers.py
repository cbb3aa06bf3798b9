"""A tar archive, compressed or not, laid over a tree. Nothing is unpacked on a disk: contents go to the store.

What an archive may not do: leave the root, hold more names or bytes than allowed (of its own, and of contents once they
are expanded: a sparse file counts as what it reads as), hold headers of any length, need more memory to decompress than
is usual. Devices and sockets are left out. Source of the rules: OCI image-spec, layer.md.
"""

import bz2
import hashlib
import io
import lzma
import struct
import tarfile
import time
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Final, Protocol

import zstandard

from fs.errors import ImageInvalid
from fs.tree import PATH_MAX, Limits, Node, Piece, Tree, folder, show, without_setuid

_HEADER_MAX: Final = 1 << 20
"""Bytes of all headers of one member: names, extended attributes, the map of a sparse file."""

_READ: Final = 1 << 20
_XZ_MEMORY: Final = 256 << 20
_ZSTD_WINDOW: Final = 1 << 27
_GLOBAL_HEADERS: Final = frozenset(tarfile.PAX_FIELDS)
_ID_MAX: Final = (1 << 32) - 2
DAMAGED: Final = (
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
    struct.error,
)
"""What reading an archive raises that is cut short, or was made to do harm."""


class Sink(Protocol):
    """Where contents go: `fs.store.store.Writer`."""

    def add(self, contents: BinaryIO) -> tuple[Piece, ...]:
        """Take a file's contents."""


class Forward(io.RawIOBase):
    """A stream that is only read onwards, as tarfile wants it: with `tell` and `seek`.

    What is read between `header` and `contents` is a member's header, and bounded; what is skipped is not.
    """

    def __init__(self, read: Callable[[int], bytes], most: int, check: Callable[[], None]) -> None:
        """`check` is called often, and raises once nobody wants the archive any more."""
        self._read = read
        self._check = check
        self._header: int | None = None
        self._at = 0
        self._most = most
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        """Yes."""
        return True

    @property
    def digest(self) -> str:
        """Of what was read so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def seekable(self) -> bool:
        """Onwards."""
        return True

    def tell(self) -> int:
        """Bytes so far."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Skip to a place further on."""
        if whence != io.SEEK_SET or offset < self._at:
            raise ImageInvalid("the archive is damaged", hint="a member lies before the one that went before it")
        while self._at < offset:
            if not self._onwards(min(_READ, offset - self._at)):
                break
        return self._at

    def header(self) -> None:
        """What is read from now on is the next member's header."""
        self._header = _HEADER_MAX

    def contents(self) -> None:
        """What is read from now on is contents."""
        self._header = None

    def read(self, size: int = -1) -> bytes:
        """Up to size bytes, fewer only at the end; ImageInvalid for a bomb."""
        if self._header is not None:
            self._header -= size
            if size < 0 or self._header < 0:
                raise ImageInvalid("the archive has a header of many MiB", hint="it is damaged, or made to do harm")
        return self._onwards(size)

    def _onwards(self, size: int) -> bytes:
        self._check()
        parts, left = [], size
        while left and (part := self._read(left)):
            parts.append(part)
            left -= len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._at += len(data)
        self._hash.update(data)
        if self._at > self._most:
            raise ImageInvalid(f"the archive unpacks to more than {self._most >> 20} MiB")
        return data


def decompressed(source: BinaryIO) -> Callable[[int], bytes]:
    """A function that reads what a gzip, zstd, xz or bzip2 stream holds, or a plain one; by its first bytes."""
    head = source.read(6)
    ahead: Any = _Ahead(head, source)  # which reads, and that is all they need
    if head.startswith(b"\x1f\x8b"):
        return _Gzip(ahead).read
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return (
            zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(ahead, read_across_frames=True).read
        )
    if head.startswith(b"\xfd7zXZ\0"):
        return _Streams(ahead, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)).read
    if head.startswith(b"BZh"):
        return _Streams(ahead, bz2.BZ2Decompressor).read
    read: Callable[[int], bytes] = ahead.read
    return read


class _Ahead(io.RawIOBase):
    """A stream of which the first bytes were read already."""

    def __init__(self, head: bytes, source: BinaryIO) -> None:
        self._head = head
        self._source = source

    def readable(self) -> bool:
        return True

    def put_back(self, data: bytes) -> None:
        """Read this again first."""
        self._head = data + self._head

    def read(self, size: int = -1) -> bytes:
        if self._head:
            part, self._head = self._head[:size], self._head[size:]
            return part
        return self._source.read(size)


class _Streams:
    """xz or bzip2 streams, one behind the other. Not by `lzma.LZMAFile`: that takes as much memory as it is told to."""

    def __init__(self, source: _Ahead, begin: Callable[[], Any]) -> None:
        self._source = source
        self._begin = begin
        self._stream = begin()

    def read(self, size: int) -> bytes:
        while True:
            if self._stream.eof and not self._next_stream():
                return b""
            data = b""
            if self._stream.needs_input and not (data := self._source.read(_READ)):
                raise ImageInvalid("the layer is cut short")
            found: bytes = self._stream.decompress(data, size)
            if found:
                return found

    def _next_stream(self) -> bool:
        rest = self._stream.unused_data.lstrip(b"\0")  # padding may stand between
        while not rest:
            if not (data := self._source.read(_READ)):
                return False
            rest = data.lstrip(b"\0")
        self._stream = self._begin()
        self._source.put_back(rest)
        return True


class _Gzip:
    """gzip by zlib alone: half as much again as fast as `gzip.GzipFile`, which checks each piece in Python."""

    def __init__(self, source: _Ahead) -> None:
        self._source = source
        self._stream = zlib.decompressobj(wbits=31)
        self._rest = b""

    def read(self, size: int) -> bytes:
        while True:
            if self._stream.eof and not self._next_member():
                return b""
            if not (data := self._rest or self._source.read(_READ)):
                raise ImageInvalid("the layer is cut short")
            found = self._stream.decompress(data, size)
            self._rest = self._stream.unconsumed_tail
            if found:
                return found

    def _next_member(self) -> bool:
        rest = self._stream.unused_data.lstrip(b"\0")  # padding may stand between
        while not rest:
            if not (data := self._source.read(_READ)):
                return False
            rest = data.lstrip(b"\0")
        self._stream, self._rest = zlib.decompressobj(wbits=31), rest
        return True


def apply(
    source: BinaryIO,
    tree: Tree,
    sink: Sink,
    *,
    limits: Limits,
    keep_setuid: bool,
    layered: bool = True,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Lay a tar archive over a tree; ImageInvalid with the member's name if it can't be.

    With layered, whiteouts count. check is called often, and raises once the work is not wanted any more. Returns the
    digest of the archive as it was before compression (a diff id).
    """
    try:
        stream = Forward(decompressed(source), limits.total_bytes, check)
        stream.header()  # of the first member, which the archive reads at once
        archive = tarfile.TarFile(fileobj=stream, mode="r", encoding="utf-8", errors="surrogateescape")
        if layered:
            tree.begin_layer()
        now = int(time.time())
        while (member := _next(archive, stream)) is not None:
            _apply(member, archive, tree, sink, now, keep_setuid, layered)
        while stream.read(_READ):  # the digest is of all of it
            pass
        return stream.digest
    except DAMAGED as error:
        raise _damaged(error) from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's; without a number it is bz2's word for noise
        raise _damaged(error) from error


def _damaged(error: Exception) -> ImageInvalid:
    return ImageInvalid(f"the archive is damaged: {error}", hint="it is cut short, or no tar archive")


def _next(archive: tarfile.TarFile, stream: Forward) -> tarfile.TarInfo | None:
    """The next member. The archive keeps nothing of those before, nor of headers that are for all and mean nothing."""
    stream.header()
    member = archive.next()
    stream.contents()
    archive.members = []  # type: ignore[attr-defined]  # or it keeps a million of them
    kept = archive.pax_headers
    if not kept.keys() <= _GLOBAL_HEADERS:
        archive.pax_headers = {name: value for name, value in kept.items() if name in _GLOBAL_HEADERS}
    return member


def _apply(
    member: tarfile.TarInfo,
    archive: tarfile.TarFile,
    tree: Tree,
    sink: Sink,
    now: int,
    keep_setuid: bool,
    layered: bool,
) -> None:
    path = member.name.encode(errors="surrogateescape")
    if layered and tree.whiteout(path):
        return
    if member.isreg():
        tree.take_bytes(member.size)  # before they are read: those of a sparse file are nowhere
        contents = archive.extractfile(member)
        assert contents is not None
        node = _node("file", member, now)
        node.pieces = sink.add(contents)  # type: ignore[arg-type]  # it reads
        if node.size != member.size:
            raise ImageInvalid(f"{show(path)} is cut short")
    elif member.isdir():
        node = _node("dir", member, now)
    elif member.issym():
        node = _node("symlink", member, now)
        node.target = member.linkname.encode(errors="surrogateescape")
        if not 0 < len(node.target) < PATH_MAX - 96:
            raise ImageInvalid(f"{show(path)} is a link whose target is too long")
    elif member.islnk():
        tree.link(path, member.linkname.encode(errors="surrogateescape"))
        return
    elif member.isfifo():
        node = _node("fifo", member, now)
    else:
        return  # a device: there is none inside that a sandbox could have
    tree.put(path, node if keep_setuid else without_setuid(node))


def _node(kind: str, member: tarfile.TarInfo, now: int) -> Node:
    if not (0 <= member.uid <= _ID_MAX and 0 <= member.gid <= _ID_MAX):
        raise ImageInvalid(f"{member.name[:200]} belongs to user {member.uid}:{member.gid}")
    # What is newer than the image would look changed by the sandbox (isolation/guest/layer.c).
    mtime = min(max(0, int(member.mtime)), now)
    node = folder(member.mode & 0o7777, member.uid, member.gid)
    node.kind = kind  # type: ignore[assignment]  # one of Kind
    node.mtime = mtime
    return node
