"""While an app runs here: tells the server so, and makes what containers call that was not made yet."""

import threading
from collections.abc import Callable
from typing import Any, Final

from isobox.calls import system
from isobox.config import Config
from isobox.errors import IsoboxError
from isobox.transport import Transport

_WAIT_S: Final = 20.0
_PAUSE_S: Final = 1.0
_STOP_S: Final = 5.0

Name = tuple[str, str | None]
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
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._making: set[Name] = set()
        self._failed: dict[Name, str] = {}

    def begin(self) -> None:
        """Something was made; the first time it begins to tell."""
        with self._lock:
            if self.ident is None:
                self.start()

    def run(self) -> None:
        """Until the app ends."""
        while not self._stopped.is_set():
            try:
                answer = self._transport.send(self._news())
            except (IsoboxError, RuntimeError):  # a server that is gone for long; or the way there was closed
                self._stopped.wait(_PAUSE_S)
                continue
            if answer["ended"]:
                return
            for each in answer["wanted"]:
                name = (each["name"], each["parameters"])
                with self._lock:
                    known = name in self._making
                    self._making.add(name)
                if known:  # it was told, and did not hear of it
                    self._stopped.wait(_PAUSE_S)
                else:
                    threading.Thread(target=self._answer, args=(name,), daemon=True).start()

    def _news(self) -> Any:
        with self._lock:
            failed = [{"name": name, "parameters": each, "error": text} for (name, each), text in self._failed.items()]
            making = [{"name": name, "parameters": each} for name, each in self._making]
        body = {"app": self._app, "functions": self._made(), "making": making, "failed": failed}
        return system("PUT", self._path, params={"wait_s": f"{_WAIT_S:g}"}, json=body)

    def _answer(self, name: Name) -> None:
        """Make one; an image may have to be built for it. What fails is told to whoever called it."""
        error = ""
        try:
            self._make(*name)
        except Exception as failure:  # of whatever the user's own code refers to
            error = f"{type(failure).__name__}: {failure}"[:2000]
        with self._lock:
            self._making.discard(name)
            if error:
                self._failed[name] = error
        if error and not self._stopped.is_set():
            with_it = {"app": self._app, "failed": [{"name": name[0], "parameters": name[1], "error": error}]}
            try:
                self._transport.send(system("PUT", self._path, json=with_it))
            except (IsoboxError, RuntimeError):  # it is told with the next news
                return

    def stop(self) -> None:
        """The app ends: nothing is kept ready for it any more."""
        self._stopped.set()
        try:
            if self.ident is not None:
                self._transport.send(system("DELETE", self._path))
                self.join(_STOP_S)
        finally:
            self._transport.close()
