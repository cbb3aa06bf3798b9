"""Runs a function inside a sandbox: `python3 runner.py FOLDER`, the standard library alone.

FOLDER/function.json says what to run, FOLDER/code is on the path. Lines of JSON come on stdin and go to what was
stdout; whatever the function prints goes to its caller, line by line, tagged with the input it belongs to.

    {"c": "run", "i": ID, "a": VALUE, "x"}  {"c": "have", "n": N}  {"c": "answer", "q", "s", "a"}  {"c": "again"}    in
    {"k": "snap"} (a copy may be made; {"c": "go"} goes on)
    {"k": "ready"}  {"k": "done" | "yield" | "error", "i": ID, …}  {"k": "print", "i", "s", "t"}  {"k": "have"}
    {"k": "ask", "q", "i", "m", "p", "v"} (see asks.py)                                                            out

VALUE is {"d": base64} or, where it is large, {"f": path}; what is in it the client's codec decides, which lies in
FOLDER/code too (isobox/functions/codec.py).
"""

from __future__ import annotations

# Every import takes milliseconds under gVisor, before the first input can begin: no more here than all inputs need.
import binascii
import importlib
import io
import json
import os
import sys
import threading
from _contextvars import ContextVar, copy_context
from _queue import SimpleQueue
from itertools import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

INLINE = 48 << 10
PRINT_MAX = 16 << 10
INPUT: ContextVar[str | None] = ContextVar("input", default=None)
"""The input that a thread works for."""


