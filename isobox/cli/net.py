"""`isobox net` and `isobox secret`: what may leave a sandbox, what did, and with which credentials."""

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from isobox import Sandbox, calls
from isobox.cli.say import complain, print_lines, say
from isobox.config import Config
from isobox.transport import Transport

net_app = typer.Typer(no_args_is_help=True, help="What may leave a sandbox, and what did.")
secret_app = typer.Typer(no_args_is_help=True, help="Credentials that policies put into requests.")
SandboxArgument = Annotated[str, typer.Argument(help="The sandbox's id.")]
Destinations = Annotated[
    list[str],
    typer.Argument(help="HOST or *.HOST (80 and 443), ADDRESS or NETWORK (every port); or each with :PORT[,PORT…]."),
]
_FOLLOW_S = 20.0
_PORTS = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")


def rule(text: str) -> dict[str, Any]:
    """A rule as the API takes it: "api.example.com:443,8443", "203.0.113.0/24:5432"."""
    if "://" in text:
        raise typer.BadParameter(
            f"{text} is a URL; name its host: {urlsplit(text).netloc.rpartition('@')[2] or 'HOST'}"
        )
    destination, colon, ports = text.rpartition(":") if ":" in text else (text, "", "")
    is_address = destination.replace(".", "").replace("/", "").isdecimal()
    found: dict[str, Any] = {"cidr" if is_address else "host": destination}
    if colon:
        if not _PORTS.fullmatch(ports):
            raise typer.BadParameter(f"{text}: ports are numbers or ranges, for example {destination}:443,8000-8100")
        found["ports"] = [int(each) if each.isdecimal() else each for each in ports.split(",")]
    return found


@net_app.command()
def show(sandbox: SandboxArgument) -> None:
    """Print a sandbox's policy."""
    found = Sandbox.connect(sandbox).network()
    print_lines(json.dumps(found["policy"], indent=2) + "\n")


@net_app.command("set")
def set_(
    sandbox: SandboxArgument,
    policy: Annotated[str, typer.Argument(help="A preset's name (none, open, packages …), or a file with a policy.")],
) -> None:
    """Give a sandbox another policy."""
    path = Path(policy)
    try:
        asked = json.loads(path.read_text()) if path.is_file() else policy
    except ValueError as error:
        raise typer.BadParameter(f"{policy} is no JSON: {error}") from None
    found = Sandbox.connect(sandbox).set_network(asked)
    say(f"policy {found['generation']} is in force")


def _add(sandbox: str, kind: str, destinations: list[str]) -> None:
    found = Sandbox.connect(sandbox)
    asked = found.network()["asked"]
    policy = {"preset": asked} if isinstance(asked, str) else dict(asked or {})
    other = "deny" if kind == "allow" else "allow"
    rules = [rule(each) for each in destinations]
    policy[other] = [each for each in policy.get(other, []) if each not in rules]
    policy[kind] = [*policy.get(kind, []), *(each for each in rules if each not in policy.get(kind, []))]
    say(f"policy {found.set_network(policy)['generation']} is in force")


@net_app.command()
def allow(sandbox: SandboxArgument, destinations: Destinations) -> None:
    """Allow destinations: isobox net allow ID api.example.com '*.example.org:443' 203.0.113.7:5432."""
    _add(sandbox, "allow", destinations)


@net_app.command()
def deny(sandbox: SandboxArgument, destinations: Destinations) -> None:
    """Deny destinations, whatever else allows them."""
    _add(sandbox, "deny", destinations)


@net_app.command()
def log(
    sandbox: SandboxArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as decisions are made.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print what was let through and what was refused."""
    found, after = Sandbox.connect(sandbox), 0
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            records = found.network_log(after, wait_s=_FOLLOW_S if follow else 0.0)
            for each in records:
                after = int(each["seq"])
                say(json.dumps(each) if as_json else line(each))
            if not records and not follow:
                return


def line(record: dict[str, Any]) -> str:
    """A record for people."""
    if record["event"] == "gap":
        return "… (older records are gone)"
    to = record.get("sni") or record.get("host") or record.get("name") or record.get("destination") or "?"
    if record.get("port") is not None:
        to += f":{record['port']}"
    address = record.get("destination")
    words = [record["at"][11:23], "refused" if record["verdict"] == "refuse" else record["event"], to]
    if address and address != to.partition(":")[0]:
        words.append(f"({address})")
    if record["event"] == "closed":
        words.append(f"sent {record.get('tx_bytes', 0)} received {record.get('rx_bytes', 0)} bytes")
        if "duration_s" in record:  # the kernel does not tell how long what it forwarded was open
            words.append(f"in {record['duration_s']} s")
    words.append(f"[{record['rule']}]")
    if record.get("reason"):
        words.append(record["reason"])
    if record["verdict"] == "refuse" and record.get("hint"):
        words.append(f"- {record['hint']}")
    return " ".join(words)


# ---- secrets


def _send(call: calls.Call) -> Any:
    transport = Transport(Config.find(None, None))
    try:
        return transport.send(call)
    finally:
        transport.close()


@secret_app.command("set")
def set_secret(name: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Store a secret, read from stdin (it stands in no command line): isobox secret set openai < key.txt."""
    value = typer.prompt("value", hide_input=True) if sys.stdin.isatty() else sys.stdin.read().strip()
    if not value:
        complain("nothing came on stdin")
        raise typer.Exit(2)
    _send(calls.secret("PUT", name, json={"value": value}))
    say(f"{name} is stored")


@secret_app.command("ls")
def list_secrets() -> None:
    """List secrets; their values are never told."""
    for each in _send(calls.secret("GET"))["secrets"]:
        say(f"{each['name']}  {each['updated_at'][:19].replace('T', ' ')}")


@secret_app.command("rm")
def remove_secret(name: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Delete a secret: no request carries it any more."""
    _send(calls.secret("DELETE", name))
