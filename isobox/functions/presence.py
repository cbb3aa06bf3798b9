"""While an app runs here: tells the server so, and makes what containers call that was not made yet."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from isobox.calls import system
from isobox.config import Config
from isobox.errors import IsoboxError
from isobox.transport import Transport

_WAIT_S: Final = 20.0
_PAUSE_S: Final = 1.0
_STOP_S: Final = 5.0

Make = Callable[[str, str | None], None]
"""Makes a function by its name; an object of a class by that and its parameters."""


class Presence(threading.Thread):
    """See the module; begun when the app has made its first function. made: the ids of all that it has made."""

    def __init__(self, config: Config, run: str, app: str, made: Callable[[], list[str]], make: Make) -> None:
        super().__init__(name=f"isobox app {app}", daemon=True)
        self._transport = Transport(config)
        self._path = f"/v1/runs/{run}"
        self._app = app
        self._made = made
        self._make = make
        self._beginning = threading.Lock()
        self._stopped = threading.Event()
        self._refused: set[tuple[str, str | None]] = set()

    def begin(self) -> None:
        """Something was made; the first time it begins to tell."""
        with self._beginning:
            if self.ident is None:
                self.start()

    def run(self) -> None:
        """Until the app ends."""
        while not self._stopped.is_set():
            try:
                body = {"app": self._app, "functions": self._made(), "wait_s": _WAIT_S}
                answer = self._transport.send(system("PUT", self._path, json=body))
            except (IsoboxError, RuntimeError):  # a server that is gone for long; or the way there was closed
                self._stopped.wait(_PAUSE_S)
                continue
            if answer["ended"]:
                return
            self._answer(answer["wanted"])

    def _answer(self, wanted: list[dict[str, Any]]) -> None:
        for each in wanted:
            name = (each["name"], each["parameters"])
            if name in self._refused:
                time.sleep(_PAUSE_S)
                continue
            try:
                self._make(*name)
            except Exception as error:  # of whatever the user's code refers to: said, and the container is told in time
                self._refused.add(name)
                print(f"isobox: a container calls {name[0]}, which cannot be made: {error}", file=sys.stderr)

    def stop(self) -> None:
        """The app ends: nothing is kept ready for it any more."""
        self._stopped.set()
        try:
            if self.ident is not None:
                self._transport.send(system("DELETE", self._path))
                self.join(_STOP_S)
        finally:
            self._transport.close()
