"""Serves one mount: the questions of a sandbox's kernel, answered from a bucket.

What is read comes from objects, straight; what is written lies in a spool until it is closed, then becomes an object as
a whole. While it lies there everybody in the sandbox sees it. Mode, owner and times are not kept.

Numbers of paths and open files are noted where the mount lives, so that another server, or that of a copy, goes on;
a file that is open for writing goes on with its own server's spools alone (ESTALE in a copy).
"""

import asyncio
import errno
import json
import os
import secrets
import stat
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from common.tasks import TaskOwner
from fs import fuse
from fs.buckets import hold, names
from fs.buckets.objects import Objects
from fs.buckets.pages import Facts
from fs.buckets.reader import Reader
from fs.buckets.share import Share
from fs.buckets.spools import Spool, SpoolFull, Spools
from fs.buckets.tree import Tree
from fs.buckets.writing import Writing
from fs.errors import BucketFailed

_log = structlog.get_logger(__name__)
_AT_ONCE: Final = 64
_HERE_MAX: Final = 64 << 10
"""Bytes that are written sooner than a thread is woken."""

_VALID_S: Final = 1
_ANSWERS_KEPT: Final = 256
_OPEN_MAX: Final = 4096
"""Files: of those that are open, and of notes about what an earlier server opened."""

_NOTED_BYTES: Final = 4 << 20
"""Of all such notes, which are the guest's word."""

_TOLD_AGAIN_S: Final = 10.0
_TOLD_MAX: Final = 16
_HANDLE: Final = 1 << 63
_PLENTY_BLOCKS: Final = 1 << 38
_CHANGES: Final = frozenset({fuse.CREATE, fuse.MKDIR, fuse.UNLINK, fuse.RMDIR, fuse.RENAME, fuse.SETATTR, fuse.OPEN})

_READS: Final = frozenset({fuse.LOOKUP, fuse.GETATTR, fuse.READ, fuse.OPENDIR, fuse.READDIR, fuse.STATFS, fuse.ACCESS})
"""What nobody waits for any more once the sandbox has ended."""


class Connection(Protocol):
    """The way to the program that holds the mount."""

    async def receive(self) -> bytes:
        """What came; b"" at its end."""

    async def send(self, data: bytes) -> bool:
        """False if it takes no more."""


@dataclass(slots=True)
class _Handle:
    """An open file or folder."""

    path: bytes
    reader: Reader | None = None
    spool: Spool | None = None
    writes: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def _refused(number: int) -> OSError:
    """An errno for whoever asked."""
    return OSError(number, os.strerror(number))


