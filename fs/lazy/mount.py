"""The server's side of lazy images: the mount, and the process that answers for it, kept running.

The descriptor of /dev/fuse is the mount. Whoever started this keeps a copy of it where it outlives server and process
alike; a process that dies is replaced by one that goes on with it, and the kernel asks it again for what was not
answered. If the copies are lost as well, the kernel ends the mount, and what runs from it gets I/O errors.
"""

import asyncio
import ctypes
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from fs.errors import ImageError

_log = structlog.get_logger(__name__)
_START: Final = "import sys; sys.path.insert(0, {root!r}); from fs.lazy.process import main; main()"
_LOOK_S: Final = 0.2
_BACK_OFF_MAX_S: Final = 5.0
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class LazySettings:
    """folder is this server's own, store, cache and profiles the machine's; limit_bytes is the cache's.

    owner is the id of the server's state directory (common/owners.py).
    """

    folder: Path
    store: Path
    cache: Path
    profiles: Path
    limit_bytes: int
    owner: str = ""


class LazyMount:
    """See the module. `keep` is given the descriptor, to be kept; `drop` is called when it is not needed any more.

    `on_lost` is told of a thread that waits for what no store gives, and why.
    """

    def __init__(
        self,
        settings: LazySettings,
        kept: int | None,
        *,
        keep: Callable[[int], object],
        drop: Callable[[], object],
        on_lost: Callable[[int, str], None],
    ) -> None:
        self._starting = threading.Lock()
        self._on_lost = on_lost
        self._told = 0
        self._settings = settings
        self._fd = kept
        self._keep = keep
        self._drop = drop
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        """How often a process had to be started."""

    @property
    def point(self) -> Path:
        """Where it is mounted."""
        return self._settings.folder / "images"

    @property
    def started(self) -> bool:
        """Whether it is mounted."""
        return self._fd is not None

    def path(self, digest: str) -> Path:
        """Where the image of that digest can be read."""
        return self.point / f"{digest.removeprefix('sha256:')}.erofs"

    def start(self) -> None:
        """Mount it if it is not, and have a process answer; ImageError if that cannot be."""
        with self._starting:
            if self._fd is None:
                self._mount()
            if not self._alive():
                self._spawn()

    def _mount(self) -> None:
        self.point.mkdir(mode=0o700, parents=True, exist_ok=True)
        _libc.umount2(os.fsencode(self.point), _MNT_DETACH)  # of a server whose descriptors were lost
        try:
            fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(
                f"there is no /dev/fuse: {error.strerror}", hint="modprobe fuse; lazy images need it"
            ) from error
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions".encode()
        # Not noexec: the sentry maps what its guests execute out of these very files.
        flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
        if _libc.mount(b"isobox-lazy", os.fsencode(self.point), b"fuse", flags, options) != 0:
            number = ctypes.get_errno()
            os.close(fd)
            raise ImageError(f"lazy images cannot be mounted: {os.strerror(number)}")
        self._fd = fd
        self._taken_over = False
        self._keep(fd)

    _taken_over = True
    """Whether the descriptor was in use before: an INIT that was answered is not asked for again."""

    def _alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        with open(self._settings.folder / "lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _spawn(self) -> None:
        assert self._fd is not None
        given = self._settings
        settings = {
            "fd": self._fd,
            "folder": str(given.folder),
            "store": str(given.store),
            "cache": str(given.cache),
            "profiles": str(given.profiles),
            "limit_bytes": given.limit_bytes,
            "owner": given.owner,
            "taken_over": self._taken_over,
        }
        wanted = ("AWS_", "ISOBOX_STORES_KEY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
        environment = {name: value for name, value in os.environ.items() if name.startswith(wanted)}
        with open(given.folder / "lazy.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START.format(root=str(Path(__file__).parents[2])), json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                pass_fds=[self._fd],
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", **environment},
            )
        self._taken_over = True
        self.starts += 1

    async def run(self) -> None:
        """Replace a process that dies, for as long as there is a mount."""
        pause = _LOOK_S
        while True:
            await asyncio.sleep(pause)
            self._look_for_lost()
            if self._fd is None or await asyncio.to_thread(self._look):
                pause = _LOOK_S
                continue
            _log.warning("the process of lazy images had gone; another one goes on")
            pause = min(pause * 2, _BACK_OFF_MAX_S)

    def _look(self) -> bool:
        """Whether a process answers; if not, another one is started."""
        with self._starting:
            alive = self._alive()
            if not alive:
                self._spawn()
            return alive

    def _look_for_lost(self) -> None:
        try:
            with open(self._settings.folder / "lost.jsonl") as told:
                told.seek(self._told)
                for line in told:
                    found = json.loads(line)
                    self._on_lost(int(found["pid"]), str(found["error"]))
                self._told = told.tell()
        except FileNotFoundError:
            pass

    def leave(self) -> None:
        """Let go: what runs from it goes on; a mount that nobody uses is taken away."""
        if self._fd is None:
            return
        if _libc.umount2(os.fsencode(self.point), 0) == 0 or ctypes.get_errno() == errno.EINVAL:
            self._drop()
            os.close(self._fd)
            self._fd = None
            if self._process is not None:
                self._process.wait(10)  # it sees that the mount is gone
        elif self._process is not None:
            self._process.returncode = 0  # it is not ours to wait for any more
