"""File operations inside a sandbox, by a program of ours that PID 1 starts, as the sandbox's user and in its view.

Names are bytes to the guest. On our side they are text with `surrogateescape`, so that any name survives.
Each operation is one exec without a log; its bytes pass through a bounded queue. The program lies in the image, where
root inside may put another in its place: what it says is checked, and how long it may say nothing is bounded.
"""

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

from common.text import errno_text
from common.turns import aside, turn_budget
from isolation.channel.frames import Stage, StartFlag, encode_request
from isolation.channel.inbox import Inbox
from isolation.channel.link import GuestExec, Link, StartFailed
from isolation.errors import GuestUnresponsive, HelperBroken, IsolationError

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
_ERRNO_MAX = 4095
_SCARCITY = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Why a program cannot be started that is as it should be."""

_CHANGE_COST = 4 << 10
"""Bytes of a listing that are parsed sooner than a thread is woken."""

PATIENCE_S = 300.0
"""How long, in seconds, an operation that somebody waits for may give no sign of life."""


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
    """Entries as the guest's program prints them; HelperBroken for anything else."""
    fields = raw.split(b"\0")
    if fields.pop() or len(fields) % _FIELDS:
        raise _broken("a listing")
    try:
        return [_entry(fields[i : i + _FIELDS]) for i in range(0, len(fields), _FIELDS)]
    except (ValueError, UnicodeError) as error:
        raise _broken("a listing") from error


def _broken(what: str) -> HelperBroken:
    return HelperBroken(
        f"the sandbox's program for file operations printed {what} that ours does not print",
        hint="root inside has replaced /.isobox/files: create another sandbox",
    )


class EntryParser:
    """Takes a listing apart while it comes, however it is cut: what is wrong is noticed before there is much of it."""

    def __init__(self) -> None:
        self._rest = b""
        self._fed = 0
        self.entries: list[Entry] = []

    def feed(self, data: bytes) -> None:
        """Take in some more. HelperBroken; FileFailed for more than is listed at once."""
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
            raise _broken("a listing")
        if kept:
            self.entries += parse_entries(b"\0".join(fields[:kept]) + b"\0")

    def end(self) -> list[Entry]:
        """All of it was fed; HelperBroken if it is cut short."""
        if self._rest:
            raise _broken("a listing")
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
        number = 0
    if not 0 < number <= _ERRNO_MAX:
        raise _broken("an error")
    raise FileFailed(number, os.fsdecode(fields[2])[:4096])