class Server:
    """See the module."""

    def __init__(
        self,
        objects: Objects,
        spools: Spools,
        *,
        read_only: bool,
        owner: int,
        on_failure: Callable[[str, str], None],
        requests: Executor,
        fetches: Executor,
        share: Share,
    ) -> None:
        """on_failure hears of a path and what became of it; owner is the user whose files they are.

        Fetches must be other threads than requests, which wait for them. The share is its sandbox's.
        """
        self._objects = objects
        self._share = share
        self._read_only = read_only
        self._owner = owner
        self._on_failure = on_failure
        self._told: dict[tuple[str, str], float] = {}
        self._tree = Tree(objects, requests, fetches, share)
        self._writing = Writing(self._tree, spools, is_open=self._is_open, on_failure=on_failure)
        self._outbox: list[bytes] = []
        self._paths = names.Paths(self._note)
        self._handles: dict[int, _Handle] = {}
        self._folders: set[int] = set()
        self._noted: OrderedDict[int, bytes] = OrderedDict()
        self._noted_bytes = 0
        self._answers: OrderedDict[int, asyncio.Task[bytes]] = OrderedDict()
        self._tasks = TaskOwner()
        self._reading = TaskOwner()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._connection: Connection | None = None
        self._sending = asyncio.Lock()
        self._pong = asyncio.Event()

    # ---- the conversation

    async def serve(self, connection: Connection) -> None:
        """Answer what comes over a connection until its end; `hold.HoldViolation`."""
        packets = hold.Packets()
        self._connection = connection
        try:
            while data := await connection.receive():
                for packet in packets.feed(data):
                    if packet.opcode == 0:
                        self._hear_note(packet)
                    else:
                        await self._places.acquire()
                        size = await self._take_room(packet)
                        owner = self._reading if packet.opcode in _READS else self._tasks
                        owner.spawn(self._answer(connection, packet, size), name=f"fuse {packet.opcode}")
        finally:
            self._connection = None
            self._pong.set()

    def _hear_note(self, packet: fuse.Request) -> None:
        if packet.unique:
            self._pong.set()
        elif packet.node & _HANDLE:
            if packet.node not in self._handles:
                self._take_note(packet.node)
                self._noted[packet.node] = packet.body
                self._noted_bytes += len(packet.body)
                while len(self._noted) > _OPEN_MAX or self._noted_bytes > _NOTED_BYTES:
                    self._take_note(next(iter(self._noted)))
        elif packet.node:
            self._paths.learn(packet.node, packet.body)

    def _take_note(self, number: int) -> dict[str, Any]:
        """Take what was noted of an open file; empty for what is no note of ours."""
        body = self._noted.pop(number, b"")
        self._noted_bytes -= len(body)
        try:
            noted = json.loads(body)
        except (ValueError, RecursionError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def _note(self, key: int, text: bytes | None) -> None:
        self._outbox.append(hold.note(key, text))

    async def _take_room(self, packet: fuse.Request) -> int:
        """Wait for room for a question and its answer: how much that is."""
        size = len(packet.body)
        if packet.opcode in (fuse.READ, fuse.READDIR) and size >= fuse.READ_SIZE:
            size += packet.range[1]
        try:
            await self._share.in_flight.take(size)
        except BaseException:
            self._places.release()
            raise
        return size

    async def _answer(self, connection: Connection, request: fuse.Request, size: int) -> None:
        try:
            answer = await self._once(request)
            if connection is not self._connection:  # whoever comes next is asked again
                return
            async with self._sending:
                notes, self._outbox = self._outbox, []
                await connection.send(b"".join((*notes, answer)))
        finally:
            self._share.in_flight.give(size)
            self._places.release()

    async def _once(self, request: fuse.Request) -> bytes:
        """What changes something is done once, though it be asked again over another connection."""
        if request.opcode not in _CHANGES:
            return await self._safely(request)
        if (asked := self._answers.get(request.unique)) is None:
            asked = self._tasks.spawn(self._safely(request), name=f"change {request.opcode}")
            self._answers[request.unique] = asked
            if len(self._answers) > _ANSWERS_KEPT:
                self._answers.popitem(last=False)
        return await asyncio.shield(asked)

    async def _safely(self, request: fuse.Request) -> bytes:
        try:
            return await self._do(request)
        except BucketFailed as error:
            if error.errno == errno.EIO:
                _log.warning("a bucket failed", error=error.detail)
                self._tell("", error.detail)
            return fuse.error(request, error.errno)
        except SpoolFull as error:
            self._tell("", error.detail)
            return fuse.error(request, errno.ENOSPC)
        except OSError as error:
            return fuse.error(request, error.errno or errno.EIO)
        except struct.error:  # no kernel asks so; whoever is root inside may
            return fuse.error(request, errno.EINVAL)
        except Exception:  # one question's fault is not to end the others
            _log.exception("a request failed", opcode=request.opcode)
            return fuse.error(request, errno.EIO)

    def _tell(self, path: str, detail: str) -> None:
        """Once in a while, however often it is asked for."""
        now = time.monotonic()
        self._told = {each: at for each, at in self._told.items() if at > now - _TOLD_AGAIN_S}
        if (path, detail) not in self._told and len(self._told) < _TOLD_MAX:
            self._told[path, detail] = now
            self._on_failure(path, detail)

    async def _do(self, request: fuse.Request) -> bytes:
        match request.opcode:
            case fuse.INIT:
                return fuse.init_gvisor(request)
            case fuse.LOOKUP:
                return fuse.entry(request, await self._look(self._child(request.node, request.name)), _VALID_S)
            case fuse.GETATTR:
                return fuse.attributes(request, await self._look(self._path(request.node)), _VALID_S)
            case fuse.SETATTR:
                return await self._set(request)
            case fuse.OPEN:
                return await self._open(request)
            case fuse.CREATE:
                return await self._create(request)
            case fuse.READ:
                return await self._read(request)
            case fuse.WRITE:
                return await self._write(request)
            case fuse.FLUSH | fuse.FSYNC:
                await self._flush(self._handle(request.handle))
                return fuse.reply(request)
            case fuse.RELEASE:
                await self._release(request.handle)
                return fuse.reply(request)
            case fuse.OPENDIR:
                return await self._open_folder(request)
            case fuse.READDIR:
                return self._read_folder(request)
            case fuse.RELEASEDIR:
                self._folders.discard(request.handle)
                self._share.folders.close(request.handle)
                return fuse.reply(request)
            case fuse.MKDIR | fuse.UNLINK | fuse.RMDIR | fuse.RENAME:
                await self._change(request)
                if request.opcode != fuse.MKDIR:
                    return fuse.reply(request)
                made = self._child(request.node, request.named(8))
                return fuse.entry(request, self._folder(made), _VALID_S)
            case fuse.STATFS:
                return fuse.statfs(request, _PLENTY_BLOCKS)
            case fuse.ACCESS | fuse.DESTROY:
                return fuse.reply(request)
        return fuse.error(request, errno.ENOSYS)

    # ---- names

    def _path(self, node: int) -> bytes:
        path = self._paths.path(node)
        if path is None:
            raise _refused(errno.ESTALE)
        return path

    def _child(self, node: int, name: bytes) -> bytes:
        path = names.child(self._path(node), name)
        if path is None:
            raise _refused(errno.ENAMETOOLONG if len(name) > names.NAME_MAX else errno.ENOENT)
        return path

    def _file(self, path: bytes, size: int, mtime_s: int) -> fuse.Attributes:
        mode = stat.S_IFREG | (0o444 if self._read_only else 0o644)
        return fuse.Attributes(self._paths.number(path), mode, size, mtime_s, self._owner)

    def _folder(self, path: bytes) -> fuse.Attributes:
        mode = stat.S_IFDIR | (0o555 if self._read_only else 0o755)
        return fuse.Attributes(self._paths.number(path), mode, owner=self._owner)

    async def _look(self, path: bytes) -> fuse.Attributes:
        if not path:
            return self._folder(path)
        if (spool := self._writing.at(path)) is not None:
            return self._file(path, spool.size, spool.mtime_s)
        facts = await self._facts(path)
        return self._folder(path) if facts is None else self._file(path, facts.size, facts.mtime_s)

    async def _facts(self, path: bytes) -> Facts | None:
        return await self._tree.facts(path, is_folder=self._writing.below(path))

    # ---- open files

    def _is_open(self, spool: Spool) -> bool:
        return any(each.spool is spool for each in self._handles.values())

    def _may_open(self) -> None:
        if len(self._handles) >= _OPEN_MAX:
            raise _refused(errno.EMFILE)

    def _begin(self, handle: _Handle) -> int:
        number = secrets.randbits(62) | 1 | _HANDLE
        self._handles[number] = handle
        noted: dict[str, Any] = {"path": handle.path.decode(), "writes": handle.writes}
        if handle.spool is not None:
            noted["spool"] = handle.spool.id
        elif handle.reader is not None:
            facts = handle.reader.facts
            noted |= {"size": facts.size, "mtime": facts.mtime_s, "etag": facts.etag}
        self._note(number, json.dumps(noted).encode())
        return number

    def _handle(self, number: int) -> _Handle:
        if (known := self._handles.get(number)) is not None:
            return known
        self._may_open()
        found = self._handle_again(self._take_note(number))
        if found is None:
            raise _refused(errno.ESTALE)
        self._handles[number] = found
        return found

    def _handle_again(self, noted: dict[str, Any]) -> _Handle | None:
        """One that another server opened."""
        try:
            path: bytes = noted["path"].encode()
            if "spool" in noted:
                spool = self._writing.again(str(noted["spool"]))
                return None if spool is None else _Handle(path, spool=spool, writes=noted["writes"] is True)
            if not names.is_path(path):
                return None
            facts = Facts(int(noted["size"]), int(noted["mtime"]), str(noted["etag"]))
            return _Handle(path, reader=self._tree.reader(path, facts))
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
            return None

    async def _open(self, request: fuse.Request) -> bytes:
        self._may_open()
        path, flags = self._path(request.node), request.flags
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            spool = await self._spool(path, keeps=not flags & os.O_TRUNC)
            return fuse.opened(request, self._begin(_Handle(path, spool=spool, writes=True)))
        if (written := self._writing.at(path)) is not None:
            return fuse.opened(request, self._begin(_Handle(path, spool=written)))
        facts = await self._facts(path)
        if facts is None:
            raise _refused(errno.EISDIR)
        return fuse.opened(request, self._begin(_Handle(path, reader=self._tree.reader(path, facts))))

    async def _create(self, request: fuse.Request) -> bytes:
        self._may_open()
        path = self._child(request.node, request.named(16))
        spool = await self._spool(path, keeps=False)
        handle = self._begin(_Handle(path, spool=spool, writes=True))
        return fuse.created(request, self._file(path, spool.size, spool.mtime_s), handle, _VALID_S)

    async def _spool(self, path: bytes, *, keeps: bool) -> Spool:
        """The file that is written there; with keeps it begins with what the object has."""
        self._may_write()
        return await (self._writing.kept(path) if keeps else self._writing.empty(path))

    def _may_write(self) -> None:
        if self._read_only:
            raise _refused(errno.EROFS)

    async def _read(self, request: fuse.Request) -> bytes:
        handle, (offset, size) = self._handle(request.handle), request.range
        if handle.spool is not None:
            data = await self._tree.in_thread(handle.spool.read, offset, size)
        elif handle.reader is not None:
            async with handle.lock:
                data = await self._tree.in_thread(handle.reader.read, offset, size)
        else:
            raise _refused(errno.EISDIR)
        return fuse.reply_head(request, len(data)) + data

    async def _write(self, request: fuse.Request) -> bytes:
        handle, (offset, data) = self._handle(request.handle), request.written
        if handle.spool is None or not handle.writes:
            raise _refused(errno.EBADF)
        if len(data) <= _HERE_MAX:
            handle.spool.write(offset, data)
        else:
            await self._tree.in_thread(handle.spool.write, offset, data)
        return fuse.written(request, len(data))

    async def _set(self, request: fuse.Request) -> bytes:
        path, size = self._path(request.node), request.new_size
        if size is not None:
            spool = await self._spool(path, keeps=size > 0)
            spool.truncate(size)
            if not self._is_open(spool):
                await self._writing.close(spool)
        return fuse.attributes(request, await self._look(path), _VALID_S)

    async def _flush(self, handle: _Handle) -> None:
        if handle.spool is not None and handle.writes:
            await self._writing.upload(handle.spool)

    async def _release(self, number: int) -> None:
        try:
            handle = self._handle(number)
        finally:
            self._handles.pop(number, None)
            self._note(number, None)
        if handle.reader is not None:
            handle.reader.close()
        if handle.spool is not None and not self._is_open(handle.spool):
            await self._writing.close(handle.spool)

    # ---- folders

    async def _open_folder(self, request: fuse.Request) -> bytes:
        path = self._path(request.node)
        folder = await self._tree.open_folder(path, lambda: self._writing.names_in(path))
        number = secrets.randbits(62) | 1 | _HANDLE
        self._folders.add(number)
        self._share.folders.open(number, folder)
        self._folders &= set(self._share.folders)
        return fuse.opened(request, number)

    def _read_folder(self, request: fuse.Request) -> bytes:
        folder = self._share.folders.get(request.handle) if request.handle in self._folders else None
        if folder is None:
            raise _refused(errno.EISDIR if request.handle in self._handles else errno.ESTALE)
        return fuse.reply(request, folder.read(*request.range))

    async def _change(self, request: fuse.Request) -> None:
        self._may_write()
        match request.opcode:
            case fuse.MKDIR:
                await self._tree.make_folder(self._child(request.node, request.named(8)))
            case fuse.UNLINK:
                path = self._child(request.node, request.name)
                await self._writing.abandon(path)
                await self._tree.delete(path)
            case fuse.RMDIR:
                path = self._child(request.node, request.name)
                if self._writing.below(path):
                    raise _refused(errno.ENOTEMPTY)
                await self._tree.remove_folder(path)
            case _:
                folder, old, new = request.renamed
                await self._rename(self._child(request.node, old), self._child(folder, new))

    async def _rename(self, old: bytes, new: bytes) -> None:
        if old == new:
            return
        if self._writing.at(old) is None and await self._tree.head(old) is None:
            # A folder, which mv(1) then copies; or it was renamed already, by a server that did not live to say so.
            if await self._tree.head(new) is not None:
                return
            raise _refused(errno.EXDEV)
        await self._writing.abandon(new)
        spool = self._writing.at(old)
        if spool is None or not await self._writing.rename(spool, old, new):
            await self._tree.copy(old, new)
        await self._tree.delete(old)
        for handle in self._handles.values():
            if handle.spool is spool is not None:
                handle.path = new

    # ---- beginning and end

    async def finish_left(self) -> None:
        """Store what was closed under an earlier server and has not arrived."""
        for spool in self._writing.left():
            self._tasks.spawn(self._finish(spool), name="upload again")

    async def _finish(self, spool: Spool) -> None:
        try:
            await self._writing.close(spool)
        except BucketFailed as error:  # whoever is to know was told
            _log.info("given up", error=error.detail)

    async def hear_all(self, timeout_s: float) -> None:
        """Wait until all is heard that has been asked inside by now, at most so long."""
        if (connection := self._connection) is not None:
            self._pong.clear()
            async with self._sending:
                await connection.send(hold.ping())
            try:
                async with asyncio.timeout(timeout_s):
                    await self._pong.wait()
            except TimeoutError:
                _log.info("a mount does not answer; what it has not said is lost")

    async def leave(self) -> None:
        """Nobody asks any more: end what is read, also in threads, and keep on storing what was closed."""
        self._objects.abort(writes=False)
        await self._reading.cancel()

    async def stored(self) -> None:
        """Wait until what was closed is stored, or given up."""
        await self._tasks.finished()

    async def close(self) -> None:
        """Answer nobody any more, and end what goes on in threads."""
        self._objects.abort(writes=True)
        await self._reading.cancel()
        await self._tasks.cancel()
        for number in self._folders:
            self._share.folders.close(number)
        for handle in self._handles.values():
            if handle.reader is not None:
                handle.reader.close()
        self._writing.stop()
        await self._tree.close()
