"""How far something long has come, and whether it is still wanted."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.text import clean_text
from fs.errors import ImageError, ImageInvalid

_LINE_MAX = 4096


class Interrupted(ImageError):
    """Nobody wants it any more."""


class Progress:
    """Lines for people, from any thread; `check` ends the work once `stop` was called, or it took too long."""

    def __init__(self, on_line: Callable[[str], None] | None = None, *, within_s: float | None = None) -> None:
        self._on_line = on_line
        self._within_s = within_s
        self._deadline = None if within_s is None else time.monotonic() + within_s
        self._lock = threading.Lock()
        self._stopped = False
        self._on_stop: list[Callable[[], None]] = []

    def say(self, line: str) -> None:
        """Tell a line."""
        self.check()
        if self._on_line is not None:
            self._on_line(clean_text(line, _LINE_MAX))

    def stop(self) -> None:
        """The work is not wanted any more."""
        with self._lock:
            self._stopped = True
            callbacks = list(self._on_stop)
        for callback in callbacks:
            callback()

    @contextmanager
    def stopping(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call something once the work is stopped inside the block: it ends what waits and cannot look."""
        self.check()
        with self._lock:
            self._on_stop.append(callback)
            stopped = self._stopped
        if stopped:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._on_stop.remove(callback)

    def check(self) -> None:
        """Interrupted if it was stopped, ImageInvalid if it took too long. Called often."""
        if self._stopped:
            raise Interrupted("it was stopped")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise ImageInvalid(f"it took more than {(self._within_s or 0) / 60:g} minutes", hint="use a smaller image")
