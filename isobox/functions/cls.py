"""Classes whose objects live in containers: made there with their parameters, begun once each, called from here."""

import inspect
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from isobox.functions import codec, marks
from isobox.functions.calls import Trust
from isobox.functions.errors import FunctionError, NotSerializable
from isobox.functions.remote import Remote, Session

T = TypeVar("T")


class Target(Protocol):
    """What the server has for an object."""

    @property
    def id(self) -> str:
        """Its id there."""


class Class(Generic[T]):
    """A class of an app. Called with parameters it gives an `Instance`; what is the same is the same instance."""

    def __init__(
        self, session: Callable[[], Session], app: str, kind: type[T], trust: Trust, make: Callable[[bytes], Target]
    ) -> None:
        self.isobox_local = kind
        self.__doc__ = kind.__doc__
        self.__module__ = kind.__module__
        self.__qualname__ = kind.__qualname__
        self._session = session
        self._app = app
        self._trust: Trust = trust
        self._make = make
        self._instances: dict[bytes, Instance] = {}
        if not (marks.marked(kind, marks.METHOD) or marks.marked(kind, marks.WEB)):
            raise FunctionError(f"{kind.__qualname__} has nothing to call: mark a method with @isobox.method()")

    def __repr__(self) -> str:
        return f"<Class {self._app}.{self.isobox_local.__qualname__}>"

    def __call__(self, **parameters: Any) -> "Instance":
        """The object with these parameters; TypeError for others than the class has."""
        kind = self.isobox_local
        wanted: dict[str, bool] = getattr(kind, marks.PARAMETERS)
        if unknown := set(parameters) - set(wanted):
            raise TypeError(f"{kind.__qualname__} has no parameter {', '.join(sorted(unknown))}")
        if missing := [name for name, required in wanted.items() if required and name not in parameters]:
            raise TypeError(f"{kind.__qualname__} needs {', '.join(missing)}")
        try:
            key = codec.encode(parameters)
        except codec.Unsafe as error:
            raise NotSerializable(f"a parameter cannot be sent: {error}") from error
        if (known := self._instances.get(key)) is None:
            known = self._instances[key] = Instance(self._session, kind, self._make(key), self._trust)
        return known

    def complete(self) -> None:
        """See that it has an instance, to be deployed: without parameters, if nobody asked for another."""
        if not self._instances:
            self()

    def __reduce__(self) -> Any:
        """Inside it is another one, of the same app."""
        return again, (self._app, self.isobox_local, self._trust)


def again(app: str, plain: Any, trust: Trust = "safe") -> Any:
    """What a function or class of a script is sent as: here the plain one (inside see `inside/entry.py`)."""
    return plain


again.__module__ = "isobox"


class Instance:
    """An object in containers: each of its methods has `remote`, `spawn`, `map` and the rest."""

    def __init__(self, session: Callable[[], Session], kind: type, target: Target, trust: Trust) -> None:
        self._session = session
        self._kind = kind
        self._target = target
        self._trust: Trust = trust

    @property
    def web_url(self) -> str:
        """Where the server passes requests on to its web endpoint."""
        return self._session().web_url(self._target.id)

    def __getattr__(self, name: str) -> "BoundMethod":
        function = marks.marked(self._kind, marks.METHOD).get(name)
        if function is None:
            known = ", ".join(marks.marked(self._kind, marks.METHOD))
            raise AttributeError(f"{self._kind.__qualname__} has no method {name!r}; it has {known}")
        return BoundMethod(self._session, f"{self._kind.__qualname__}.{name}", function, self._target, self._trust)


class BoundMethod(Remote[..., Any]):
    """A method of an `Instance`."""

    def __init__(
        self, session: Callable[[], Session], name: str, function: Callable[..., Any], target: Target, trust: Trust
    ) -> None:
        is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        super().__init__(name, session, is_generator=is_generator, trust=trust)
        self._target = target

    @property
    def id(self) -> str:
        """The server's id for the object."""
        return self._target.id

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self._name.rpartition(".")[2], *args), kwargs
