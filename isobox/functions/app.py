"""Apps and their functions."""

import base64
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, ParamSpec, TypeVar, Unpack

from isobox.calls import system
from isobox.config import Config
from isobox.functions import codec, marks
from isobox.functions.calls import Show, Trust, new_id, show
from isobox.functions.cls import Class, again
from isobox.functions.errors import FunctionError
from isobox.functions.made import Made
from isobox.functions.options import Options, fields
from isobox.functions.presence import Presence
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
        self._classes: list[Class[Any]] = []
        self._session: Session | None = None

    def __repr__(self) -> str:
        return f"<App {self.name}>"

    def function(self, **options: Unpack[Options]) -> "Callable[[Callable[P, R]], Function[P, R]]":
        """Let a function run in containers like this (`Options`)."""

        def decorate(function: Callable[P, R]) -> Function[P, R]:
            asked = fields(options)
            if (together := marks.together(function)) is not None:
                asked.setdefault("concurrency", together)
            if (web := marks.web(function)) is not None:
                asked["web"] = web
            made = Made(self.session, lambda: self.name, function, options.get("image", "python"), asked)
            self._made.append(made)
            return Function(self, function, made, options)

        return decorate

    def cls(self, **options: Unpack[Options]) -> "Callable[[type[T]], Class[T]]":
        """Let objects of a class live in containers like this: their methods are called from here (`Class`)."""

        def decorate(kind: type[T]) -> Class[T]:
            marks.prepare(kind)
            make = functools.partial(self._object, kind, options)
            made = Class(self.session, self.name, kind, options.get("trust", "safe"), make)
            self._classes.append(made)
            return made

        return decorate

    def _object(self, kind: type, options: Options, parameters: bytes) -> Made:
        asked = fields(options)
        snaps = any(getattr(each, marks.ENTER) for each in marks.marked(kind, marks.ENTER).values())
        asked["snapshot"] = snaps and "gpu" not in options
        asked["exits"] = bool(marks.marked(kind, marks.EXIT))
        if (together := marks.together(kind)) is not None:
            asked.setdefault("concurrency", together)
        if (web := marks.web(kind)) is not None:
            asked["web"] = web
        written = codec.written(parameters)
        made = Made(self.session, lambda: self.name, kind, options.get("image", "python"), asked, written)
        self._made.append(made)
        return made

    def _make(self, name: str, parameters: str | None) -> None:
        """What a container calls, by its name."""
        if parameters is not None:
            for each in self._classes:
                if marks.title(each.isobox_local) == name:
                    each(**codec.decode(base64.b64decode(parameters)))
        found = [each for each in self._made if (each.name, each.parameters) == (name, parameters)]
        if not found:
            raise FunctionError(f"app {self.name} has none of that name")
        found[-1].id  # noqa: B018  # made now

    @contextmanager
    def run(self, *, url: str | None = None, api_key: str | None = None, on_print: Show = show) -> "Iterator[App]":
        """Make its functions on the server, for the time of the block.

        Calls that were spawned go on after it; what was kept ready by min_containers goes.
        """
        if self._session is not None:
            raise FunctionError(f"app {self.name} runs already")
        config = Config.find(url, api_key)
        run = new_id("run")
        presence = Presence(config, run, self.name, self._known, self._make)
        session = self._session = Session(config, Transport(config), on_print, run, presence.begin)
        try:
            for each in self._made:
                if each.keeps_ready:
                    each.id  # noqa: B018  # made now, so that its containers start
            yield self
        finally:
            self._session = None
            for each in self._made:
                each.forget()
            try:
                presence.stop()
            finally:
                session.transport.close()

    def made(self, name: str) -> str:
        """The server's id of a function by its name, or of a class without parameters; it runs now. FunctionError."""
        for kind in self._classes:
            if marks.title(kind.isobox_local) == name:
                kind.complete()
        found = [each for each in self._made if each.name == name]
        if not found:
            there = ", ".join(dict.fromkeys(each.name for each in self._made)) or "none"
            raise FunctionError(f"app {self.name} has no function {name}; it has {there}")
        return found[0].id

    def _known(self) -> list[str]:
        return [each.known for each in self._made if each.known is not None]

    def deploy(self, name: str | None = None, *, url: str | None = None, api_key: str | None = None) -> dict[str, Any]:
        """Put its functions in force on the server, as a new version of the app (or of one of another name).

        Returns its `AppInfo`. They stay there until `stop`, are called by `Function.from_name`, and run by their
        schedules. A class is deployed with the parameters that it was called with before, or without any.
        """
        if self._session is not None:
            raise FunctionError(f"app {self.name} runs: deploy it outside of `run`")
        config = Config.find(url, api_key)
        session = self._session = Session(config, Transport(config), show)
        usual, self.name = self.name, name or self.name
        try:
            for kind in self._classes:
                kind.complete()
            body = {"functions": {each.name: each.id for each in self._made}}
            found: dict[str, Any] = session.transport.send(system("POST", f"/v1/apps/{self.name}/deploy", json=body))
            return found
        finally:
            self._session, self.name = None, usual
            for each in self._made:
                each.forget()
            session.transport.close()

    def stop(self, *, url: str | None = None, api_key: str | None = None) -> None:
        """Keep nothing of what is deployed ready, run nothing of it by schedule; calls that are on go on. NotFound."""
        with closing(Transport(Config.find(url, api_key))) as transport:
            transport.send(system("POST", f"/v1/apps/{self.name}/stop", json={}))

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

    @staticmethod
    def from_name(
        app: str, name: str, *, trust: Trust = "safe", url: str | None = None, api_key: str | None = None
    ) -> "Deployed":
        """A function of a deployed app, as it is in force at each call.

        trust="pickle" lets any value come back, and code of the container's with it. That is the caller's to say,
        whatever the function was deployed with: somebody else may have deployed it, or deploy another one tomorrow.
        """
        return Deployed(app, name, Config.find(url, api_key), trust=trust)

    def __repr__(self) -> str:
        return f"<Function {self._app.name}.{self._name}>"

    def __reduce__(self) -> Any:
        """Inside it is the plain one, with what calls it elsewhere."""
        return again, (self._app.name, self.isobox_local, self._trust)

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

    @property
    def web_url(self) -> str:
        """Where the server passes requests on to a web endpoint; they take an API key, as all do."""
        return self._session().web_url(self.id)


class Deployed(Remote[..., Any]):
    """A function of a deployed app; a method of a class as "Class.method". Close it, or use it in a `with` block."""

    def __init__(self, app: str, name: str, config: Config, *, trust: Trust = "safe") -> None:
        session = Session(config, Transport(config), show)
        kind, dot, self._method = name.rpartition(".")
        self._function = kind if dot else name
        super().__init__(name, lambda: session, is_generator=None, trust=trust)
        self._app = app

    def __repr__(self) -> str:
        return f"<Deployed {self._app}.{self._name}>"

    def __enter__(self) -> "Deployed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._session().transport.close()

    @property
    def id(self) -> str:
        """The function that is in force now; NotFound without it."""
        found = self._session().transport.send(system("GET", f"/v1/apps/{self._app}"))["functions"]
        for name in (self._name, self._function):
            if name in found:
                self._by_method = name != self._name
                return str(found[name]["id"])
        raise FunctionError(f"app {self._app} has no function {self._name}; it has {', '.join(found) or 'none'}")

    _by_method = False

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((self._method, *args) if self._by_method else args), kwargs
