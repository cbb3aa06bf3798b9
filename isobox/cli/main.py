"""`isobox`: what a person types."""

import asyncio
import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

try:
    import typer
    from rich.text import Text
except ImportError:  # the client was installed alone
    sys.exit("the isobox command needs its extra: pip install 'isobox[cli]'")

from isobox import Sandbox, calls
from isobox.cli import forward, stream
from isobox.cli.apps import apps_app, deploy
from isobox.cli.gpu import gpu_app, usage
from isobox.cli.images import image_app
from isobox.cli.net import net_app, secret_app
from isobox.cli.say import complain, moment, out, print_contents, print_lines, print_table, say
from isobox.cli.shell import shell
from isobox.cli.volumes import volume_app
from isobox.config import Config
from isobox.errors import IsoboxError, NotFound
from isobox.printable import printable, printable_lines
from isobox.transport import Transport
from isobox.values import Snapshot

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="gVisor sandboxes for agents.", pretty_exceptions_enable=False
)
files_app = typer.Typer(no_args_is_help=True, help="A sandbox's files.")
app.add_typer(files_app, name="files")
app.add_typer(image_app, name="image")
ports_app = typer.Typer(no_args_is_help=True, help="What listens in a sandbox.")
app.add_typer(ports_app, name="ports")
snapshot_app = typer.Typer(no_args_is_help=True, help="Kept copies of sandboxes.")
app.add_typer(snapshot_app, name="snapshot")
app.add_typer(net_app, name="net")
app.add_typer(secret_app, name="secret")
app.add_typer(volume_app, name="volume")
app.add_typer(gpu_app, name="gpu")
app.command()(usage)
app.add_typer(apps_app, name="app")
app.command()(deploy)
app.command()(shell)

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
SandboxArgument = Annotated[str, typer.Argument(help="The sandbox's id.")]


@app.command()
def serve(
    state: Annotated[str | None, typer.Option(help="State directory (ISOBOX_STATE; /var/lib/isobox).")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT (ISOBOX_LISTEN; 127.0.0.1:8700).")] = None,
) -> None:
    """Run the server on this machine, as root."""
    from isobox.cli import server

    server.serve(server.Settings.from_environment(state=state, listen=listen))


@app.command(context_settings=PASS_ON)
def run(
    context: typer.Context,
    image: Annotated[str, typer.Option(help="Image to run in.")] = "python",
    user: Annotated[str | None, typer.Option(help="User inside.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds until the sandbox ends.")] = 300.0,
    memory_mb: Annotated[int | None, typer.Option("--memory", help="MiB.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE; may be repeated.")] = None,
    network: Annotated[str | None, typer.Option(help="What may leave it: a preset (none, open, packages …).")] = None,
    gpu: Annotated[str | None, typer.Option(help="A GPU of this kind (any, h100 …) for it alone.")] = None,
    namespaces: Annotated[
        bool | None, typer.Option("--namespaces", help="Let programs inside create namespaces (bubblewrap …).")
    ] = None,
) -> None:
    """Run a command in a fresh sandbox: isobox run -- python3 -c 'print(1)'."""
    argv = context.args
    if not argv:
        raise typer.BadParameter("name a command behind --, for example: isobox run -- python3 -c 'print(1)'")
    _refuse_stray_option(argv[0], "they are listed by isobox run --help")
    resources = {"memory_mb": memory_mb} if memory_mb else None
    with Sandbox.create(
        image,
        timeout_s=timeout_s,
        resources=resources,
        env=_env(env),
        network=network,
        namespaces=namespaces,
        gpu=gpu,
    ) as sandbox:
        code = stream.run(sandbox, argv, user=user)
    raise typer.Exit(code)


def _refuse_stray_option(word: str, hint: str) -> None:
    """Refuse an option where a program or an id is expected: PASS_ON lets unknown options through."""
    if word.startswith("-"):
        raise typer.BadParameter(f"{word} is no option here; {hint}")


def _env(pairs: list[str] | None) -> dict[str, str] | None:
    found = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"--env {pair}: expected NAME=VALUE")
        found[name] = value
    return found or None


@app.command("exec", context_settings=PASS_ON)
def exec_(
    context: typer.Context,
    sandbox: SandboxArgument,
    user: Annotated[str | None, typer.Option(help="User inside.")] = None,
    workdir: Annotated[str | None, typer.Option(help="Working directory inside.")] = None,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="With a terminal.")] = False,
) -> None:
    """Run a command in a sandbox that exists: isobox exec ID -- ls -l."""
    argv = context.args[1:] if context.args[:1] == ["--"] else context.args
    if not argv:
        raise typer.BadParameter("name a command behind the id, for example: isobox exec ID -- ls -l")
    _refuse_stray_option(sandbox, "they are listed by isobox exec --help")
    _refuse_stray_option(argv[0], "options stand before the sandbox's id: isobox exec --user root ID -- id")
    options = {name: value for name, value in {"user": user, "workdir": workdir}.items() if value is not None}
    found = Sandbox.connect(sandbox)
    raise typer.Exit(stream.terminal(found, argv, options) if tty else stream.run(found, argv, **options))


