"""Apps and their functions."""

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Generic, ParamSpec, TypeVar

from isobox.calls import Policy, system, without_none
from isobox.config import Config
from isobox.errors import IsoboxError
from isobox.functions.bundle import bundle
from isobox.functions.calls import (
    Ended,
    FunctionCall,
    Inputs,
    Show,
    Trust,
    argument,
    batches,
    follow,
    new_call_id,
    show,
    upload,
)
from isobox.functions.errors import FunctionError
from isobox.gpus import GpuAsk
from isobox.image import Image, built
from isobox.transport import Transport
from isobox.volume import Volumes, as_asked

P = ParamSpec("P")
R = TypeVar("R")
_FIRST_WAIT_S: Final = 20.0


class App:
    """A name, and functions that run in containers of their own while it runs (`run`)."""

    def __init__(self, name: str) -> None:
        """Lower-case letters, digits, dots, dashes."""
        self.name = name
        self._functions: list[Function[Any, Any]] = []
        self._running: _Running | None = None

    def __repr__(self) -> str:
        return f"<App {self.name}>"

    def function(
        self,
        *,
        image: str | Image = "python",
        cpu: float | None = None,
        memory: int | None = None,
        disk: int | None = None,
        gpu: GpuAsk | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        network: Policy | None = None,
        volumes: Volumes | None = None,
        timeout: float = 300.0,
        retries: int | Mapping[str, float] = 0,
        concurrency: int = 1,
        min_containers: int = 0,
        max_containers: int = 8,
        buffer_containers: int = 0,
        scaledown_window: float = 60.0,
        trust: Trust = "safe",
    ) -> "Callable[[Callable[P, R]], Function[P, R]]":
        """Let a function run in containers: cores, MiB, seconds.

        retries: how often it is tried again after an exception, or {"count", "delay_s", "factor"}. trust="pickle" lets
        any value come back, and code of the container's with it: only for what you trust (docs/functions.md).
        """
        resources = without_none({"cpu": cpu, "memory_mb": memory, "disk_mb": disk})
        if gpu is not None:
            resources["gpu"] = {"kind": gpu} if isinstance(gpu, str) else dict(gpu)
        fields = without_none(
            {
                "resources": resources or None,
                "env": None if env is None else dict(env),
                "user": user,
                "network": network,
                "timeout_s": timeout,
                "retries": {"count": retries} if isinstance(retries, int) else dict(retries),
                "concurrency": concurrency,
                "min_containers": min_containers,
                "max_containers": max_containers,
                "buffer_containers": buffer_containers,
                "scaledown_s": scaledown_window,
                "trust": trust,
            }
        ) | as_asked(volumes)

        def decorate(function: Callable[P, R]) -> Function[P, R]:
            made = Function(self, function, image, fields, trust)
            self._functions.append(made)
            return made

        return decorate

    @contextmanager
    def run(self, *, url: str | None = None, api_key: str | None = None, on_print: Show = show) -> "Iterator[App]":
        """Make its functions on the server, for the time of the block.

        Calls that were spawned go on after it; what was kept ready by min_containers goes.
        """
        if self._running is not None:
            raise FunctionError(f"app {self.name} runs already")
        config = Config.find(url, api_key)
        transport = Transport(config)
        try:
            self._running = _Running(config, transport, on_print)
            for each in self._functions:
                if each.fields["min_containers"]:
                    each.id  # noqa: B018  # made now, so that its containers start
            yield self
        finally:
            running, self._running = self._running, None
            try:
                for each in self._functions:
                    if each.made is not None and each.fields["min_containers"]:
                        transport.send(system("DELETE", f"/v1/functions/{each.made}"))
                    each.made = None
            finally:
                transport.close()
                del running

    @property
    def running(self) -> "_Running":
        """What it runs by; FunctionError outside of `run`."""
        if self._running is None:
            raise FunctionError(f"app {self.name} does not run: call its functions inside `with app.run():`")
        return self._running


class _Running:
    """A server, for the time that an app runs."""

    def __init__(self, config: Config, transport: Transport, on_print: Show) -> None:
        self.config = config
        self.transport = transport
        self.on_print = on_print


class Method(Generic[P, R]):
    """A blocking call, and the same for asyncio as `.aio`."""

    def __init__(self, call: Callable[P, R]) -> None:
        self._call = call

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it and wait."""
        return self._call(*args, **kwargs)

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Call it and let others run meanwhile."""
        return asyncio.to_thread(self._call, *args, **kwargs)


