"""This machine's images: work that blocks for long, in threads, told line by line."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final, TypeVar

from fs.compare import compare
from fs.errors import UnknownImage
from fs.guarded import Access
from fs.image import Image
from fs.images import ImageStore
from fs.oci.layers import apply
from fs.oci.login import Login
from fs.progress import Progress
from fs.store.store import Writer
from fs.tree import Tree
from isolation.snapshots import Maker, SnapshotFolder
from sandbox_api.host.interface import CopyFacts, Difference, ImageFacts

T = TypeVar("T")
_WORK_MAX_S: Final = 2 * 3600.0
"""So long one image may be pulled, laid out or sent."""


class LocalImages:
    """See `sandbox_api.host.interface.Images`."""

    def __init__(self, store: ImageStore, snapshots: SnapshotFolder, maker: Maker, access: Access) -> None:
        self._store = store
        self._snapshots = snapshots
        self._maker = maker
        self._access = access
        self._building = asyncio.Lock()

    def all(self) -> list[ImageFacts]:
        return [_facts(image) for image in self._store.all()]

    def named(self, name: str) -> ImageFacts | None:
        image = self._store.named(name)
        return None if image is None else _facts(image)

    async def ensure(self, name: str) -> ImageFacts:
        return _facts(await self.ready(name))

    async def ready(self, name: str) -> Image:
        """The same, as the store has it."""
        if (image := self._store.ready(name)) is not None:
            return image
        async with self._building:
            return await asyncio.to_thread(self._store.ensure, name)

    async def pull(self, name: str, reference: str, login: Login | None) -> AsyncIterator[str | ImageFacts]:
        def work(progress: Progress) -> ImageFacts:
            found = self._store.pull(name, reference, self._access, login=login, progress=progress)
            return _facts(found)

        async for each in _told(work):
            yield each

    async def derive(
        self, name: str, image_digest: str, copy: CopyFacts | None, config: dict[str, Any]
    ) -> AsyncIterator[str | ImageFacts]:
        for image in self._store.everybodys():
            if image.digest == image_digest and image.origin is not None:
                await asyncio.to_thread(self._store.elsewhere.localise, image)

        def fill(tree: Tree, writer: Writer, check: Callable[[], None]) -> dict[str, Any]:
            base = self._store.tree(image_digest)
            tree.root.children.update(base.root.children)
            tree.put(b"", base.root)
            if copy is not None:
                opened = self._snapshots.open(copy.name, copy.digest, self._maker)
                try:
                    with os.fdopen(os.dup(opened.fds[0]), "rb") as layer:
                        layer.seek(0)
                        # What its own root made set-user-id is no more than that root's word, inside.
                        apply(layer, tree, writer, limits=self._store.limits, keep_setuid=True, check=check)
                finally:
                    opened.close()
            return config

        def work(progress: Progress) -> ImageFacts:
            made = self._store.make(name, lambda tree, writer: fill(tree, writer, progress.check), progress)
            return _facts(made)

        async for each in _told(work):
            yield each

    async def push(self, name: str, reference: str, login: Login | None) -> AsyncIterator[str]:
        if (image := self._store.named(name)) is None:
            raise UnknownImage(f"there is no image {name!r}")

        def work(progress: Progress) -> str:
            self._store.elsewhere.localise(image)
            return self._store.push(image, reference, self._access, login=login, progress=progress)

        async for each in _told(work):
            yield each

    async def blob(self, key: str, offset: int, length: int) -> bytes | None:
        return await asyncio.to_thread(self._store.elsewhere.blob, key, offset, length)

    async def differences(self, older: str, newer: str, most: int) -> tuple[list[Difference], bool]:
        def work() -> tuple[list[Difference], bool]:
            found = list(islice(compare(self._store.tree(older), self._store.tree(newer)), most + 1))
            return found[:most], len(found) > most

        return await asyncio.to_thread(work)

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(self._store.remove, name)

    async def prune(self) -> None:
        await asyncio.to_thread(self._store.prune)


async def _told(work: Callable[[Progress], T]) -> AsyncIterator[str | T]:
    """Run work in a thread: its lines, then what it returns. Whoever leaves early stops it and waits for its end.

    The thread is its own: one that waits for a registry keeps nobody else's work waiting.
    """
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str | None]()
    progress = Progress(lambda line: _later(loop, lines, line), within_s=_WORK_MAX_S)

    def run() -> T:
        try:
            return work(progress)
        finally:
            _later(loop, lines, None)

    thread = ThreadPoolExecutor(1, "image")
    running = loop.run_in_executor(thread, run)
    thread.shutdown(wait=False)
    try:
        while (line := await lines.get()) is not None:
            yield line
        yield await running
    finally:
        progress.stop()
        await asyncio.wait([running])


def _later(loop: asyncio.AbstractEventLoop, lines: "asyncio.Queue[str | None]", line: str | None) -> None:
    loop.call_soon_threadsafe(lines.put_nowait, line)


def _facts(image: Image) -> ImageFacts:
    return ImageFacts(image.id, image.name, image.digest, image.size, image.created_at, image.config)
