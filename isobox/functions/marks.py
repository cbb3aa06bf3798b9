"""Marks on functions and classes, the same outside and inside (there `isobox_inside.marks`): no imports when it runs.

@app.cls()
class Model:
    size: int = isobox.parameter(default=3)

    @isobox.enter(snap=True)
    def load(self): ...

    @isobox.method()
    def predict(self, x): ...

    @isobox.exit()
    def close(self) -> None: ...
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    F = TypeVar("F", bound=Callable[..., Any])
    T = TypeVar("T")

ENTER, EXIT, METHOD, CONCURRENT = "isobox_enter", "isobox_exit", "isobox_method", "isobox_concurrent"
PARAMETERS = "isobox_parameters"
_REQUIRED: Any = object()


class Parameter:
    """A parameter of a class; without a default it has to be given."""

    def __init__(self, default: Any = _REQUIRED) -> None:
        self.default = default


def parameter(*, default: Any = _REQUIRED) -> Any:
    """A value that an instance is made with: plain data."""
    return Parameter(default)


def _marked(name: str, value: Any) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        setattr(function, name, value)
        return function

    return decorate


def enter(*, snap: bool = False) -> Callable[[F], F]:
    """Run this when a container begins; with snap before its memory is copied, for all that begin from the copy."""
    return _marked(ENTER, bool(snap))


def exit() -> Callable[[F], F]:  # as the field calls it
    """Run this when a container has no more work and ends."""
    return _marked(EXIT, True)


def method() -> Callable[[F], F]:
    """This can be called from outside."""
    return _marked(METHOD, True)


def concurrent(*, max_inputs: int) -> Callable[[F], F]:
    """So many inputs side by side in one container."""
    return _marked(CONCURRENT, int(max_inputs))


def prepare(kind: type[T]) -> type[T]:
    """Take the parameters out of a class: it has their defaults as plain attributes afterwards."""
    found = {name: each.default for name, each in vars(kind).items() if isinstance(each, Parameter)}
    setattr(kind, PARAMETERS, {name: default is _REQUIRED for name, default in found.items()})
    for name, default in found.items():
        if default is _REQUIRED:
            delattr(kind, name)
        else:
            setattr(kind, name, default)
    return kind


def marked(kind: type, name: str) -> dict[str, Any]:
    """The functions of a class that carry a mark, by their names, in the order that they stand there."""
    found: dict[str, Any] = {}
    for each in reversed(kind.__mro__):
        for key, value in vars(each).items():
            if hasattr(value, name):
                found[key] = value
            elif key in found:
                del found[key]
    return found


class Loaded:
    """What a container serves: a function, or an object of a class whose methods are called by name."""

    def __init__(self, target: Any, parameters: dict[str, Any]) -> None:
        self._object: Any = None
        self._call = target
        self.snaps = False
        if isinstance(target, type):
            self._object = target()
            for name, value in parameters.items():
                setattr(self._object, name, value)
            self._call = self._by_name
            self.snaps = any(getattr(each, ENTER) for each in marked(target, ENTER).values())

    def _by_name(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if name not in marked(type(self._object), METHOD):
            raise AttributeError(f"{type(self._object).__name__} has no method {name!r}")
        return getattr(self._object, name)(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One input."""
        return self._call(*args, **kwargs)

    def enter(self, snap: bool) -> None:
        """Begin: what is to lie in the copy, or the rest."""
        for name, each in marked(type(self._object), ENTER).items():
            if getattr(each, ENTER) == snap:
                getattr(self._object, name)()

    def close(self) -> None:
        """End."""
        for name in marked(type(self._object), EXIT):
            getattr(self._object, name)()
