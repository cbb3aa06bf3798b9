"""How far something long has come, and whether it is still wanted."""

import threading
from collections.abc import Callable

from common.text import clean_text
from fs.errors import ImageError

_LINE_MAX = 4096


class Interrupted(ImageError):
    """Nobody wants it any more."""


class Progress:
    """Lines for people, from any thread; `check` ends the work once `stop` was called."""

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self._on_line = on_line
        self._stopped = threading.Event()

    def say(self, line: str) -> None:
        """Tell a line."""
        self.check()
        if self._on_line is not None:
            self._on_line(clean_text(line, _LINE_MAX))

    def stop(self) -> None:
        """The work is not wanted any more."""
        self._stopped.set()

    def check(self) -> None:
        """Interrupted if it was stopped. Called often."""
        if self._stopped.is_set():
            raise Interrupted("it was stopped")