class Operation:
    """A running file operation."""

    def __init__(self, link: Link, inbox: Inbox, guest: GuestExec, patience_s: float) -> None:
        self._link = link
        self._inbox = inbox
        self._guest = guest
        self._patience_s = patience_s

    @property
    def _progress(self) -> tuple[int, int]:
        return self._inbox.heard, self._guest.account.input.taken

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """Around a wait for it: GuestUnresponsive when it gives no sign of life for too long."""
        loop, seen = asyncio.get_running_loop(), self._progress
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal seen, timer
            if seen == self._progress:
                bound.reschedule(loop.time())
            else:
                seen, timer = self._progress, loop.call_later(self._patience_s, look)

        timer = loop.call_later(self._patience_s, look)
        try:
            async with asyncio.timeout(None) as bound:
                yield
        except TimeoutError:
            raise GuestUnresponsive(
                f"the file operation gave no sign of life for {self._patience_s:g} s, and was ended",
                hint="the sandbox may be starved, or root inside has replaced /.isobox/files",
            ) from None
        finally:
            timer.cancel()

    def _notes(self) -> bytes:
        """What it has said on stderr; FileFailed where that is an error."""
        if self._inbox.overflowed:
            raise _broken("more")
        notes = bytes(self._inbox.notes)
        _raise_error(notes)
        return notes

    def _check_end(self) -> None:
        """Once it has ended: FileFailed if that was before its time, SandboxGone."""
        self._guest.complete.result()
        report = self._guest.account.report
        if report is None or report.signalled or report.code:
            raise FileFailed(errno.EIO, "the operation was interrupted")

    async def head(self) -> Entry:
        """The entry that `read` prints before the contents."""
        async with self._bounded():
            while self._inbox.notes.count(b"\0") < _FIELDS and not self._guest.complete.done():
                await self._inbox.moved(self._guest)
        notes = self._notes()
        if self._guest.complete.done():
            self._check_end()
        entries = parse_entries(notes)
        if len(entries) != 1:
            raise _broken("no entry or several, an answer")
        return entries[0]

    async def contents(self) -> AsyncIterator[bytes]:
        """What it prints, piece by piece; the guest waits while nobody takes it."""
        pieces = self._inbox.pieces(self._link, self._guest)
        while True:
            async with self._bounded():
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece

    async def feed(self, data: bytes) -> bool:
        """Send contents; False when the operation has ended early."""
        async with self._bounded():
            return await self._link.write_input(self._guest, data)

    def end(self) -> None:
        """All contents are sent."""
        if not self._guest.account.input.closed:
            self._link.end_input(self._guest)

    async def result(self) -> Entry | None:
        """Wait for the end: the entry it prints, if any; FileFailed if it failed."""
        async with self._bounded():
            while not (self._guest.complete.done() or self._inbox.overflowed):
                await self._inbox.moved(self._guest)
        notes = self._notes()
        self._check_end()
        entries = parse_entries(notes)
        return entries[0] if entries else None

    async def listing(self) -> list[Entry]:
        """All entries that `list` prints."""
        parser = EntryParser()
        async for piece in self.contents():
            if len(piece) > _HERE_MAX:
                await aside(partial(parser.feed, piece))
            else:
                parser.feed(piece)
        await self.result()
        return parser.end()

    async def changes(self) -> AsyncIterator["Change"]:
        """All that `watch` tells; FileFailed if the folder cannot be watched."""
        raw, turn = b"", turn_budget()
        async for piece in self._inbox.pieces(self._link, self._guest):  # for as long as nothing happens
            *fields, raw = (raw + piece).split(b"\0")
            if len(raw) > _NAME_MAX:
                raise _broken("a change")
            whole = len(fields) // _CHANGE_FIELDS * _CHANGE_FIELDS
            for i in range(0, whole, _CHANGE_FIELDS):
                kind, path, target = (os.fsdecode(each) for each in fields[i : i + _CHANGE_FIELDS])
                if kind not in CHANGES:
                    raise _broken("a change")
                await turn.take(_CHANGE_COST)
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
    patience_s: float = PATIENCE_S,
) -> AsyncIterator[Operation]:
    """Run one operation of guest/files.c; it is ended if the caller leaves before its end.

    With no_links it follows no link that anybody but root may have put on the way (guest/place.c).
    One that gives no sign of life for patience_s seconds is ended too: GuestUnresponsive.
    """
    program = b"isobox-files-no-links" if no_links else b"isobox-files"
    argv = [program, name.encode(), os.fsencode(path), os.fsencode(argument)]
    flags = StartFlag.FILES | (StartFlag.ROOT_OK if allow_root else StartFlag(0))
    if not stdin:
        flags |= StartFlag.NO_STDIN
    inbox = Inbox()
    request = encode_request(user=user, cwd="", argv=argv, env={"PATH": "/"})
    try:
        guest = await link.start(inbox, request, flags=flags, timeout=_START_TIMEOUT_S)
    except StartFailed as error:
        if error.stage != Stage.EXEC or error.errno in _SCARCITY:
            raise
        raise HelperBroken(
            f"the sandbox's program for file operations could not be started: {errno_text(error.errno)}",
            hint="root inside has removed or replaced /.isobox/files: create another sandbox",
        ) from error
    try:
        yield Operation(link, inbox, guest, patience_s)
    except (GuestUnresponsive, HelperBroken):
        link.abandon(guest)
        raise
    finally:
        if not guest.complete.done():
            link.abandon(guest, signal.SIGTERM)  # so that it can take its half-written file away
        else:
            link.forget(guest)
