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
BATCHED, WEB = "isobox_batched", "isobox_web"
_WEB_PORT = 8000
_WEB_CONCURRENCY = 100
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


def batched(*, max_batch_size: int, wait_ms: float) -> Callable[[F], F]:
    """Call it with lists: of each argument, as many as inputs came within wait_ms; it returns a list of results."""
    if max_batch_size < 1 or wait_ms < 0:
        raise ValueError("max_batch_size is at least 1, wait_ms at least 0")
    return _marked(BATCHED, (int(max_batch_size), wait_ms / 1000))


def together(target: Any) -> int | None:
    """How many inputs a function or class takes side by side, by its marks; None where they say nothing."""
    each = marked(target, BATCHED).values() if isinstance(target, type) else [target]
    sizes = [getattr(one, BATCHED)[0] for one in each if hasattr(one, BATCHED)]
    found: int | None = max(sizes, default=None) or getattr(target, CONCURRENT, None)
    return _WEB_CONCURRENCY if found is None and web(target) is not None else found


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


def web_server(port: int, *, startup_timeout: float = 30.0) -> Callable[[F], F]:
    """It begins a program that listens on a port (of 127.0.0.1 at least) within so many seconds."""
    return _marked(WEB, ("server", int(port), float(startup_timeout)))


def asgi_app() -> Callable[[F], F]:
    """It returns an ASGI application (FastAPI, Starlette …), which uvicorn serves; the image has to have that."""
    return _marked(WEB, ("asgi", _WEB_PORT))


def fastapi_endpoint(*, method: str = "GET", docs: bool = False) -> Callable[[F], F]:
    """It answers requests itself, with arguments as FastAPI takes them; with docs at /docs."""
    return _marked(WEB, ("endpoint", _WEB_PORT, method, docs))


def web(target: Any) -> dict[str, int] | None:
    """What the API is told of a web endpoint; None for what is none. ValueError for two in one class."""
    if isinstance(target, type):
        found = list(marked(target, WEB).values())
        if len(found) > 1:
            raise ValueError(f"{target.__qualname__} has {len(found)} web endpoints; make a class of each")
        return web(found[0]) if found else None
    mark = getattr(target, WEB, None)
    return None if mark is None else {"port": mark[1]}


def title(plain: Callable[..., Any]) -> str:
    """A function's or class's name in its app."""
    return plain.__qualname__.replace("<locals>.", "")


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
        self._batched: dict[str | None, tuple[int, float]] = {None: getattr(target, BATCHED, (0, 0.0))}
        if isinstance(target, type):
            self._object = target()
            for name, value in parameters.items():
                setattr(self._object, name, value)
            self._call = self._by_name
            self._batched = {name: getattr(each, BATCHED) for name, each in marked(target, BATCHED).items()}
            self.snaps = any(getattr(each, ENTER) for each in marked(target, ENTER).values())

    def _by_name(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if name not in marked(type(self._object), METHOD):
            raise AttributeError(f"{type(self._object).__name__} has no method {name!r}")
        return getattr(self._object, name)(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One input."""
        return self._call(*args, **kwargs)

    @property
    def batches(self) -> bool:
        """Whether anything in it is batched."""
        return any(size for size, _ in self._batched.values())

    def batch(self, args: tuple[Any, ...]) -> tuple[str | None, int, float]:
        """For an input: the method it is for, how many are done at once (0: it alone), how long they are waited for."""
        name = None if self._object is None else str(args[0]) if args else ""
        return name, *self._batched.get(name, (0, 0.0))

    def enter(self, snap: bool) -> None:
        """Begin: what is to lie in the copy, or the rest."""
        for name, each in marked(type(self._object), ENTER).items():
            if getattr(each, ENTER) == snap:
                getattr(self._object, name)()
        if not snap:
            self._serve()

    def _serve(self) -> None:
        found = (
            [self._call]
            if self._object is None
            else [getattr(self._object, name) for name in marked(type(self._object), WEB)]
        )
        for each in found:
            if (mark := getattr(each, WEB, None)) is not None:
                from isobox_inside import web as serving

                serving.serve(mark, each)

    def close(self) -> None:
        """End."""
        for name in marked(type(self._object), EXIT):
            getattr(self._object, name)()
