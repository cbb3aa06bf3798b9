"""File operations inside a sandbox, by a program of ours that PID 1 starts, as the sandbox's user and in its view.

Names are bytes to the guest. On our side they are text with `surrogateescape`, so that any name survives.
Each operation is one exec without a log; its bytes pass through a bounded queue.
"""

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, cast

from common.text import errno_text
from isolation.channel.frames import StartFlag, encode_request
from isolation.channel.inbox import Inbox
from isolation.channel.link import GuestExec, Link
from isolation.errors import ChannelViolation, IsolationError

FileType = Literal["file", "dir", "symlink", "other"]
_NAMES = {"file", "dir", "symlink", "other"}
_FIELDS = 8
_LISTING_MAX = 64 << 20
_ENTRIES_MAX = 100_000
_ENTRY_MAX = 64 << 10
"""Bytes of one entry: its name, relative to what is listed, and where it leads."""

_HERE_MAX = 64 << 10
"""Bytes that are taken apart sooner than a thread is woken."""
_CHANGE_FIELDS = 3
_NAME_MAX = 1 << 14
_START_TIMEOUT_S = 10.0


class FileFailed(IsolationError):
    """The guest's kernel refused; errno is its own."""

    def __init__(self, number: int, path: str) -> None:
        super().__init__(f"{errno_text(number)}: {path}")
        self.errno = number


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as lstat tells it; size in bytes, mtime_ns since the epoch, name relative to the listed folder."""

    type: FileType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    name: str
    target: str


CHANGES = {"ready", "created", "modified", "deleted", "attributes", "moved", "overflow", "gone"}
"""What `watch` tells of; see guest/watch.c."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to a file; target is its new name, of what was moved."""

    type: str
    path: str
    target: str


def parse_entries(raw: bytes) -> list[Entry]:
    """Entries as the guest's program prints them; ChannelViolation for anything else."""
    fields = raw.split(b"\0")
    if fields.pop() or len(fields) % _FIELDS:
        raise ChannelViolation("a listing that our program does not print")
    try:
        return [_entry(fields[i : i + _FIELDS]) for i in range(0, len(fields), _FIELDS)]
    except (ValueError, UnicodeError) as error:
        raise ChannelViolation("a listing that our program does not print") from error


class EntryParser:
    """Takes a listing apart while it comes, however it is cut: what is wrong is noticed before there is much of it."""

    def __init__(self) -> None:
        self._rest = b""
        self._fed = 0
        self.entries: list[Entry] = []

    def feed(self, data: bytes) -> None:
        """Take in some more. ChannelViolation; FileFailed for more than is listed at once."""
        self._fed += len(data)
        if self._fed > _LISTING_MAX:
            raise FileFailed(errno.E2BIG, f"a listing of more than {_LISTING_MAX >> 20} MiB; list less deeply")
        whole, last, begun = (self._rest + data).rpartition(b"\0")
        fields = whole.split(b"\0") if last else []
        over = len(fields) % _FIELDS
        if len(self.entries) + len(fields) // _FIELDS > _ENTRIES_MAX:
            what = f"a listing of more than {_ENTRIES_MAX} names; list less deeply, or a page at a time"
            raise FileFailed(errno.E2BIG, what)
        kept = len(fields) - over
        self._rest = b"".join(field + b"\0" for field in fields[kept:]) + begun
        if len(self._rest) > _ENTRY_MAX:
            raise ChannelViolation("a listing that our program does not print")
        if kept:
            self.entries += parse_entries(b"\0".join(fields[:kept]) + b"\0")

    def end(self) -> list[Entry]:
        """All of it was fed; ChannelViolation if it is cut short."""
        if self._rest:
            raise ChannelViolation("a listing that our program does not print")
        return self.entries


def _entry(fields: list[bytes]) -> Entry:
    kind = fields[0].decode()
    if kind not in _NAMES:
        raise ValueError(kind)
    mode, numbers = int(fields[1], 8), [int(field) for field in fields[2:6]]
    if max(map(abs, [mode, *numbers])) >= 1 << 63:
        raise ValueError("number too large")
    name, target = (os.fsdecode(field) for field in fields[6:8])
    uid, gid, size, mtime_ns = numbers
    return Entry(cast(FileType, kind), mode, uid, gid, size, mtime_ns, name, target)


