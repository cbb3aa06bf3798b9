"""Answers the kernel: a folder of images, DIGEST.erofs each.

A file's number is made of its digest, so that another process knows it too.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from fs import fuse
from fs.errors import ImageError
from fs.lazy.image import LazyImage

_log = structlog.get_logger(__name__)
_THREADS: Final = 24
_AFTER_FAILURE_S: Final = 0.2
_FORGIVEN_S: Final = 5.0
_PATIENCE_S: Final = 30.0
"""So long a thread asks in vain before it is told to be lost."""

_SUFFIX: Final = b".erofs"

Open = Callable[[str], LazyImage | None]
"""Gives the image of a digest (hexadecimal), None if there is none."""


def number(digest: str) -> int:
    """The number of a digest's file."""
    return int(digest[:16], 16) | 1 << 62


_ROOT: Final = fuse.Attributes(fuse.ROOT, stat.S_IFDIR | 0o555)


def _file(node: int, size: int) -> fuse.Attributes:
    return fuse.Attributes(node, stat.S_IFREG | 0o444, size)


class Server:
    """One mount. Requests are answered by threads, each of which may wait for the store."""

    def __init__(
        self, fd: int, open_image: Open, list_images: Callable[[], list[str]], on_lost: Callable[[int, str], None]
    ) -> None:
        self._on_lost = on_lost
        self._failing: dict[int, tuple[float, float]] = {}
        self._fd = fd
        self._open_image = open_image
        self._list_images = list_images
        self._lock = threading.Lock()
        self._images: dict[int, LazyImage] = {}

    def run(self, *, taken_over: bool) -> None:
        """Serve until the mount is gone. What a process before this one left unanswered is asked for again."""
        if taken_over:
            try:
                os.write(self._fd, fuse.resend())
            except OSError as error:  # before Linux 6.9: whoever waited then waits until it is killed
                _log.warning("the kernel cannot ask again", error=error.strerror)
        threads = [threading.Thread(target=self._serve, name=f"fuse {n}") for n in range(_THREADS)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        for image in self._images.values():
            image.save_profile()

    def _serve(self) -> None:
        while True:
            try:
                packet = os.read(self._fd, fuse.BUFFER)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # whoever asked has gone
                    continue
                raise
            request = fuse.parse(packet)
            answer = self._answer(request)
            if request.opcode in fuse.SILENT:
                continue
            try:
                os.writev(self._fd, answer)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL):  # whoever asked has gone
                    raise

    def _answer(self, request: fuse.Request) -> list[bytes]:
        try:
            if request.opcode == fuse.READ:
                image = self._image(request.node)
                if image is None:
                    return [fuse.error(request, errno.ESTALE)]
                data = image.read(*request.range)
                return [fuse.reply_head(request, len(data)), data]
            return [self._small(request)]
        except ImageError as error:
            self._failed(request.pid, error.detail)
        except Exception as error:  # the thread goes on: others' requests are not to wait for ever
            _log.exception("a request failed", opcode=request.opcode)
            self._failed(request.pid, f"{type(error).__name__}: {error}")
        return [fuse.error(request, errno.EIO)]

    def _failed(self, pid: int, error: str) -> None:
        """Whoever gets an error here asks again at once, for ever: the sentry knows no error of a file that it maps."""
        now = time.monotonic()
        with self._lock:
            since, last = self._failing.get(pid, (now, 0.0))
            since = since if now - last < _FORGIVEN_S else now
            self._failing = {each: times for each, times in self._failing.items() if now - times[1] < _FORGIVEN_S}
            self._failing[pid] = (since, now)
        if now - last > _FORGIVEN_S:
            _log.error("a part of an image cannot be had", error=error, thread=pid)
        elif now - since > _PATIENCE_S:
            self._on_lost(pid, error)
        time.sleep(_AFTER_FAILURE_S)

    def _small(self, request: fuse.Request) -> bytes:
        match request.opcode:
            case fuse.INIT:
                return fuse.init(request)[0]
            case fuse.LOOKUP:
                digest = request.name.removesuffix(_SUFFIX).decode(errors="replace")
                image = self._load(digest) if request.node == fuse.ROOT and request.name.endswith(_SUFFIX) else None
                if image is None:
                    return fuse.error(request, errno.ENOENT)
                return fuse.entry(request, _file(number(digest), image.size))
            case fuse.GETATTR:
                if request.node == fuse.ROOT:
                    return fuse.attributes(request, _ROOT)
                image = self._image(request.node)
                return (
                    fuse.error(request, errno.ESTALE)
                    if image is None
                    else fuse.attributes(request, _file(request.node, image.size))
                )
            case fuse.OPEN:
                image = self._image(request.node)
                if image is None:
                    return fuse.error(request, errno.ESTALE)
                image.begin()
                return fuse.opened(request)
            case fuse.OPENDIR:
                return fuse.opened(request)
            case fuse.READDIR | fuse.RELEASE | fuse.RELEASEDIR | fuse.FLUSH | fuse.ACCESS | fuse.DESTROY:
                return fuse.reply(request)
            case fuse.STATFS:
                return fuse.statfs(request)
        return fuse.error(request, errno.ENOSYS)

    def _load(self, digest: str) -> LazyImage | None:
        if len(digest) != 64 or not digest.isalnum():
            return None
        with self._lock:
            if (known := self._images.get(number(digest))) is not None:
                return known
            image = self._open_image(digest)
            if image is not None:
                self._images[number(digest)] = image
            return image

    def _image(self, node: int) -> LazyImage | None:
        if (known := self._images.get(node)) is not None:
            return known
        for digest in self._list_images():
            if number(digest) == node:
                return self._load(digest)
        return None
