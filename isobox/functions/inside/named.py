"""Functions and classes of the app that a container belongs to, found by their names. In `reach.zip`."""

from collections.abc import Callable
from typing import Any

from isobox.calls import system
from isobox.config import Config
from isobox.functions import codec, marks
from isobox.functions.calls import show
from isobox.functions.cls import Class
from isobox.functions.remote import Remote, Session
from isobox.transport import Transport

_CONFIG = Config("inside", "")
_SESSION = Session(_CONFIG, Transport(_CONFIG), show)
_GENERATOR, _ASYNC_GENERATOR = 0x20, 0x200  # flags of a code object, as inspect has them
_known: dict[tuple[str, str], Remote[..., Any]] = {}


class Target:
    """A function of the app as the server has it; asked for once."""

    def __init__(self, name: str, parameters: str | None) -> None:
        self._params = {"name": name} if parameters is None else {"name": name, "parameters": parameters}
        self._found: dict[str, Any] | None = None

    @property
    def found(self) -> dict[str, Any]:
        """Its id and whether what it returns is trusted; NotFound."""
        if self._found is None:
            self._found = _SESSION.transport.send(system("GET", "/find", params=self._params))
        return self._found

    @property
    def id(self) -> str:
        """The server's id for it."""
        return str(self.found["id"])


class Named(Remote[..., Any]):
    """A function of the app."""

    def __init__(self, name: str, plain: Callable[..., Any]) -> None:
        flags = getattr(getattr(plain, "__code__", None), "co_flags", 0)
        is_generator = bool(flags & (_GENERATOR | _ASYNC_GENERATOR))
        super().__init__(name, lambda: _SESSION, is_generator=is_generator, trust="safe")
        self._target = Target(name, None)

    @property
    def id(self) -> str:
        """The server's id for it."""
        self._trust = self._target.found["trust"]
        return self._target.id


def function(app: str, plain: Callable[..., Any]) -> Remote[..., Any]:
    """A function, to be called elsewhere."""
    name = marks.title(plain)
    if (app, name) not in _known:
        _known[app, name] = Named(name, plain)
    return _known[app, name]


def instance(app: str, kind: type, parameters: dict[str, Any]) -> Any:
    """An object of a class, to be called elsewhere."""

    def made(written: bytes) -> Target:
        return Target(marks.title(kind), codec.written(written))

    return Class(lambda: _SESSION, app, kind, "safe", made)(**parameters)
