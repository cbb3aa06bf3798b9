"""Apps and their functions."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, Unpack

from isobox.config import Config
from isobox.functions import marks
from isobox.functions.calls import FunctionCall, Show, show
from isobox.functions.cls import Class
from isobox.functions.errors import FunctionError
from isobox.functions.made import Made
from isobox.functions.options import Options, fields
from isobox.functions.remote import Remote, Session
from isobox.transport import Transport

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class App:
    """A name, and functions that run in containers of their own while it runs (`run`)."""

    def __init__(self, name: str) -> None:
        """Lower-case letters, digits, dots, dashes."""
        self.name = name
        self._made: list[Made] = []
        self._session: Session | None = None

    def __repr__(self) -> str:
        return f"<App {self.name}>"

    def function(self, **options: Unpack[Options]) -> "Callable[[Callable[P, R]], Function[P, R]]":
        """Let a function run in containers like this (`Options`)."""

        def decorate(function: Callable[P, R]) -> Function[P, R]:
            asked = fields(options)
            if hasattr(function, marks.CONCURRENT):
                asked.setdefault("concurrency", getattr(function, marks.CONCURRENT))
            made = Made(self.session, self.name, function, options.get("image", "python"), asked)
            self._made.append(made)
            return Function(self, function, made, options)

        return decorate

    def cls(self, **options: Unpack[Options]) -> "Callable[[type[T]], Class[T]]":
        """Let objects of a class live in containers like this: their methods are called from here (`Class`)."""

        def decorate(kind: type[T]) -> Class[T]:
            marks.prepare(kind)
            return Class(self.session, self.name, kind, options, self._made.append)

        return decorate

    @contextmanager
    def run(self, *, url: str | None = None, api_key: str | None = None, on_print: Show = show) -> "Iterator[App]":
        """Make its functions on the server, for the time of the block.

        Calls that were spawned go on after it; what was kept ready by min_containers goes.
        """
        if self._session is not None:
            raise FunctionError(f"app {self.name} runs already")
        config = Config.find(url, api_key)
        session = self._session = Session(config, Transport(config), on_print)
        try:
            for each in self._made:
                if each.keeps_ready:
                    each.id  # noqa: B018  # made now, so that its containers start
            yield self
        finally:
            self._session = None
            try:
                for each in self._made:
                    each.leave(session)
            finally:
                session.transport.close()

    def session(self) -> Session:
        """What it runs by; FunctionError outside of `run`."""
        if self._session is None:
            raise FunctionError(f"app {self.name} does not run: call its functions inside `with app.run():`")
        return self._session


class Function(Remote[P, R]):
    """A function that runs in containers (`remote`, `spawn`, `map` …) and here (`local`, or called as it is)."""

    def __init__(self, app: App, function: Callable[P, R], made: Made, options: Options) -> None:
        super().__init__(
            function.__qualname__,
            app.session,
            is_generator=inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function),
            trust=options.get("trust", "safe"),
        )
        functools.update_wrapper(self, function)
        self.isobox_local = function
        self._app = app
        self._made = made

    def __repr__(self) -> str:
        return f"<Function {self._app.name}.{self._name}>"

    def __reduce__(self) -> Any:
        """Inside, another function of the app is the plain one."""
        return functools.partial, (self.isobox_local,)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it here."""
        return self.isobox_local(*args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it here."""
        return self.isobox_local(*args, **kwargs)

    @property
    def id(self) -> str:
        """The server's id for it; made on first use, its image too."""
        return self._made.id


def gather(*calls: FunctionCall) -> list[Any]:
    """The results of spawned calls, in their order; the first exception is raised."""
    return [each.get() for each in calls]