@app.command()
def create(
    image: Annotated[str, typer.Option(help="Image to run.")] = "python",
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds until it ends.")] = 300.0,
    network: Annotated[str | None, typer.Option(help="What may leave it: a preset (none, open, packages …).")] = None,
    gpu: Annotated[str | None, typer.Option(help="A GPU of this kind (any, h100 …) for it alone.")] = None,
    namespaces: Annotated[
        bool | None, typer.Option("--namespaces", help="Let programs inside create namespaces (bubblewrap …).")
    ] = None,
) -> None:
    """Create a sandbox and print its id."""
    say(Sandbox.create(image, name=name, timeout_s=timeout_s, network=network, namespaces=namespaces, gpu=gpu).id)


@app.command()
def ps(all_: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended too.")] = False) -> None:
    """List sandboxes."""
    rows = []
    for sandbox in Sandbox.list():
        info = sandbox.info
        if all_ or info.state not in ("terminated", "failed"):
            state = info.state + (f" ({info.termination['reason']})" if info.termination else "")
            moments = moment(info.created_at), moment(info.expires_at)
            rows.append((info.id, state, info.image, info.name or "", *moments))
    print_table(("ID", "STATE", "IMAGE", "NAME", "CREATED", "EXPIRES"), rows)


@app.command()
def logs(
    sandbox: SandboxArgument,
    exec_id: Annotated[str | None, typer.Argument(help="The exec's id; the newest if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
) -> None:
    """Print what an exec printed."""
    found = Sandbox.connect(sandbox)
    if exec_id is None:
        execs = found.execs()
        if not execs:
            raise NotFound({"status": 404, "detail": "nothing has run in this sandbox yet"})
        exec_id = execs[0].id
    stream.replay(found.process(exec_id), follow=follow)


@app.command()
def kill(sandboxes: Annotated[list[str], typer.Argument(help="Ids of sandboxes.")]) -> None:
    """End sandboxes."""
    for sandbox in sandboxes:
        Sandbox.connect(sandbox).terminate()
        say(sandbox)


@files_app.command("ls")
def files_ls(
    sandbox: SandboxArgument, path: Annotated[str, typer.Argument(help="A folder inside.")] = "/home/user"
) -> None:
    """List a folder."""
    rows = []
    for info in Sandbox.connect(sandbox).files.list(path):
        name = info.name + ("/" if info.type == "dir" else f" -> {info.target}" if info.target else "")
        rows.append((info.mode, str(info.size), moment(info.modified_at), name))
    print_table(("MODE", "SIZE", "MODIFIED", "NAME"), rows)


@files_app.command("get")
def files_get(sandbox: SandboxArgument, path: str, target: Annotated[Path | None, typer.Argument()] = None) -> None:
    """Copy a file out of a sandbox."""
    name = Path(path).name
    if target is None:
        target = Path(name)
    elif target.is_dir():
        target /= name
    Sandbox.connect(sandbox).files.download(path, target)


@files_app.command("put")
def files_put(sandbox: SandboxArgument, source: Path, path: str) -> None:
    """Copy a file into a sandbox."""
    Sandbox.connect(sandbox).files.upload(source, path)


@app.command()
def code(
    sandbox: SandboxArgument,
    code: Annotated[str, typer.Argument(help="Code, or - to read it from standard input.")] = "-",
    language: Annotated[str, typer.Option(help="python or node.")] = "python",
    timeout_s: Annotated[float | None, typer.Option("--timeout", help="Seconds until it is interrupted.")] = None,
) -> None:
    """Run code in a sandbox's default context, which keeps its state."""
    text = sys.stdin.read() if code == "-" else code
    options = {} if timeout_s is None else {"timeout_s": timeout_s}
    result = Sandbox.connect(sandbox).run(text, language=language, **options)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    for shown in result.results:
        print_lines(str(shown.get("text/plain", ", ".join(shown))) + "\n")
    raise typer.Exit(result.exit_code or 0)


@app.command()
def fork(sandbox: SandboxArgument, count: Annotated[int, typer.Argument(help="How many children.")] = 1) -> None:
    """Copy a running sandbox: children that go on beside it."""
    for child in Sandbox.connect(sandbox).fork(count):
        say(child.id)


@app.command()
def pause(sandbox: SandboxArgument) -> None:
    """Copy a sandbox to disk and free its memory."""
    say(Sandbox.connect(sandbox).pause().state)


@app.command()
def resume(sandbox: SandboxArgument) -> None:
    """Let a paused sandbox go on."""
    say(Sandbox.connect(sandbox).resume().state)


@snapshot_app.command("create")
def snapshot_create(
    sandbox: SandboxArgument,
    name: Annotated[str | None, typer.Option(help="A name for it.")] = None,
    ttl_s: Annotated[float | None, typer.Option("--ttl", help="Seconds until it is deleted.")] = None,
    files: Annotated[bool, typer.Option("--files", help="Its files alone, without what runs.")] = False,
) -> None:
    """Keep a copy of a running sandbox."""
    kind: Literal["memory", "filesystem"] = "filesystem" if files else "memory"
    say(Sandbox.connect(sandbox).snapshot(name, kind=kind, ttl_s=ttl_s).id)


@snapshot_app.command("ls")
def snapshot_ls() -> None:
    """List snapshots."""
    page = Transport(Config.find(None, None)).send(calls.snapshots("GET"))
    found = [Snapshot.parse(raw) for raw in page["snapshots"]]
    rows = [
        (s.id, s.name or "", s.kind, f"{s.size_bytes / (1 << 20):.1f} MiB", moment(s.created_at), s.sandbox_id)
        for s in found
    ]
    print_table(("ID", "NAME", "KIND", "SIZE", "CREATED", "SANDBOX"), rows)


@snapshot_app.command("rm")
def snapshot_rm(snapshot: str) -> None:
    """Delete a snapshot."""
    Transport(Config.find(None, None)).send(calls.snapshots("DELETE", f"/{snapshot}"))


@ports_app.command("ls")
def ports_ls(sandbox: SandboxArgument) -> None:
    """List the ports that something inside listens on."""
    for port in Sandbox.connect(sandbox).ports():
        say(port)


@ports_app.command("forward")
def ports_forward(
    sandbox: SandboxArgument,
    port: Annotated[int, typer.Argument(help="The port inside.", min=1, max=65535)],
    listen: Annotated[str, typer.Option(help="HOST:PORT here; port 0 takes a free one.")] = "",
) -> None:
    """Lead a local port into a sandbox, until Ctrl-C."""
    host, _, local = (listen or f"127.0.0.1:{port}").rpartition(":")
    if not local.isdecimal():
        raise typer.BadParameter("expected HOST:PORT, for example 127.0.0.1:8080")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(forward.forward(Config.find(None, None), sandbox, port, host or "127.0.0.1", int(local)))


@files_app.command("cat")
def files_cat(sandbox: SandboxArgument, path: str) -> None:
    """Print a file."""
    print_contents(Sandbox.connect(sandbox).files.read(path))


@files_app.command("rm")
def files_rm(
    sandbox: SandboxArgument, path: str, recursive: Annotated[bool, typer.Option("--recursive", "-r")] = False
) -> None:
    """Delete a file, or with -r a folder."""
    Sandbox.connect(sandbox).files.remove(path, recursive=recursive)


@app.command()
def doctor(
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Remove first what dead servers left on this machine.")
    ] = False,
    only: Annotated[
        Path | None, typer.Option(help="Sweep what servers of this state directory left, nothing else.")
    ] = None,
) -> None:
    """Check everything that a server on this machine needs, and say how to mend what is amiss."""
    from isobox.cli import server

    good = True
    if only is not None and not sweep:
        raise typer.BadParameter("--only belongs to --sweep")
    if sweep:
        for words in server.swept(None if only is None else only.absolute()):
            out.print(Text.assemble(("removed", "green"), printable(f" {words}")))
    for check in server.checks():
        good = good and check.problem is None
        mark = ("ok  ", "green") if check.problem is None else ("fail", "red")
        text = f" {check.name}: {check.found if check.problem is None else check.problem}"
        out.print(Text.assemble(mark, printable(text)))
        if check.problem is not None and check.mend:
            out.print(Text(printable(f"     → {check.mend}")))
    raise typer.Exit(0 if good else 1)


def main() -> None:
    """Run the command; errors are a line, not a stack."""
    try:
        app(prog_name="isobox")
    except IsoboxError as error:
        complain(str(error))
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if isinstance(error, OSError) and str(error.filename) in sys.argv:  # a file that the person named
            complain(f"{error.filename}: {error.strerror}")
            sys.exit(1)
        if (detail := getattr(error, "detail", None)) is None:  # a fault of ours: its text may quote a server's
            sys.stderr.write(printable_lines(traceback.format_exc()))
            sys.exit(1)
        hint = getattr(error, "hint", "")
        complain(detail + (f"\n        {hint}" if hint else ""))
        sys.exit(1)


if __name__ == "__main__":
    main()
