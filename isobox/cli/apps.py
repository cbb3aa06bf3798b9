"""`isobox deploy` and `isobox app`: apps of functions, in force on the server."""

import contextlib
import importlib
import importlib.util
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from isobox import calls
from isobox.cli.say import complain, moment, print_lines, print_table, say
from isobox.config import Config
from isobox.errors import NotFound
from isobox.functions.app import App
from isobox.printable import printable
from isobox.transport import Transport
from isobox.values import time_of

_LOOK_S = 0.5
apps_app = typer.Typer(no_args_is_help=True, help="Deployed apps of functions.")
Name = Annotated[str, typer.Argument(help="The app's name.")]


def find_app(where: str) -> App:
    """The app that FILE.py, package.module or either with ::NAME behind it means."""
    module, _, wanted = where.partition("::")
    path = Path(module)
    if path.suffix == ".py":
        if not path.is_file():
            raise typer.BadParameter(f"there is no file {module}")
        sys.path.insert(0, str(path.resolve().parent))
        module = path.stem
    else:
        sys.path.insert(0, str(Path.cwd()))
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise typer.BadParameter(f"{module} cannot be imported: {error}") from error
    found = {name: each for name, each in vars(loaded).items() if isinstance(each, App)}
    if wanted in found:
        return found[wanted]
    if wanted or len(found) != 1:
        there = ", ".join(found) or "none"
        raise typer.BadParameter(f"which app? {module} has {there}: write {where.partition('::')[0]}::NAME")
    return next(iter(found.values()))


Where = Annotated[str, typer.Argument(help="FILE.py or package.module, with ::NAME of the app if it has several.")]


def deploy(
    where: Where, name: Annotated[str | None, typer.Option(help="Another name for the app there.")] = None
) -> None:
    """Put an app's functions in force, as a new version."""
    info = find_app(where).deploy(name)
    say(f"{info['name']} version {info['version']}: {', '.join(info['functions'])}")
    for function, each in info["functions"].items():
        if each["web"]:
            say(f"  {Config.find(None, None).url}/v1/apps/{info['name']}/web/{function}/")


@apps_app.command()
def serve(where: Where) -> None:
    """Deploy an app as NAME-dev, anew whenever a file of its folder is saved, until Ctrl-C ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell had one ignored
        signal.signal(number, signal.default_int_handler)
    module = where.partition("::")[0]
    name = f"{find_app(where).name}-dev"
    folder = Path(module).resolve().parent if module.endswith(".py") else Path.cwd()
    command = [sys.executable, "-m", "isobox.cli.main", "deploy", where, "--name", name]
    seen: dict[Path, int] | None = None
    try:
        while True:
            if (now := _saved(folder)) != seen:
                seen = now
                subprocess.run(command, check=False)  # a file that is broken says so, and what was in force goes on
            time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        with contextlib.suppress(NotFound):  # it was never deployed
            _send("POST", f"/v1/apps/{name}/stop", json={})


def _saved(folder: Path) -> dict[Path, int]:
    """When each Python file below a folder was saved."""
    found = {}
    for path in folder.rglob("*.py"):
        with contextlib.suppress(FileNotFoundError):  # an editor is at it
            found[path] = path.stat().st_mtime_ns
    return found


def _send(method: str, path: str, **parts: Any) -> Any:
    with closing(Transport(Config.find(None, None))) as transport:
        return transport.send(calls.system(method, path, **parts))


@apps_app.command()
def ls() -> None:
    """List apps: what is in force, and what runs by itself when."""
    rows = []
    for app in _send("GET", "/v1/apps")["apps"]:
        if not app["functions"]:
            rows.append((app["name"], "stopped", "", "", ""))
        for name, each in app["functions"].items():
            times = (moment(time_of(each["last_at"])), moment(time_of(each["next_at"])))
            rows.append((app["name"], str(app["version"]), name, *times))
    print_table(("APP", "VERSION", "FUNCTION", "RAN", "RUNS NEXT"), rows)


@apps_app.command()
def history(name: Name) -> None:
    """List an app's versions."""
    app = _send("GET", f"/v1/apps/{name}")
    rows = [
        (
            str(each["version"]),
            moment(time_of(each["created_at"])),
            ", ".join(each["functions"]),
            "in force" if each["version"] == app["version"] else "",
            f"as {each['copy_of']}" if each["copy_of"] else "",
        )
        for each in app["history"]
    ]
    print_table(("VERSION", "DEPLOYED", "FUNCTIONS", "", ""), rows)


@apps_app.command()
def rollback(
    name: Name, version: Annotated[int | None, typer.Argument(help="By default the one before.")] = None
) -> None:
    """Put an earlier version in force again."""
    found = _send("POST", f"/v1/apps/{name}/rollback", json={"version": version})
    say(f"{name} version {found['version']}, as {found['history'][-1]['copy_of']}")


@apps_app.command()
def stop(name: Name) -> None:
    """Keep nothing of it ready, run nothing of it by schedule."""
    _send("POST", f"/v1/apps/{name}/stop", json={})


@apps_app.command()
def logs(name: Name) -> None:
    """Print what functions said for nobody: web endpoints, and those that ran by schedule when they ran last."""
    for function, each in _send("GET", f"/v1/apps/{name}")["functions"].items():
        text = _send("GET", f"/v1/functions/{each['id']}/logs")["text"]
        _print_of(function, text)
        if each["last_call"] is None:
            continue
        after = 0
        while True:
            page = _send("GET", f"/v1/calls/{each['last_call']}", params={"after": str(after)})
            for result in page["results"]:
                if result["kind"] == "print":
                    _print_of(function, result["text"])
                elif result["kind"] == "error":
                    complain(f"{function}: {result['error']['type']}: {result['error']['message']}")
            after = page["next_after"]
            if not page["more"]:
                break


def _print_of(function: str, text: str) -> None:
    print_lines("".join(f"{printable(function)} | {line}\n" for line in text.splitlines()))
