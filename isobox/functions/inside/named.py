"""Functions and classes of the app that a container belongs to, found by their names. In `reach.zip`."""

from collections.abc import Callable
from typing import Any

from isobox.calls import system
from isobox.config import Config
from isobox.functions import codec, marks
from isobox.functions.calls import Trust, show
from isobox.functions.cls import Class
from isobox.functions.remote import Remote, Session
from isobox.transport import Transport

_CONFIG = Config("inside", "")
_SESSION = Session(_CONFIG, Transport(_CONFIG), show)
_GENERATOR, _ASYNC_GENERATOR = 0x20, 0x200  # flags of a code object, as inspect has them
_known: dict[tuple[str, str, Trust], Remote[..., Any]] = {}


class Target:
    """A function of the app as the server has it; asked for once."""

    def __init__(self, name: str, parameters: str | None) -> None:
        self._params = {"name": name} if parameters is None else {"name": name, "parameters": parameters}
        self._found: dict[str, Any] | None = None

    @property
    def found(self) -> dict[str, Any]:
        """Its id; NotFound."""
        if self._found is None:
            self._found = _SESSION.transport.send(system("GET", "/find", params=self._params))
        return self._found

    @property
    def id(self) -> str:
        """The server's id for it."""
        return str(self.found["id"])


class Named(Remote[..., Any]):
    """A function of the app."""

    def __init__(self, name: str, plain: Callable[..., Any], trust: Trust) -> None:
        flags = getattr(getattr(plain, "__code__", None), "co_flags", 0)
        is_generator = bool(flags & (_GENERATOR | _ASYNC_GENERATOR))
        super().__init__(name, lambda: _SESSION, is_generator=is_generator, trust=trust)
        self._target = Target(name, None)

    @property
    def id(self) -> str:
        """The server's id for it."""
        return self._target.id


def function(app: str, plain: Callable[..., Any], trust: Trust) -> Remote[..., Any]:
    """A function, to be called elsewhere; trust as the code that calls it has it."""
    name = marks.title(plain)
    if (app, name, trust) not in _known:
        _known[app, name, trust] = Named(name, plain, trust)
    return _known[app, name, trust]


def instance(app: str, kind: type, parameters: dict[str, Any], trust: Trust) -> Any:
    """An object of a class, to be called elsewhere."""

    def made(written: bytes) -> Target:
        return Target(marks.title(kind), codec.written(written))

    return Class(lambda: _SESSION, app, kind, trust, made)(**parameters)
