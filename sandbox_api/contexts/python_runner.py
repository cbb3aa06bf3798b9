"""The Python side of a context, as it runs inside a sandbox: standard library, and IPython where the image has it.

Requests are lines of JSON on fd 0: {"run": N, "code": "…", "seed": "hex" or null}, or {"warm": true}. Output goes where
the code sends it; frames (see protocol.py) tell of results and of the end of a run, on stdout and stderr alike. Started
with the context's token as its only argument.
"""

import ast
import asyncio
import base64
import builtins
import contextlib
import gc
import inspect
import json
import linecache
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

TOKEN = sys.argv[1]
PAYLOAD_MAX = 4000
RESULT_MAX = 12 << 20
TEXT_MAX = 1 << 20


def send(fd: int, kind: str, message: object) -> None:
    """Write a message as frames, each in one piece."""
    raw = json.dumps(message).encode() if message is not None else b""
    parts = [raw[i : i + PAYLOAD_MAX] for i in range(0, len(raw), PAYLOAD_MAX)] or [b""]
    for n, part in enumerate(parts):
        more = "+" if n < len(parts) - 1 else "."
        head = f"\x1eisobox:{TOKEN}{kind}{n:04x}{more}{len(part):04x}".encode()
        os.write(fd, head + part)


def flush() -> None:
    """All that Python holds back goes out first."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the code may have put anything there
            stream.flush()


def emit(bundle: dict[str, Any]) -> None:
    """Tell of a result: {mime: value}; bytes travel as base64."""
    clean = {}
    for mime, value in bundle.items():
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        if mime.startswith("text/") and isinstance(value, str) and len(value) > TEXT_MAX:
            value = value[:TEXT_MAX] + "…"
        try:
            if len(json.dumps(value)) <= RESULT_MAX:
                clean[mime] = value
        except (TypeError, ValueError):
            continue
    if clean:
        flush()
        send(1, "R", clean)


def bundle_of(value: Any) -> dict[str, Any]:
    """The representations of a value, as IPython's protocol names them."""
    found: dict[str, Any] = {}
    if hasattr(value, "_repr_mimebundle_"):
        try:
            made = value._repr_mimebundle_(include=None, exclude=None)
            found.update(made[0] if isinstance(made, tuple) else made or {})
        except Exception:  # the code's own representation is broken: there are others
            found.clear()
    names = {
        "_repr_html_": "text/html",
        "_repr_markdown_": "text/markdown",
        "_repr_svg_": "image/svg+xml",
        "_repr_png_": "image/png",
        "_repr_jpeg_": "image/jpeg",
        "_repr_latex_": "text/latex",
        "_repr_json_": "application/json",
    }
    for name, mime in names.items():
        if mime not in found and not isinstance(value, type):
            try:
                made = getattr(value, name)()
            except Exception:  # likewise
                made = None
            if made is not None:
                found[mime] = made[0] if isinstance(made, tuple) else made
    if type(value) in (dict, list) and "application/json" not in found:
        try:
            json.dumps(value)
            found["application/json"] = value
        except (TypeError, ValueError, RecursionError):
            pass
    if "text/plain" not in found:
        found["text/plain"] = repr(value)
    return found


def show_figures() -> None:
    """What matplotlib drew and nobody has seen."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return
    import io

    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        image = io.BytesIO()
        figure.savefig(image, format="png", bbox_inches="tight")
        emit({"image/png": image.getvalue(), "text/plain": repr(figure)})
        pyplot.close(figure)


def no_input(prompt: object = "") -> str:
    """There is nobody to ask."""
    raise RuntimeError("input() has nobody to ask here: put the value into the code, or into a file and read that")


def reseed(text: str, names: dict[str, Any]) -> None:
    """Draw other numbers than the sandbox that this one is a copy of: by the seed that text (32 hex digits) is."""
    import random

    random.seed(bytes.fromhex(text))
    reseed_openssl()
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed([int(text[i : i + 8], 16) for i in range(0, 32, 8)])
        for value in list(names.values()):
            # Of 64 bits and more is the seed that numpy took from the kernel; a program's own is kept.
            source = getattr(value, "bit_generator", None) if isinstance(value, numpy.Generator) else None
            seed = getattr(source, "seed_seq", None) or getattr(source, "_seed_seq", None)  # before numpy 1.25
            entropy = getattr(seed, "entropy", None)
            if source is not None and isinstance(entropy, int) and entropy.bit_length() > 64:
                source.state = type(source)().state
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()


def reseed_openssl() -> None:
    """Let OpenSSL's generator take new entropy, in each copy of the library that this process has loaded."""
    if (module := sys.modules.get("_ssl")) is not None:
        module.RAND_add(os.urandom(48), 48.0)
    with open("/proc/self/maps") as maps:
        libraries = {line.split(maxsplit=5)[5].rstrip() for line in maps if "/libcrypto" in line}
    if module is not None and len(libraries) < 2:
        return  # that was it
    import ctypes

    for path in libraries:
        with contextlib.suppress(OSError, AttributeError):  # replaced on disk, or of another kind
            ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW).RAND_poll()


