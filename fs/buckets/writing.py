"""Files that are being written, until each is an object: spools by path, and their way into the bucket."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from fs import fuse
from fs.buckets import names
from fs.buckets.pages import Facts
from fs.buckets.spools import Spool, Spools
from fs.buckets.tree import Tree
from fs.errors import BucketFailed

_log = structlog.get_logger(__name__)
_UPLOAD_PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0)


class Writing:
    """See the module."""

    def __init__(
        self,
        tree: Tree,
        spools: Spools,
        *,
        is_open: Callable[[Spool], bool],
        on_failure: Callable[[str, str], None],
    ) -> None:
        """on_failure hears of a path and what became of it."""
        self._tree = tree
        self._spools = spools
        self._is_open = is_open
        self._on_failure = on_failure
        self._by_path: dict[bytes, Spool] = {}
        """Those that are open, or on their way."""
        self._turns: dict[str, asyncio.Lock] = {}

    def at(self, path: bytes) -> Spool | None:
        """What is being written there."""
        return self._by_path.get(path)

    def below(self, folder: bytes) -> bool:
        """Whether something is being written in a folder, or deeper."""
        return any(each.startswith(folder + b"/") for each in self._by_path)

    def names_in(self, folder: bytes) -> set[bytes]:
        """The names of what is being written in a folder."""
        return {each.rpartition(b"/")[2] for each in self._by_path if names.parent(each) == folder}

    def _turn(self, spool: Spool) -> asyncio.Lock:
        """One thing at a time is done with a spool as a whole."""
        return self._turns.setdefault(spool.id, asyncio.Lock())

    async def empty(self, path: bytes) -> Spool:
        """A file that is written there from nothing on. OSError, SpoolFull."""
        while True:
            if (spool := self._by_path.get(path)) is None:
                spool = self._by_path[path] = self._spools.create(path)
            async with self._turn(spool):
                if self._by_path.get(path) is spool:  # it has not become an object meanwhile
                    spool.truncate(0)
                    return spool

    async def kept(self, path: bytes) -> Spool:
        """One that begins as what is there. OSError (ENOENT, EISDIR …), SpoolFull, BucketFailed."""
        while True:
            if (spool := self._by_path.get(path)) is not None:
                async with self._turn(spool):  # until it has what it begins with
                    if self._by_path.get(path) is spool:
                        return spool
                continue
            if (facts := await self._tree.facts(path, is_folder=self.below(path))) is None:
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if path not in self._by_path:  # nobody was faster
                spool = self._by_path[path] = self._spools.create(path)
                async with self._turn(spool):
                    await self._fill(spool, path, facts)
                    return spool

    async def _fill(self, spool: Spool, path: bytes, facts: Facts) -> None:
        reader = self._tree.reader(path, facts)
        try:
            while spool.size < facts.size:
                data = await self._tree.in_thread(reader.read, spool.size, fuse.MAX_READ)
                if not data:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                spool.write(spool.size, data)
            spool.changed = False
        except BaseException:
            self._drop(spool)
            raise
        finally:
            reader.close()

    def again(self, id_: str) -> Spool | None:
        """One that an earlier server opened; None if this mount has no such. OSError, SpoolFull."""
        if (spool := self._spools.again(id_)) is not None and spool.path is not None:
            self._by_path[spool.path] = spool
        return spool

    def left(self) -> Iterator[Spool]:
        """Those that were closed under an earlier server and have not arrived."""
        for spool in self._spools.left():
            if spool.path is not None:
                self._by_path[spool.path] = spool
            yield spool

    async def upload(self, spool: Spool) -> None:
        """Make an object of it as it is, if it has changed; BucketFailed once that was tried in vain."""
        async with self._turn(spool):
            await self._upload(spool)

    async def _upload(self, spool: Spool) -> None:
        if not spool.changed or spool.path is None:
            return
        spool.note(upload=True)
        for pause in (*_UPLOAD_PAUSES_S, None):
            spool.changed = False
            try:
                if spool.path is not None:  # not deleted meanwhile
                    await self._tree.put(spool.path, spool.fd, spool.size)
                break
            except BucketFailed as error:
                spool.changed = True
                if pause is None or error.errno != errno.EIO:
                    spool.note(upload=False)
                    path = (spool.path or b"").decode()
                    _log.warning("not uploaded", path=path, error=error.detail)
                    self._on_failure(path, f"it was not stored: {error.detail}")
                    raise
            await asyncio.sleep(pause)
        spool.note(upload=False)

    async def close(self, spool: Spool) -> None:
        """Upload it; unless somebody opened it meanwhile, it is gone then. BucketFailed."""
        try:
            await self.upload(spool)
        finally:
            if not self._is_open(spool):
                self._drop(spool)

    def _drop(self, spool: Spool) -> None:
        if spool.path is not None and self._by_path.get(spool.path) is spool:
            del self._by_path[spool.path]
        self._turns.pop(spool.id, None)
        self._spools.drop(spool)

    async def abandon(self, path: bytes) -> None:
        """Its name is gone: who has it open may go on, and nothing comes of it after this returns."""
        if (spool := self._by_path.pop(path, None)) is not None:
            spool.path = None
            spool.note(upload=False)
            async with self._turn(spool):  # what is on its way has arrived
                pass

    async def rename(self, spool: Spool, old: bytes, new: bytes) -> bool:
        """Store it under another name; False if it became an object meanwhile. BucketFailed."""
        async with self._turn(spool):  # what is on its way to the old name has arrived
            if self._by_path.get(old) is not spool:
                return False
            del self._by_path[old]
            spool.path = new
            self._by_path[new] = spool
            spool.changed = True
            await self._upload(spool)
            return True

    def stop(self) -> None:
        """Let go of all; what a later server may need stays on the disk."""
        self._spools.close()