class Channel:
    """The way back to the host; lines are whole whoever writes them."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        self._lock = threading.Lock()

    def say(self, **frame: object) -> None:
        """One line."""
        line = json.dumps(frame).encode() + b"\n"
        with self._lock:
            view = memoryview(line)
            while view:
                view = view[os.write(self._fd, view) :]


class Stray:
    """What is printed past us, by child processes for example: it belongs to the one input in hand, if there is one."""

    def __init__(self, channel: Channel, hand: dict[str, bool]) -> None:
        self._channel = channel
        self._hand = hand
        self._lock = threading.Lock()
        self._from, to = os.pipe()
        os.set_blocking(self._from, False)
        os.dup2(to, 1)
        os.dup2(to, 2)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        import select

        while True:
            select.select([self._from], [], [])
            self.pass_on()

    def pass_on(self) -> None:
        """All that is there."""
        with self._lock:
            try:
                while data := os.read(self._from, PRINT_MAX):
                    whose = next(iter(self._hand)) if len(self._hand) == 1 else None
                    self._channel.say(k="print", i=whose, s=2, t=data.decode(errors="replace"))
            except BlockingIOError:
                return


class Printed(io.TextIOBase):
    """stdout or stderr of the function: what belongs to an input says so."""

    def __init__(self, channel: Channel, stream: int) -> None:
        self._channel = channel
        self._stream = stream
        self._rest: dict[str | None, str] = {}

    encoding = "utf-8"

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """Of what is printed past us."""
        return self._stream

    def write(self, text: str) -> int:
        """Pass on what is a whole line, keep the rest for a moment."""
        number = INPUT.get()
        held = self._rest.pop(number, "") + text
        whole, newline, rest = held.rpartition("\n")
        if len(rest) > PRINT_MAX:
            whole, newline, rest = held, "", ""
        if rest:
            self._rest[number] = rest
        if whole or newline:
            self._pass(number, whole + newline)
        return len(text)

    def flush(self) -> None:
        """Pass on what there is."""
        number = INPUT.get()
        if rest := self._rest.pop(number, ""):
            self._pass(number, rest)

    def _pass(self, number: str | None, text: str) -> None:
        for begin in range(0, len(text), PRINT_MAX):
            self._channel.say(k="print", i=number, s=self._stream, t=text[begin : begin + PRINT_MAX])


class Runner:
    """The function, loaded, and those inputs that are in hand."""

    def __init__(self, folder: str, channel: Channel) -> None:
        self.folder = folder
        self.channel = channel
        with open(os.path.join(folder, "function.json")) as file:
            self.said = json.load(file)
        sys.path.insert(0, os.path.join(folder, "code"))
        self.codec: Any = importlib.import_module("isobox_inside.codec")
        self.function = self.codec.load(self.said["entry"], os.path.join(folder, "code"))
        self.hand: dict[str, bool] = {}
        self.stray = Stray(channel, self.hand)
        self.files = count()
        self.input = INPUT
        self.asks: Any = None
        inside: Any = importlib.import_module("isobox_inside")
        inside.ask = self.ask

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Ask the server something: a request of its API, as far as it answers that to a container."""
        if self.asks is None:
            from asks import Asks

            self.asks = Asks(self.channel, self.packed, self.value, INPUT.get, self.said["questions"])
        found: tuple[int, bytes] = self.asks.ask(method, path, body)
        return found

    def value(self, given: dict[str, str]) -> bytes:
        """The bytes of an argument."""
        if "d" in given:
            return binascii.a2b_base64(given["d"])
        try:
            with open(given["f"], "rb") as file:
                return file.read()
        finally:
            os.unlink(given["f"])

    def packed(self, data: bytes) -> dict[str, object]:
        """Bytes as they are sent: in the line, or in a file that the host reads."""
        if len(data) <= INLINE:
            return {"d": binascii.b2a_base64(data, newline=False).decode()}
        path = os.path.join(self.folder, f"out-{os.getpid()}-{next(self.files)}")
        with open(path, "wb") as file:
            file.write(data)
        return {"f": path, "n": len(data)}

    def work(self, number: str, given: dict[str, str]) -> None:
        """One input, from its arguments to its end."""
        try:
            args, kwargs = self.codec.arguments(self.value(given))
        except BaseException as error:
            self.fail(number, error)
            self.hand.pop(number, None)
        else:
            self.run(number, args, kwargs)

    def run(self, number: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The same once its arguments are read."""
        name, size, _ = self.function.batch(args)
        if size:
            from batches import do

            do(self, [(number, args, kwargs)], name)
            return
        token = self.input.set(number)
        try:
            self.finish(number, self.settled(self.function(*args, **kwargs)))
        except BaseException as error:
            self.fail(number, error)
        finally:
            self.input.reset(token)
            self.hand.pop(number, None)

    @staticmethod
    def settled(result: Any) -> Any:
        """What a coroutine comes to; anything else as it is."""
        if hasattr(result, "__await__"):
            import asyncio

            return asyncio.run(_awaited(result))
        return result

    def finish(self, number: str, result: Any) -> None:
        """Its value, or one after the other those that it yields."""
        trust = self.said["trust"]
        if type(result).__name__ in ("generator", "async_generator"):
            if hasattr(result, "__aiter__"):
                result = _drained(result)
            for place, each in enumerate(result):
                self.flush()
                self.channel.say(k="yield", i=number, y=place, v=self.packed(self.codec.result(each, trust)))
            result = None
        data = self.packed(self.codec.result(result, trust))
        self.flush()
        self.channel.say(k="done", i=number, v=data)

    def fail(self, number: str, error: BaseException) -> None:
        """Its exception, with where it happened."""
        import traceback

        trace = traceback.TracebackException.from_exception(error)
        hidden = os.path.abspath(__file__)
        trace.stack = traceback.StackSummary.from_list([each for each in trace.stack if each.filename != hidden])
        kind = type(error)
        try:
            data = self.packed(self.codec.exception(error, self.said["trust"]))
        except Exception:
            data = None
        self.flush()
        self.channel.say(
            k="error",
            i=number,
            t=f"{kind.__module__}.{kind.__qualname__}",
            m=str(error)[:10_000],
            b="".join(trace.format())[-50_000:],
            v=data,
        )

    def flush(self) -> None:
        """Prints come before what follows them."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.stray.pass_on()


async def _awaited(result: Any) -> Any:
    return await result


def _drained(generator: Any) -> Iterator[Any]:
    """An asynchronous generator's values, one by one."""
    import asyncio

    with asyncio.Runner() as runner:
        while True:
            try:
                yield runner.run(_awaited(anext(generator)))
            except StopAsyncIteration:
                return


def main() -> None:
    """Serve until there is no more input."""
    folder = sys.argv[1]
    channel = Channel()
    sys.stdout, sys.stderr = Printed(channel, 1), Printed(channel, 2)
    try:
        runner = Runner(folder, channel)
        waiting: SimpleQueue[tuple[str, dict[str, str]] | None] = SimpleQueue()
        going: SimpleQueue[None] = SimpleQueue()
        threading.Thread(target=hear, args=(runner, waiting, going), daemon=True).start()
        if runner.function.snaps:
            runner.function.enter(True)
            runner.flush()
            channel.say(k="snap")
            going.get()  # here a copy goes on, or this one
            reseed()
        runner.function.enter(False)
    except BaseException as error:
        import traceback

        trace = "".join(traceback.format_exception(error))
        channel.say(k="broken", t=type(error).__name__, m=str(error)[:10_000], b=trace[-50_000:])
        return

    def serve() -> None:
        while (asked := waiting.get()) is not None:
            copy_context().run(runner.work, *asked)
        waiting.put(None)

    channel.say(k="ready")
    if runner.function.batches:
        from batches import serve_batches

        serve_batches(runner, waiting)
    elif runner.said["concurrency"] == 1:
        serve()  # in the main thread: signals and libraries that want it find what they expect
    else:
        threads = [threading.Thread(target=serve) for _ in range(runner.said["concurrency"])]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    runner.function.close()
    runner.flush()


def hear(runner: Runner, waiting: SimpleQueue[Any], going: SimpleQueue[None]) -> None:
    """Take in what the host says, until it says no more."""
    for line in sys.stdin.buffer:
        said = json.loads(line)
        match said["c"]:
            case "run" if said["i"] not in runner.hand:
                runner.hand[said["i"]] = True
                if said.get("x"):
                    work = (runner.work, said["i"], said["a"])
                    threading.Thread(target=copy_context().run, args=work, daemon=True).start()
                else:
                    waiting.put((said["i"], said["a"]))
            case "have":
                runner.channel.say(k="have", n=said["n"], ids=list(runner.hand))
            case "go":
                going.put(None)
            case "answer":
                runner.asks.answered(said["q"], said["s"], said["a"])
            case "again" if runner.asks is not None:
                runner.asks.again()
    waiting.put(None)
    going.put(None)
    if runner.asks is not None:
        runner.asks.end()


def reseed() -> None:
    """Draw other numbers than this process's copies do."""
    for name in ("random", "numpy.random", "torch"):
        if (module := sys.modules.get(name)) is not None:
            module.seed()
    with open("/proc/self/maps") as maps:
        libraries = {line.split(maxsplit=5)[5].rstrip() for line in maps if "/libcrypto" in line}
    module = sys.modules.get("_ssl")
    if module is not None:
        module.RAND_add(os.urandom(48), 48.0)
    if module is not None and len(libraries) < 2:
        return  # that was it
    import ctypes

    for path in libraries:
        try:
            ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW).RAND_poll()
        except (OSError, AttributeError):  # replaced on disk, or of another kind
            continue


if __name__ == "__main__":
    importlib.invalidate_caches()
    main()
