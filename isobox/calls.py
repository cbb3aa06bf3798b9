"""Every request of the API as a value: what the two clients share. No I/O.

A call says how it may be repeated when the connection fails: `safe` ones as they are; a POST under an
Idempotency-Key or an exec_id of its own, so that the server does once what it is asked twice.
"""

import random
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from isobox.errors import ServerError, api_error

PATIENCE_S: Final = 30.0
"""So long a client tries to reach a server that went away: an upgrade is a restart that nobody notices."""

_ALPHABET: Final = string.ascii_lowercase + "234567"


Edit = tuple[str, str] | tuple[str, str, int]
"""Text and what takes its place; it has to stand there exactly once, or as often as is said."""

Policy = str | Mapping[str, Any]
"""What may leave a sandbox: a preset's name, or rules."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request; read_timeout_s None waits as long as it takes."""

    method: str
    path: str
    json: Mapping[str, Any] | str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    content: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    safe: bool = True
    read_timeout_s: float | None = 60.0


def pauses() -> "list[float]":
    """How long to wait before each further try; about PATIENCE_S seconds in all, never in step with others."""
    waits, total, step = [], 0.0, 0.05
    while total < PATIENCE_S:
        wait = step * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        waits.append(wait)
        total += wait
        step = min(step * 2, 2.0)
    return waits


def new_exec_id() -> str:
    """An exec id of the client's choice makes a repeated exec safe."""
    return "exe" + "".join(secrets.choice(_ALPHABET) for _ in range(26))


def _once() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(16)}


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What was given."""
    return {name: value for name, value in fields.items() if value is not None}


def raise_for(status: int, body: Any) -> None:
    """The error that an answer stands for."""
    if status >= 400:
        raise api_error(status, body if isinstance(body, dict) else {})
    if status >= 300:
        raise ServerError({"status": status, "detail": f"unexpected answer {status}"})


def create(fields: Mapping[str, Any]) -> Call:
    """A new sandbox; the first use of an image builds it, which takes a minute or two."""
    return Call("POST", "/v1/sandboxes", json=without_none(fields), headers=_once(), read_timeout_s=1800)


def search(labels: Mapping[str, str], state: str | None, cursor: str | None) -> Call:
    """A page of sandboxes."""
    params = without_none({"state": state, "cursor": cursor})
    if labels:
        params["label"] = [f"{name}:{value}" for name, value in labels.items()]
    return Call("GET", "/v1/sandboxes", params=params)


def sandbox(method: str, id_: str, suffix: str = "", **parts: Any) -> Call:
    """A call on one sandbox."""
    if method == "POST" and "headers" not in parts:
        parts["headers"] = _once()
    return Call(method, f"/v1/sandboxes/{id_}{suffix}", **parts)


def exec_fields(argv: Sequence[str], shell: str | None, options: Mapping[str, Any], *, wait: bool) -> dict[str, Any]:
    """The body of an exec."""
    if bool(argv) == (shell is not None):
        raise ValueError("give either a command or shell=…")
    command = {"shell": shell} if shell is not None else {"argv": list(argv)}
    return without_none({**command, "exec_id": new_exec_id(), "wait": wait, **options})


def run(id_: str, suffix: str, code: str, options: Mapping[str, Any]) -> Call:
    """Run code in a context (suffix names which); its exec_id makes it repeatable."""
    fields = without_none({"code": code, "exec_id": new_exec_id(), **options})
    return Call("POST", f"/v1/sandboxes/{id_}{suffix}/run", json=fields, read_timeout_s=None)


def secret(method: str, name: str = "", **parts: Any) -> Call:
    """A call on secrets."""
    return Call(method, f"/v1/secrets{f'/{name}' if name else ''}", **parts)


def snapshots(method: str, suffix: str = "", **parts: Any) -> Call:
    """A call on snapshots."""
    return Call(method, f"/v1/snapshots{suffix}", **parts)


def start_exec(id_: str, fields: Mapping[str, Any]) -> Call:
    """Run something. Its exec_id makes it repeatable; with wait it answers at the end."""
    return Call("POST", f"/v1/sandboxes/{id_}/exec", json=fields, read_timeout_s=None if fields["wait"] else 60.0)


def exec_(method: str, id_: str, exec_id: str, suffix: str = "", **parts: Any) -> Call:
    """A call on one exec."""
    if method == "POST" and "headers" not in parts and "content" not in parts:
        parts["headers"] = _once()
    return Call(method, f"/v1/sandboxes/{id_}/execs/{exec_id}{suffix}", **parts)


def files(method: str, id_: str, suffix: str = "", **parts: Any) -> Call:
    """A call on files."""
    if method == "POST":
        parts["headers"] = _once()
    return Call(method, f"/v1/sandboxes/{id_}/files{suffix}", **parts)


def edit(path: str, edits: Sequence[Edit]) -> dict[str, Any]:
    """The body of an edit."""
    changes = [dict(zip(("old", "new", "count"), each, strict=False)) for each in edits]
    return {"path": path, "edits": changes}


def watch_url(base: str, id_: str, path: str, *, recursive: bool) -> str:
    """Where to listen for changes."""
    query = urlencode({"path": path, "recursive": str(recursive).lower()})
    return f"ws{base.removeprefix('http')}/v1/sandboxes/{id_}/files/watch?{query}"


def images(method: str, suffix: str = "", **parts: Any) -> Call:
    """A call on images."""
    if method == "POST":
        parts["headers"] = _once()
    return Call(method, f"/v1/images{suffix}", **parts)


def system(method: str, path: str, **parts: Any) -> Call:
    """A call on what concerns the server as a whole."""
    return Call(method, path, **parts)


def volumes(method: str, suffix: str = "", **parts: Any) -> Call:
    """A call on volumes."""
    if method == "POST":
        parts["headers"] = _once()
    return Call(method, f"/v1/volumes{suffix}", **parts)
