"""`isobox shell`: a shell in a sandbox that is there, or in one that is like a function's containers."""

from contextlib import closing
from typing import Annotated

import typer

from isobox import Sandbox, calls
from isobox.cli import stream
from isobox.cli.apps import find_app
from isobox.config import Config
from isobox.errors import NotFound
from isobox.transport import Transport

_SHELL = "command -v bash > /dev/null && exec bash; exec sh"
_CODE = "/tmp/.isobox-function/code"


def shell(
    target: Annotated[
        str, typer.Argument(help="A sandbox's id, APP::FUNCTION as it is deployed, or FILE.py::FUNCTION.")
    ],
    command: Annotated[str, typer.Option("--command", "-c", help="Run this instead of a shell.")] = "",
    user: Annotated[str | None, typer.Option(help="User inside.")] = None,
) -> None:
    """Open a shell in a sandbox; for a function in a fresh one like its containers, in the folder of its code."""
    argv = (
        ["/bin/sh", "-c", command] if command else ["/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"]
    )
    options = {} if user is None else {"user": user}
    if "::" not in target:
        raise typer.Exit(_run(Sandbox.connect(target), argv, options, terminal=not command))
    id_ = _like(target)
    with Sandbox.connect(id_) as sandbox:
        code = _run(sandbox, argv, options | {"workdir": _CODE}, terminal=not command)
    raise typer.Exit(code)


def _run(sandbox: Sandbox, argv: list[str], options: dict[str, str], *, terminal: bool) -> int:
    return stream.terminal(sandbox, argv, options) if terminal else stream.run(sandbox, argv, **options)


def _like(target: str) -> str:
    where, _, name = target.rpartition("::")
    if where.partition("::")[0].endswith(".py"):
        app = find_app(where)
        with app.run():
            return _made(app.made(name))
    with closing(Transport(Config.find(None, None))) as transport:
        functions = transport.send(calls.system("GET", f"/v1/apps/{where}"))["functions"]
    if name not in functions:
        there = ", ".join(functions) or "none"
        raise NotFound({"status": 404, "detail": f"app {where} has no function {name}; it has {there}"})
    return _made(functions[name]["id"])


def _made(function: str) -> str:
    with closing(Transport(Config.find(None, None))) as transport:
        call = calls.system("POST", f"/v1/functions/{function}/sandbox", json={}, safe=False, read_timeout_s=None)
        return str(transport.send(call)["id"])