def show_error(error: BaseException) -> None:
    """The traceback, from the code's own first line on."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
        trace = trace.tb_next
    flush()
    told = traceback.TracebackException(type(error), error, trace)
    while told.stack and told.stack[-1].name in (no_input.__name__, "interrupted"):  # ours, of no use to anybody
        told.stack.pop()
    sys.stderr.write("".join(told.format()))


class Plain:
    """A plain interpreter."""

    def __init__(self, names: dict[str, Any], module: ModuleType, represent: Callable[[Any], dict[str, Any]]) -> None:
        sys.modules["__main__"] = module
        self.names = names
        self.represent = represent
        self.loop = asyncio.new_event_loop()

    def run(self, code: str, name: str) -> bool:
        """Run one cell; True if it ended well."""
        try:
            tree = ast.parse(code, name)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            if tree.body:
                self.value(compile(tree, name, "exec", flags=flags))
            if isinstance(last, ast.Expr):
                value = self.value(compile(ast.Expression(last.value), name, "eval", flags=flags))
                if value is not None:
                    self.names["_"] = value
                    emit(self.represent(value))
            return True
        except SystemExit as error:
            return not error.code
        except BaseException as error:
            show_error(error)
            return False

    def value(self, compiled: CodeType) -> Any:
        """Evaluate, on the event loop if it awaits something."""
        if inspect.CO_COROUTINE & compiled.co_flags:
            return self.loop.run_until_complete(eval(compiled, self.names))  # noqa: S307 - what a context is for
        return eval(compiled, self.names)  # noqa: S307


class WithIPython:
    """IPython's shell: magics, !commands, its display protocol."""

    def __init__(self) -> None:
        from IPython.core.displayhook import DisplayHook  # type: ignore[import-not-found]
        from IPython.core.displaypub import DisplayPublisher  # type: ignore[import-not-found]
        from IPython.core.interactiveshell import InteractiveShell  # type: ignore[import-not-found]

        class Hook(DisplayHook):  # type: ignore[misc]  # IPython lives in the guest
            def write_output_prompt(self) -> None:
                pass

            def write_format_data(self, format_dict: dict[str, Any], md_dict: object = None) -> None:
                emit(format_dict)

        class Publisher(DisplayPublisher):  # type: ignore[misc]
            def publish(
                self, data: dict[str, Any], metadata: object = None, source: object = None, **_: object
            ) -> None:
                emit(data)

        InteractiveShell.displayhook_class = Hook
        InteractiveShell.display_pub_class = Publisher
        InteractiveShell.colors.default_value = "NoColor"
        InteractiveShell.history_length.default_value = 0
        self.shell = InteractiveShell.instance()
        self.shell.history_manager.enabled = False
        self.shell.display_formatter.active_types = self.shell.display_formatter.format_types
        self.shell.showtraceback = lambda *_, **__: None
        self.shell.showsyntaxerror = lambda *_, **__: None
        self.shell.system = self.shell.system_raw  # the other one goes by a terminal
        self.plain = Plain(self.shell.user_ns, self.shell.user_module, self.represented)
        self.name = "<cell 0>"
        self.shell.compile.get_code_name = lambda *_: self.name

    def run(self, code: str, name: str) -> bool:
        """Run one cell; True if it ended well."""
        try:
            ast.parse(code, name)
        except SyntaxError:  # a magic, a !command, or a mistake that IPython tells as well
            return self.run_cell(code, name)
        # Plain Python needs none of what IPython does around a cell, and that takes longer than most code.
        return self.plain.run(code, name)

    def represented(self, value: Any) -> dict[str, Any]:
        """As IPython's formatters and whoever registered some with them have it."""
        return {**bundle_of(value), **self.shell.display_formatter.format(value)[0]}

    def run_cell(self, code: str, name: str) -> bool:
        """Run what is more than Python."""
        self.name = name
        result = self.shell.run_cell(code, store_history=False)
        error = result.error_before_exec or result.error_in_exec
        if error is not None and not (isinstance(error, SystemExit) and not error.code):
            show_error(error)
            return False
        return True


def interpreter() -> "Plain | WithIPython":
    """The best that the image has."""
    try:
        return WithIPython()
    except ImportError:
        module = ModuleType("__main__")
        module.__dict__["__builtins__"] = builtins
        return Plain(module.__dict__, module, bundle_of)


def warm(shell: "Plain | WithIPython") -> None:
    """Do what a run does, and touch all objects: restored memory is mapped when it is first used."""
    plain = shell if isinstance(shell, Plain) else shell.plain
    reseed(os.urandom(16).hex(), {})
    shell.run("None", "<warm>")
    json.dumps(plain.represent(0))
    gc.collect()


def main() -> None:
    """Serve runs until there are no more."""
    requests = os.fdopen(os.dup(0), "rb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.environ.setdefault("MPLBACKEND", "agg")
    sys.argv = [""]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a TextIOWrapper
    sys.path.insert(0, "")
    running = False

    def interrupted(*_: object) -> None:
        if running:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    shell = interpreter()
    builtins.input = no_input
    send(1, "S", {"python": sys.version.split()[0], "shell": type(shell).__name__})
    for line in requests:
        request = json.loads(line)
        if "warm" in request:
            warm(shell)
            send(1, "W", None)
            continue
        if request.get("seed"):
            reseed(request["seed"], (shell if isinstance(shell, Plain) else shell.plain).names)
        name = f"<cell {request['run']}>"
        code = request["code"]
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        well = False
        try:  # the outer one for an interrupt that comes just behind the code
            try:
                running = True
                well = shell.run(code, name)
                show_figures()
            finally:
                running = False
        except BaseException as error:
            show_error(error)
            well = False
        flush()
        send(2, "D", {"run": request["run"]})
        send(1, "D", {"run": request["run"], "ok": well})


main()
