"""What `import isobox` means inside a container: enough to import the module that a function lies in.

Functions are themselves, and their `remote`, `spawn`, `map` … reach other containers of the app through the runner: the
same code as outside, out of `isobox_inside/reach.zip`, which is imported when something is called first.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

from isobox_inside import marks
from isobox_inside.marks import (
    asgi_app,
    batched,
    concurrent,
    enter,
    exit,
    fastapi_endpoint,
    method,
    parameter,
    web_server,
)

__path__ = [os.path.join(os.path.dirname(os.path.dirname(__file__)), "isobox_inside", "reach.zip", "isobox")]
__all__ = [
    "App",
    "asgi_app",
    "batched",
    "concurrent",
    "enter",
    "exit",
    "fastapi_endpoint",
    "method",
    "parameter",
    "web_server",
]
_REAL = {
    "Dict": "objects",
    "Queue": "objects",
    "FunctionCall": "calls",
    "gather": "calls",
    "IsoboxError": "errors",
    "FunctionError": "errors",
    "RemoteError": "errors",
    "FunctionTimeout": "errors",
    "ContainerFailed": "errors",
    "CallCancelled": "errors",
    "NotSerializable": "errors",
}
"""What is the same inside, by the module of isobox.functions that has it."""


class Inert:
    """Stands for whatever a module asks of isobox while it is imported."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "Inert":
        if name.startswith("__"):
            raise AttributeError(name)
        return Inert(f"{self._name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Whatever that would be; a decorator leaves what it decorates."""
        return self

    def __enter__(self) -> Any:
        """Refuse: a block is work, and that is the caller's."""
        raise RuntimeError(
            f"{self._name} does nothing in a container, which imports this file as well;"
            ' put what only the caller is to run under `if __name__ == "__main__":`'
        )

    def __exit__(self, *_: object) -> None: ...


class Reach:
    """A way to call a function elsewhere: `remote`, `spawn`, `map` …; what it takes is imported on use."""

    def __init__(self, app: "App", plain: Callable[..., Any], name: str, trust: str) -> None:
        self._app = app
        self._plain = plain
        self._name = name
        self._trust = trust

    def _found(self) -> Any:
        named = importlib.import_module("isobox.functions.named")
        return getattr(named.function(self._app.name, self._plain, self._trust), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it there."""
        return self._found()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._found(), name)


class App:
    """Its functions are the plain ones, with what calls them elsewhere."""

    def __init__(self, name: str = "", *_: Any, **__: Any) -> None:
        """Its name is all that counts here."""
        self.name = name

    def function(self, given: Callable[..., Any] | None = None, *, trust: str = "safe", **_: Any) -> Any:
        """A decorator that leaves the function as it is. trust is what this code says of its results."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            for name in ("remote", "spawn", "map", "starmap", "for_each", "remote_gen", "map_async"):
                setattr(function, name, Reach(self, function, name, trust))
            function.local = function  # type: ignore[attr-defined]
            return function

        return decorate if given is None else decorate(given)

    def cls(self, given: type | None = None, *, trust: str = "safe", **_: Any) -> Any:
        """A decorator: the class makes objects elsewhere, as it does outside."""

        def decorate(kind: type) -> "Class":
            return Class(self, marks.prepare(kind), trust)

        return decorate if given is None else decorate(given)

    def run(self, *_: Any, **__: Any) -> Any:
        """Not from inside."""
        raise RuntimeError(
            f"app {self.name} runs already, and this is one of its containers, which imports this file as well;"
            ' put what only the caller is to run under `if __name__ == "__main__":`'
        )

    deploy = run


class Class:
    """A class of the app: called, it gives an object whose methods are called elsewhere."""

    def __init__(self, app: App, kind: type, trust: str) -> None:
        self.isobox_local = kind
        self._app = app
        self._trust = trust

    def __call__(self, **parameters: Any) -> Any:
        """The object with these parameters."""
        named = importlib.import_module("isobox.functions.named")
        return named.instance(self._app.name, self.isobox_local, parameters, self._trust)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.isobox_local, name)


def again(app: str, plain: Any, trust: str = "safe") -> Any:
    """A function or class of a script, as it is when a pickle brings it here."""
    return App(app).cls(plain, trust=trust) if isinstance(plain, type) else App(app).function(plain, trust=trust)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if (module := _REAL.get(name)) is not None:
        return getattr(importlib.import_module(f"isobox.functions.{module}"), name)
    return Inert(f"isobox.{name}")
