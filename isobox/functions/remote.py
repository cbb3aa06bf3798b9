"""What can be called in a container, a function or a method of a class: once, for many inputs, as a generator."""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, ParamSpec, TypeVar

from isobox.calls import system
from isobox.config import Config
from isobox.errors import IsoboxError
from isobox.functions.calls import (
    Ended,
    FunctionCall,
    Inputs,
    Show,
    Trust,
    argument,
    batches,
    follow,
    new_id,
    show,
    show_tagged,
)
from isobox.functions.errors import FunctionError
from isobox.transport import Transport

P = ParamSpec("P")
R = TypeVar("R")
_FIRST_WAIT_S: Final = 20.0


class Session:
    """A server, for the time that an app runs; run is that time's own id, begun is called when something was made."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        on_print: Show,
        run: str | None = None,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.transport = transport
        self.on_print = on_print
        self.run = run
        self.begun = begun

    def web_url(self, function: str) -> str:
        """Where a web endpoint is reached."""
        return f"{self.config.url}/v1/functions/{function}/web"


class Method(Generic[P, R]):
    """A blocking call, and the same for asyncio as `.aio`."""

    def __init__(self, call: Callable[P, R]) -> None:
        self._call = call

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it and wait."""
        return self._call(*args, **kwargs)

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Call it and let others run meanwhile."""
        import asyncio  # slow to import inside a container, where few need it

        return asyncio.to_thread(self._call, *args, **kwargs)


class Remote(Generic[P, R]):
    """See the module. Whoever makes one says by which session, and as which of the server's functions."""

    def __init__(self, name: str, session: Callable[[], Session], *, is_generator: bool | None, trust: Trust) -> None:
        self._name = name
        self._session = session
        self._is_generator = is_generator
        self._trust = trust
        self.remote: Method[P, R] = Method(self._remote)
        self.spawn: Method[P, FunctionCall] = Method(self._spawn)

    @property
    def id(self) -> str:
        """The server's id for it."""
        raise NotImplementedError

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments as the container takes them."""
        return args, kwargs

    # ---- one

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], wait_s: float) -> dict[str, Any]:
        transport = self._session().transport
        function = self.id
        inputs = [argument(transport, *self._given(args, kwargs))]
        body = {"id": new_id("cal"), "inputs": inputs, "wait_s": wait_s, "run": self._session().run}
        call = system("POST", f"/v1/functions/{function}/calls", json=body)
        answer: dict[str, Any] = transport.send(call)
        return answer

    def _remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._is_generator:
            raise FunctionError(f"{self._name} is a generator: use remote_gen")
        running = self._session()
        answer = self._call(args, kwargs, _FIRST_WAIT_S)
        for each in follow(running.transport, answer["id"], self._trust, first=answer, printed=running.on_print):
            value: R = each.get()
        return value

    def _spawn(self, *args: P.args, **kwargs: P.kwargs) -> FunctionCall:
        answer = self._call(args, kwargs, 0.0)
        return FunctionCall(self._session().config, answer["id"], trust=self._trust)

    def remote_gen(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
        """What a generator yields, as it comes; whoever leaves it early ends it."""
        if self._is_generator is False:
            raise FunctionError(f"{self._name} is no generator: use remote")
        running = self._session()
        answer = self._call(args, kwargs, 0.0)
        over = False
        try:
            for each in follow(running.transport, answer["id"], self._trust, first=None, printed=running.on_print):
                if each.partial:
                    yield each.get()
                else:
                    over = True
                    each.get()
        finally:
            if not over:
                running.transport.send(system("DELETE", f"/v1/calls/{answer['id']}"))

    # ---- many

    def map(
        self,
        *iterables: Iterable[Any],
        order_outputs: bool = True,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> Iterator[Any]:
        """Its results for each input; several iterables are taken side by side, as the built-in map takes them.

        With order_outputs in the inputs' order, else as they come. An exception ends it, and the call with it, unless
        return_exceptions lets it stand among the results. Inputs are taken while results are read. progress shows a bar
        on stderr; it takes rich.
        """
        inputs = zip(*iterables, strict=False)
        results = self.starmap(inputs, order_outputs=order_outputs, return_exceptions=return_exceptions)
        if not progress:
            return results
        from isobox.functions.progress import length, shown  # not there inside a container

        return shown(results, self._name, length(iterables))

    def starmap(
        self, iterable: Iterable[Sequence[Any]], *, order_outputs: bool = True, return_exceptions: bool = False
    ) -> Iterator[Any]:
        """The same for inputs that are arguments each."""
        return self._map(((tuple(args), {}) for args in iterable), order_outputs, return_exceptions)

    def for_each(self, *iterables: Iterable[Any], ignore_exceptions: bool = False) -> None:
        """Run it for each input, for its effects."""
        for _ in self.map(*iterables, order_outputs=False, return_exceptions=ignore_exceptions):
            pass

    async def map_async(self, *iterables: Iterable[Any], **options: bool) -> AsyncIterator[Any]:
        """`map` for asyncio."""
        import asyncio

        results = self.map(*iterables, **options)
        ended = object()
        try:
            while (each := await asyncio.to_thread(next, results, ended)) is not ended:
                yield each
        finally:
            await asyncio.to_thread(results.close)  # type: ignore[attr-defined]

    def _map(self, inputs: Inputs, ordered: bool, keep_errors: bool) -> Iterator[Any]:
        if self._is_generator:
            raise FunctionError(f"{self._name} is a generator: use remote_gen")
        running, function, call = self._session(), self.id, new_id("cal")
        opening = {"id": call, "inputs": [], "more": True, "run": running.run}
        running.transport.send(system("POST", f"/v1/functions/{function}/calls", json=opening))
        sender = _Sender(running.transport, call, (self._given(*each) for each in inputs))
        sender.start()
        waiting: dict[int, Ended] = {}
        following, over = 0, False
        try:
            printed = show_tagged if running.on_print is show else running.on_print
            for each in follow(running.transport, call, self._trust, printed=printed):
                waiting[each.index] = each
                while waiting:
                    found = waiting.pop(following if ordered else each.index, None)
                    if found is None:
                        break
                    following += 1
                    yield found.error if keep_errors and found.error is not None else found.get()
            over = True
        finally:
            sender.stop()
            if not over:
                running.transport.send(system("DELETE", f"/v1/calls/{call}"))
        if sender.error is not None:
            raise sender.error


class _Sender(threading.Thread):
    """Sends a map's inputs while their results are read."""

    def __init__(self, transport: Transport, call: str, inputs: Inputs) -> None:
        super().__init__(name=f"inputs of {call}", daemon=True)
        self._transport = transport
        self._call = call
        self._inputs = inputs
        self._stopped = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Until there are no more, or nobody wants them."""
        first = 0
        try:
            for batch in batches(self._transport, self._inputs):
                if self._stopped.is_set():
                    return
                self._send(first, batch, more=True)
                first += len(batch)
            self._send(first, [], more=False)
        except BaseException as error:  # the inputs' own included: whoever reads the results is told
            self.error = error
            self._cancel()

    def _send(self, first: int, batch: list[dict[str, str]], *, more: bool) -> None:
        body = {"first": first, "inputs": batch, "more": more}
        self._transport.send(system("POST", f"/v1/calls/{self._call}/inputs", json=body))

    def _cancel(self) -> None:
        try:
            self._transport.send(system("DELETE", f"/v1/calls/{self._call}"))
        except IsoboxError:  # then the server is gone, and whoever reads the results finds that out
            return

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()
        self.join(10)
