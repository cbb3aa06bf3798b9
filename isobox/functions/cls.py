"""Classes whose objects live in containers: made there with their parameters, begun once each, called from here."""

import binascii
import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from isobox.functions import codec, marks
from isobox.functions.errors import FunctionError, NotSerializable
from isobox.functions.made import Made
from isobox.functions.options import Options, fields
from isobox.functions.remote import Remote, Session

T = TypeVar("T")


class Class(Generic[T]):
    """A class of an app. Called with parameters it gives an `Instance`; what is the same is the same instance."""

    def __init__(
        self, session: Callable[[], Session], app: str, kind: type[T], options: Options, add: Callable[[Made], None]
    ) -> None:
        self.isobox_local = kind
        self.__doc__ = kind.__doc__
        self.__module__ = kind.__module__
        self.__qualname__ = kind.__qualname__
        self._session = session
        self._app = app
        self._options = options
        self._add = add
        self._instances: dict[bytes, Instance] = {}
        if not marks.marked(kind, marks.METHOD):
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
            known = self._instances[key] = Instance(self._session, kind, self._made(key), self._options)
        return known

    def complete(self) -> None:
        """See that it has an instance, to be deployed: without parameters, if nobody asked for another."""
        if not self._instances:
            self()

    def _made(self, parameters: bytes) -> Made:
        kind, asked = self.isobox_local, fields(self._options)
        snaps = any(getattr(each, marks.ENTER) for each in marks.marked(kind, marks.ENTER).values())
        asked["snapshot"] = snaps and "gpu" not in self._options
        asked["exits"] = bool(marks.marked(kind, marks.EXIT))
        if hasattr(kind, marks.CONCURRENT):
            asked.setdefault("concurrency", getattr(kind, marks.CONCURRENT))
        encoded = binascii.b2a_base64(parameters, newline=False).decode()
        made = Made(self._session, self._app, kind, self._options.get("image", "python"), asked, encoded)
        self._add(made)
        return made


class Instance:
    """An object in containers: each of its methods has `remote`, `spawn`, `map` and the rest."""

    def __init__(self, session: Callable[[], Session], kind: type, made: Made, options: Options) -> None:
        self._session = session
        self._kind = kind
        self._made = made
        self._options = options

    def __getattr__(self, name: str) -> "BoundMethod":
        function = marks.marked(self._kind, marks.METHOD).get(name)
        if function is None:
            known = ", ".join(marks.marked(self._kind, marks.METHOD))
            raise AttributeError(f"{self._kind.__qualname__} has no method {name!r}; it has {known}")
        return BoundMethod(self._session, f"{self._kind.__qualname__}.{name}", function, self._made, self._options)


class BoundMethod(Remote[..., Any]):
    """A method of an `Instance`."""

    def __init__(
        self, session: Callable[[], Session], name: str, function: Callable[..., Any], made: Made, options: Options
    ) -> None:
        super().__init__(
            name,
            session,
            is_generator=inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function),
            trust=options.get("trust", "safe"),
        )
        self._made = made

    @property
    def id(self) -> str:
        """The server's id for the object."""
        return self._made.id

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self._name.rpartition(".")[2], *args), kwargs
