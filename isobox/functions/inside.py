"""What `import isobox` means inside a container: enough to import the module that a function lies in, and no more.

Copied there by `bundle.py`. Functions are themselves; what would call another container says that it cannot.
"""

from collections.abc import Callable
from typing import Any

from isobox_inside import marks
from isobox_inside.marks import concurrent, enter, exit, method, parameter

__all__ = ["App", "concurrent", "enter", "exit", "method", "parameter"]


class Inert:
    """Stands for whatever a module asks of isobox while it is imported."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "Inert":
        if name.startswith("__"):
            raise AttributeError(name)
        return Inert(f"{self._name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> "Inert":
        """Whatever that would be."""
        return self


def _refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError(
        "a function cannot call another container from inside one; call it as it is: f(x), or f.local(x)"
    )


class App:
    """Its functions are the plain ones."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Whatever it was given outside."""

    def function(self, given: Callable[..., Any] | None = None, **_: Any) -> Any:
        """A decorator that leaves the function as it is."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            for name in ("remote", "spawn", "map", "starmap", "for_each", "remote_gen"):
                setattr(function, name, _refuse)
            function.local = function  # type: ignore[attr-defined]
            return function

        return decorate if given is None else decorate(given)

    def cls(self, given: type | None = None, **_: Any) -> Any:
        """A decorator that leaves the class as it is, but for its parameters."""
        return marks.prepare if given is None else marks.prepare(given)

    def run(self, *_: Any, **__: Any) -> Any:
        """Not from inside."""
        return _refuse()


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Inert(f"isobox.{name}")
