"""The process that serves lazy images: `python -c … main()` with its settings as JSON, see `mount.py`.

It holds FOLDER/lock while it lives, and reads recipes, which the server writes; it writes the cache and profiles.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Final

from common import logs
from fs.errors import StoreCorrupt
from fs.lazy.cache import SegmentCache
from fs.lazy.image import LazyImage
from fs.lazy.server import Server
from fs.store.backend import Backend, Directory
from fs.store.recipe import decode
from fs.store.remote import open_store

_LOCK_TRIES: Final = 100
LOST: Final = "lost.jsonl"
"""Where threads are told that wait for what cannot be had."""


class Origins:
    """Where packs lie: in this machine's store, or in the one that FOLDER/origins/PACK names."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._here = Directory(store)
        self._open = cache(open_store)
        self._opening = threading.Lock()

    def fetch(self, pack: str, offset: int, length: int) -> bytes:
        """Read a part of a pack."""
        return self._backend(pack).read(f"packs/{pack}", offset, length)

    def _backend(self, pack: str) -> Backend:
        if (self._store / "packs" / pack).exists():
            return self._here
        try:
            url = (self._store / "origins" / pack).read_text()
        except FileNotFoundError:
            raise StoreCorrupt(f"nobody knows where pack {pack[:12]} lies", hint="pull the image again") from None
        with self._opening:
            return self._open(url)


def main() -> None:
    """Serve until the mount is gone."""
    logs.configure()
    settings = json.loads(sys.argv[1])
    folder, store = Path(settings["folder"]), Path(settings["store"])
    with open(folder / "lock", "w") as lock:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # the server only looks whether one of us lives
                time.sleep(0.05)
        else:
            sys.exit("another process serves this mount")
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        cached = SegmentCache(Path(settings["cache"]), Origins(store).fetch, limit_bytes=settings["limit_bytes"])
        profiles = Path(settings["profiles"])
        profiles.mkdir(exist_ok=True)

        def open_image(digest: str) -> LazyImage | None:
            stored = Directory(store).get(f"images/{digest}")
            if stored is None:
                return None
            return LazyImage(decode(stored, f"sha256:{digest}"), cached, profiles / digest)

        def list_images() -> list[str]:
            return [path.name for path in (store / "images").iterdir() if len(path.name) == 64]

        def on_lost(pid: int, error: str) -> None:
            with open(folder / LOST, "a") as lost:
                lost.write(json.dumps({"pid": pid, "error": error}) + "\n")

        Server(settings["fd"], open_image, list_images, on_lost).run(taken_over=settings["taken_over"])
        (folder / "fetched.json").write_text(json.dumps({"bytes": cached.fetched_bytes, "fetches": cached.fetches}))
        cached.close()