def _raise_error(raw: bytes) -> None:
    fields = raw.split(b"\0")
    if fields[0] != b"error" or len(fields) < 3:
        return
    try:
        number = int(fields[1])
    except ValueError:
        number = errno.EIO
    raise FileFailed(number, os.fsdecode(fields[2])[:4096])


class Operation:
    """A running file operation."""

    def __init__(self, link: Link, inbox: Inbox, guest: GuestExec) -> None:
        self._link = link
        self._inbox = inbox
        self._guest = guest

    async def head(self) -> Entry:
        """The entry that `read` prints before the contents."""
        while self._inbox.notes.count(b"\0") < _FIELDS and not self._guest.complete.done():
            await self._inbox.moved(self._guest)
        notes = bytes(self._inbox.notes)
        _raise_error(notes)
        entries = parse_entries(notes)
        if len(entries) != 1:
            raise ChannelViolation("a file operation without an entry")
        return entries[0]

    async def contents(self) -> AsyncIterator[bytes]:
        """What it prints, piece by piece; the guest waits while nobody takes it."""
        async for piece in self._inbox.pieces(self._link, self._guest):
            yield piece

    async def feed(self, data: bytes) -> bool:
        """Send contents; False when the operation has ended early."""
        return await self._link.write_input(self._guest, data)

    def end(self) -> None:
        """All contents are sent."""
        if not self._guest.account.input.closed:
            self._link.end_input(self._guest)

    async def result(self) -> Entry | None:
        """Wait for the end: the entry it prints, if any; FileFailed if it failed."""
        await asyncio.shield(self._guest.complete)
        notes = bytes(self._inbox.notes)
        _raise_error(notes)
        report = self._guest.account.report
        if report is None or report.signalled or report.code:
            raise FileFailed(errno.EIO, "the operation was interrupted")
        entries = parse_entries(notes)
        return entries[0] if entries else None

    async def listing(self) -> list[Entry]:
        """All entries that `list` prints."""
        parser = EntryParser()
        async for piece in self.contents():
            if len(piece) > _HERE_MAX:
                await asyncio.to_thread(parser.feed, piece)
            else:
                parser.feed(piece)
        await self.result()
        return parser.end()

    async def changes(self) -> AsyncIterator["Change"]:
        """All that `watch` tells; FileFailed if the folder cannot be watched."""
        raw = b""
        async for piece in self.contents():
            *fields, raw = (raw + piece).split(b"\0")
            if len(raw) > _NAME_MAX:
                raise ChannelViolation("a change that our program does not print")
            whole = len(fields) // _CHANGE_FIELDS * _CHANGE_FIELDS
            for i in range(0, whole, _CHANGE_FIELDS):
                kind, path, target = (os.fsdecode(each) for each in fields[i : i + _CHANGE_FIELDS])
                if kind not in CHANGES:
                    raise ChannelViolation("a change that our program does not print")
                yield Change(kind, path, target)
            raw = b"".join(each + b"\0" for each in fields[whole:]) + raw
        await self.result()


@asynccontextmanager
async def operate(
    link: Link,
    name: str,
    path: str,
    argument: str = "",
    *,
    user: str,
    allow_root: bool,
    stdin: bool = False,
    no_links: bool = False,
) -> AsyncIterator[Operation]:
    """Run one operation of guest/files.c; it is ended if the caller leaves before its end.

    With no_links it follows no link that anybody but root may have put on the way (guest/place.c).
    """
    program = b"isobox-files-no-links" if no_links else b"isobox-files"
    argv = [program, name.encode(), os.fsencode(path), os.fsencode(argument)]
    flags = StartFlag.FILES | (StartFlag.ROOT_OK if allow_root else StartFlag(0))
    if not stdin:
        flags |= StartFlag.NO_STDIN
    inbox = Inbox()
    request = encode_request(user=user, cwd="", argv=argv, env={"PATH": "/"})
    guest = await link.start(inbox, request, flags=flags, timeout=_START_TIMEOUT_S)
    try:
        yield Operation(link, inbox, guest)
    finally:
        if not guest.complete.done():
            link.abandon(guest, signal.SIGTERM)  # so that it can take its half-written file away
        else:
            link.forget(guest)