class Function(Generic[P, R]):
    """A function that runs in containers (`remote`, `spawn`, `map` …) and here (`local`, or called as it is)."""

    def __init__(
        self, app: App, function: Callable[P, R], image: str | Image, fields: dict[str, Any], trust: Trust
    ) -> None:
        functools.update_wrapper(self, function)
        self.isobox_local = function
        self.fields = fields
        self.made: str | None = None
        self._app = app
        self._image = image
        self._trust = trust
        self._making = threading.Lock()
        self.remote: Method[P, R] = Method(self._remote)
        self.spawn: Method[P, FunctionCall] = Method(self._spawn)

    def __repr__(self) -> str:
        return f"<Function {self._app.name}.{self.name}>"

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
    def name(self) -> str:
        """Its name in the app."""
        return self.isobox_local.__qualname__

    @property
    def _is_generator(self) -> bool:
        function = self.isobox_local
        return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)

    @property
    def id(self) -> str:
        """The server's id for it; made on first use, its image too."""
        running = self._app.running
        with self._making:
            if self.made is None:
                packed = bundle(self.isobox_local)
                upload(running.transport, packed.digest, packed.archive)
                config = running.config
                image = self._image if isinstance(self._image, str) else built(self._image, config.url, config.api_key)
                fields = {
                    **{"app": self._app.name, "name": self.name.replace("<locals>.", ""), "code": packed.digest},
                    **{"entry": packed.entry, "image": image, "generator": self._is_generator},
                }
                self.made = str(
                    running.transport.send(system("POST", "/v1/functions", json=fields | self.fields))["id"]
                )
            return self.made

    # ---- one

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], wait_s: float) -> dict[str, Any]:
        transport = self._app.running.transport
        body = {"id": new_call_id(), "inputs": [argument(transport, args, kwargs)], "wait_s": wait_s}
        call = system("POST", f"/v1/functions/{self.id}/calls", json=body)
        answer: dict[str, Any] = transport.send(call)
        return answer

    def _remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._is_generator:
            raise FunctionError(f"{self.name} is a generator: use remote_gen")
        running = self._app.running
        answer = self._call(args, kwargs, _FIRST_WAIT_S)
        for each in follow(running.transport, answer["id"], self._trust, first=answer, printed=running.on_print):
            value: R = each.get()
        return value

    def _spawn(self, *args: P.args, **kwargs: P.kwargs) -> FunctionCall:
        answer = self._call(args, kwargs, 0.0)
        return FunctionCall(self._app.running.config, answer["id"], trust=self._trust)

    def remote_gen(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
        """What a generator yields, as it comes; whoever leaves it early ends it."""
        if not self._is_generator:
            raise FunctionError(f"{self.name} is no generator: use remote")
        running = self._app.running
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
        self, *iterables: Iterable[Any], order_outputs: bool = True, return_exceptions: bool = False
    ) -> Iterator[Any]:
        """Its results for each input; several iterables are taken side by side, as the built-in map takes them.

        With order_outputs in the inputs' order, else as they come. An exception ends it, and the call with it, unless
        return_exceptions lets it stand among the results. Inputs are taken while results are read.
        """
        return self.starmap(
            zip(*iterables, strict=False), order_outputs=order_outputs, return_exceptions=return_exceptions
        )

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
        results = self.map(*iterables, **options)
        ended = object()
        try:
            while (each := await asyncio.to_thread(next, results, ended)) is not ended:
                yield each
        finally:
            await asyncio.to_thread(results.close)  # type: ignore[attr-defined]

    def _map(self, inputs: Inputs, ordered: bool, keep_errors: bool) -> Iterator[Any]:
        if self._is_generator:
            raise FunctionError(f"{self.name} is a generator: use remote_gen")
        running, function, call = self._app.running, self.id, new_call_id()
        opening = {"id": call, "inputs": [], "more": True}
        running.transport.send(system("POST", f"/v1/functions/{function}/calls", json=opening))
        sender = _Sender(running.transport, call, inputs)
        sender.start()
        waiting: dict[int, Ended] = {}
        following, over = 0, False
        try:
            for each in follow(running.transport, call, self._trust, printed=running.on_print):
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


def gather(*calls: FunctionCall) -> list[Any]:
    """The results of spawned calls, in their order; the first exception is raised."""
    return [each.get() for each in calls]
