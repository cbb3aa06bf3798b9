"""Volumes of this machine: each version a tree in the store of images."""

import asyncio
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from fs.errors import ImageInvalid, StoreFull, UnknownImage
from fs.images import ImageStore
from fs.oci import export
from fs.oci.layers import apply
from fs.store.backend import disk_errors
from fs.store.store import Writer
from fs.tree import Limits, Node, Tree, folder
from isolation.files import Entry, FileFailed, FileType
from sandbox_api.host.interface import VolumeFacts

_PIECE = 1 << 20
_KEEPING = 8
"""Threads of their own for versions that are kept, which may take minutes: nobody else waits for them."""

_TYPES: dict[str, FileType] = {"file": "file", "dir": "dir", "symlink": "symlink", "fifo": "other"}


class LocalVolumes:
    """See `sandbox_api.host.interface.Volumes`."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._keeping = ThreadPoolExecutor(_KEEPING, "volume")

    async def keep(
        self, version: str, archive: AsyncIterator[bytes], *, below: str | None, at: str, most: int
    ) -> VolumeFacts:
        with disk_errors("the volume cannot be kept"), tempfile.TemporaryFile(prefix="isobox-volume-") as spool:
            received = 0
            async for piece in archive:
                received += len(piece)
                if received > most * 2 + (64 << 20):  # headers and padding of many small files included
                    raise _too_large(most)
                await asyncio.to_thread(spool.write, piece)
            spool.seek(0)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._keeping, self._keep, version, spool, below, at, most)

    def _keep(self, version: str, archive: BinaryIO, below: str | None, at: str, most: int) -> VolumeFacts:
        limits = Limits(entries=500_000, total_bytes=most * 2 + (64 << 20))

        def fill(tree: Tree, writer: Writer) -> None:
            if below is not None:
                base = self._tree(below)
                tree.root.children.update(base.root.children)
            given = Tree(limits=limits)
            check = self._store.life.check
            apply(archive, given, writer, limits=limits, keep_setuid=False, layered=False, check=check)
            where = os.fsencode(at.strip("/"))
            if where and tree.find(where) is None:
                tree.put(where, folder())
            for path, node in given.walk():
                placed = where + b"/" + path if where else path
                tree.put(placed, _bare(node) if node.kind == "dir" else node)
            if sum(node.size for node in {id(n): n for _, n in tree.walk() if n.kind == "file"}.values()) > most:
                raise _too_large(most)

        image = self._store.keep(version, fill)
        return VolumeFacts(image.digest, image.size)

    def _tree(self, version: str) -> Tree:
        if (image := self._store.named(version)) is None:
            raise UnknownImage(f"there is no version {version!r}")
        return self._store.tree(image.digest)

    def _node(self, version: str, path: str) -> Node:
        try:
            found = self._tree(version).find(os.fsencode(path.strip("/")))
        except ImageInvalid:
            found = None
        if found is None:
            raise FileFailed(errno.ENOENT, path)
        return found

    def _contents(self, node: Node) -> Iterator[bytes]:
        return self._store.store.contents(node.pieces)

    async def pack(self, version: str | None, path: str, *, owner: int | None = None) -> AsyncIterator[bytes]:
        with disk_errors("the files cannot be read"), tempfile.TemporaryFile(prefix="isobox-volume-") as spool:

            def work() -> None:
                node = folder() if version is None else self._node(version, path)
                tree = Tree(node) if node.kind == "dir" else Tree()
                if node.kind != "dir":
                    tree.put(os.fsencode(path).rpartition(b"/")[2], node)
                export.write_tar(tree, self._contents, spool, owner=owner)
                spool.seek(0)

            await asyncio.to_thread(work)
            while piece := await asyncio.to_thread(spool.read, _PIECE):
                yield piece

    async def read(self, version: str, path: str) -> AsyncIterator[bytes]:
        node = await asyncio.to_thread(self._node, version, path)
        if node.kind != "file":
            raise FileFailed(errno.EISDIR if node.kind == "dir" else errno.EINVAL, path)
        with disk_errors("the files cannot be read"), tempfile.TemporaryFile(prefix="isobox-volume-") as spool:

            def work() -> None:  # in one thread: the store's connection is bound to it
                spool.writelines(self._contents(node))
                spool.seek(0)

            await asyncio.to_thread(work)
            while piece := await asyncio.to_thread(spool.read, _PIECE):
                yield piece

    async def list_folder(self, version: str, path: str) -> list[Entry]:
        node = await asyncio.to_thread(self._node, version, path)
        if node.kind != "dir":
            raise FileFailed(errno.ENOTDIR, path)
        return [
            Entry(
                _TYPES[each.kind],
                each.mode,
                each.uid,
                each.gid,
                each.size,
                each.mtime * 1_000_000_000,
                os.fsdecode(name),
                os.fsdecode(each.target),
            )
            for name, each in sorted(node.children.items())
        ]

    async def remove(self, version: str) -> None:
        await asyncio.to_thread(self._store.remove, version)


def _bare(node: Node) -> Node:
    return Node("dir", node.mode, node.uid, node.gid, node.mtime)


def _too_large(most: int) -> StoreFull:
    return StoreFull(
        f"the volume would hold more than {most >> 20} MiB", hint="delete files, or give it a larger quota_mb"
    )
