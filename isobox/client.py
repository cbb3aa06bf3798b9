"""The blocking client."""

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from websockets.sync.client import connect

from isobox import calls
from isobox.calls import Policy
from isobox.config import Config
from isobox.errors import ForkIncomplete
from isobox.files import Files
from isobox.gpus import GpuAsk, with_gpu
from isobox.image import Image, built
from isobox.streams import BROKEN, SUBPROTOCOL, Position
from isobox.transport import Transport
from isobox.values import Event, ExecResult, SandboxInfo, Snapshot
from isobox.volume import Volumes, as_asked

_PIECE = 1 << 20


class Process:
    """An exec that runs, or ran. Iterating follows it from its beginning; each iteration is a follower of its own."""

    def __init__(self, transport: Transport, sandbox_id: str, exec_id: str) -> None:
        self.id = exec_id
        self.sandbox_id = sandbox_id
        self._transport = transport

    def __repr__(self) -> str:
        return f"<Process {self.id}>"

    def __iter__(self) -> Iterator[Event]:
        return self.follow()

    def follow(self, after: int = 0) -> Iterator[Event]:
        """Every event behind seq `after`, once and in order, over any number of broken connections."""
        path = f"/v1/sandboxes/{self.sandbox_id}/execs/{self.id}/stream"
        return follow(self._transport.config, path, after)

    def write(self, data: bytes | str) -> int:
        """Send input; returns how many bytes it has been sent in all."""
        return self._stdin(data.encode() if isinstance(data, str) else data, eof=False)

    def close_stdin(self) -> None:
        """End its input."""
        self._stdin(b"", eof=True)

    def _stdin(self, data: bytes, *, eof: bool) -> int:
        # Not repeated when the connection fails: nobody knows then how much of it arrived.
        call = calls.exec_(
            "POST", self.sandbox_id, self.id, "/stdin", content=data, params={"eof": str(eof).lower()}, safe=False
        )
        return int(self._transport.send(call)["accepted_bytes"])

    def signal(self, signal: str | int, *, group: bool = True) -> None:
        """Send a signal to it and, with group, to all that it started."""
        body = {"signal": signal, "group": group}
        self._transport.send(calls.exec_("POST", self.sandbox_id, self.id, "/signal", json=body))

    def kill(self) -> None:
        """End it now."""
        self.signal("SIGKILL")

    def poll(self, *, max_output_bytes: int = 65536) -> ExecResult:
        """As it stands."""
        call = calls.exec_("GET", self.sandbox_id, self.id, params={"max_output_bytes": max_output_bytes})
        return ExecResult.parse(self._transport.send(call))

    def wait(self, *, max_output_bytes: int = 65536) -> ExecResult:
        """Wait for its end."""
        for _ in self.follow():
            pass
        return self.poll(max_output_bytes=max_output_bytes)

    def output(self, stream: str = "stdout", *, offset: int = 0, limit: int = _PIECE) -> bytes:
        """Bytes of stdout or stderr from an offset on."""
        params = {"stream": stream, "from": offset, "limit": limit}
        found: bytes = self._transport.send(calls.exec_("GET", self.sandbox_id, self.id, "/output", params=params))
        return found


def follow(config: Config, path: str, after: int) -> Iterator[Event]:
    """Follow a stream."""
    position = Position(config, path, after)
    while not position.ended:
        try:
            with connect(
                position.url,
                additional_headers=config.headers,
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]  # a plain string to everybody else
                max_size=None,
                compression=None,
                proxy=None,
            ) as socket:
                while not position.ended:
                    if (event := position.take(socket.recv())) is not None:
                        yield event
        except BROKEN as error:
            time.sleep(position.broke(error))


class Context:
    """An interpreter that keeps its state from run to run. As a context manager it is ended at the end."""

    def __init__(self, transport: Transport, sandbox_id: str, context_id: str) -> None:
        """Use `Sandbox.context`."""
        self._transport = transport
        self._sandbox_id = sandbox_id
        self.id = context_id

    def run(self, code: str, **options: Any) -> ExecResult:
        """Run code behind what was asked before; options: timeout_s, max_output_bytes."""
        call = calls.run(self._sandbox_id, f"/contexts/{self.id}", code, options)
        return ExecResult.parse(self._transport.send(call))

    def delete(self) -> None:
        """End it, and what runs in it."""
        self._transport.send(calls.sandbox("DELETE", self._sandbox_id, f"/contexts/{self.id}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()


class Sandbox:
    """A sandbox. As a context manager it is terminated at the end."""

    def __init__(self, transport: Transport, info: SandboxInfo) -> None:
        """Use `create`, `connect` or `list`."""
        self._transport = transport
        self.info = info
        self.files = Files(transport, info.id)

    @property
    def id(self) -> str:
        """Its id."""
        return self.info.id

    def __repr__(self) -> str:
        return f"<Sandbox {self.id} {self.info.state}>"

    @classmethod
    def create(
        cls,
        image: str | Image | None = None,
        *,
        snapshot: str | None = None,
        command: list[str] | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        park_after_s: float | None = None,
        resources: Mapping[str, float] | None = None,
        gpu: GpuAsk | None = None,
        network: Policy | None = None,
        namespaces: bool | None = None,
        volumes: Volumes | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> "Sandbox":
        """Create a sandbox, of an image ("python") or from a snapshot; it runs when this returns. MiB, seconds.

        An `Image` that is not there yet is made first.

        network: what may leave it, a preset's name or a policy (docs/policies.md); by default nothing.
        namespaces: let programs inside create namespaces, in which they have every capability (docs/api.md).
        gpu: GPUs for it alone (docs/gpus.md).
        """
        fields = {
            "image": built(image, url, api_key) if isinstance(image, Image) else image,
            "command": command,
            "name": name,
            "labels": labels,
            "env": env,
            "workdir": workdir,
            "user": user,
            "timeout_s": timeout_s,
            "idle_timeout_s": idle_timeout_s,
            "park_after_s": park_after_s,
            "snapshot": snapshot,
            "resources": with_gpu(resources, gpu),
            "network": network,
            "namespaces": namespaces,
        } | as_asked(volumes)
        return cls._opened(calls.create(fields), url, api_key)

    @classmethod
    def _opened(cls, call: calls.Call, url: str | None, api_key: str | None) -> "Sandbox":
        transport = Transport(Config.find(url, api_key))
        try:
            return cls(transport, SandboxInfo.parse(transport.send(call)))
        except BaseException:
            transport.close()
            raise

    @classmethod
    def connect(cls, id_: str, *, url: str | None = None, api_key: str | None = None) -> "Sandbox":
        """A sandbox that exists; NotFound."""
        return cls._opened(calls.sandbox("GET", id_), url, api_key)

    @classmethod
    def list(
        cls,
        *,
        labels: Mapping[str, str] | None = None,
        state: str | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> Iterator["Sandbox"]:
        """Those that match, the newest first."""
        transport = Transport(Config.find(url, api_key))
        cursor = None
        while True:
            page = transport.send(calls.search(labels or {}, state, cursor))
            for raw in page["sandboxes"]:
                yield cls(transport, SandboxInfo.parse(raw))
            if (cursor := page["next_cursor"]) is None:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.terminate()
        finally:
            self.close()

    def close(self) -> None:
        """Close the connections; the sandbox goes on."""
        self._transport.close()

    def exec(self, *argv: str, shell: str | None = None, **options: Any) -> ExecResult:
        """Run a command, `exec("ls", "-l")` or `exec(shell="ls | wc -l")`, and wait for its end.

        Options are those of the API: env, workdir, user, stdin, timeout_s, max_output_bytes, …
        """
        fields = calls.exec_fields(argv, shell, options, wait=True)
        return ExecResult.parse(self._transport.send(calls.start_exec(self.id, fields)))

    def start(self, *argv: str, shell: str | None = None, stdin: bool | str = True, **options: Any) -> Process:
        """Start a command and do not wait; iterate over the process to follow it."""
        fields = calls.exec_fields(argv, shell, {"stdin": stdin, **options}, wait=False)
        raw = self._transport.send(calls.start_exec(self.id, fields))
        return Process(self._transport, self.id, raw["id"])

    # ---- code

    def run(self, code: str, *, language: str = "python", **options: Any) -> ExecResult:
        """Run code in the default context of a language: its state is kept from run to run.

        Options: timeout_s (past it the code is interrupted), max_output_bytes.
        """
        call = calls.run(self.id, "", code, {"language": language, **options})
        return ExecResult.parse(self._transport.send(call))

    def context(self, language: str = "python", **options: Any) -> "Context":
        """A context of its own; options: workdir, env, user."""
        fields = {"language": language, **options}
        raw = self._transport.send(calls.sandbox("POST", self.id, "/contexts", json=fields))
        return Context(self._transport, self.id, raw["id"])

    # ---- copies

    def fork(self, count: int = 1, **options: Any) -> "Sequence[Sandbox]":
        """Children that go on beside this sandbox; options: labels, timeout_s. ForkIncomplete if any fails."""
        call = calls.sandbox("POST", self.id, "/fork", json={"count": count, **options}, read_timeout_s=600)
        raw = self._transport.send(call)
        children = [Sandbox(Transport(self._transport.config), SandboxInfo.parse(each)) for each in raw["sandboxes"]]
        if raw["errors"]:
            raise ForkIncomplete(children, raw["errors"])
        return children

    def snapshot(
        self,
        name: str | None = None,
        *,
        kind: Literal["memory", "filesystem"] = "memory",
        ttl_s: float | None = None,
        template: bool = False,
    ) -> Snapshot:
        """Keep a copy of it as it stands; `create(snapshot=…)` starts from that, at once from a template.

        With `kind="filesystem"` its files alone: smaller, and good for any machine and runsc.
        """
        fields = calls.without_none({"name": name, "kind": kind, "ttl_s": ttl_s, "template": template or None})
        call = calls.sandbox("POST", self.id, "/snapshots", json=fields, read_timeout_s=600)
        return Snapshot.parse(self._transport.send(call))

    # ---- network

    def network(self) -> dict[str, Any]:
        """What may leave it: `asked`, `policy`, `generation`."""
        found: dict[str, Any] = self._transport.send(calls.sandbox("GET", self.id, "/network"))
        return found

    def set_network(self, policy: Policy) -> dict[str, Any]:
        """Another policy, a preset's name or rules; when this returns nothing that it refuses gets through."""
        call = calls.sandbox("PUT", self.id, "/network", json=policy)
        found: dict[str, Any] = self._transport.send(call)
        return found

    def network_log(self, after: int = 0, *, limit: int = 100, wait_s: float = 0.0) -> "Sequence[dict[str, Any]]":
        """Decisions beyond seq `after`; with wait_s it waits so long for the next one."""
        params = {"from": after, "limit": limit, "wait_s": wait_s}
        call = calls.sandbox("GET", self.id, "/network/log", params=params, read_timeout_s=wait_s + 30)
        found: list[dict[str, Any]] = (self._transport.send(call))["records"]
        return found

    # ---- ports

    def ports(self) -> "Sequence[int]":
        """The ports that something inside listens on."""
        raw = self._transport.send(calls.sandbox("GET", self.id, "/ports"))
        return sorted({each["port"] for each in raw["ports"]})

    def wait_for_port(self, port: int, timeout_s: float = 30.0) -> bool:
        """Wait until something listens on the port; whether it does."""
        params = {"timeout_s": timeout_s}
        call = calls.sandbox("GET", self.id, f"/ports/{port}/wait", params=params, read_timeout_s=timeout_s + 30)
        return bool((self._transport.send(call))["listening"])

    def port_url(self, port: int) -> str:
        """Where a program inside that speaks HTTP is reached, with the API's key."""
        return f"{self._transport.config.url}/v1/sandboxes/{self.id}/ports/{port}/"

    def process(self, exec_id: str) -> Process:
        """An exec by its id."""
        return Process(self._transport, self.id, exec_id)

    def execs(self) -> Sequence[ExecResult]:
        """Its latest hundred execs, the newest first, without output."""
        return [ExecResult.parse(raw) for raw in self._transport.send(calls.sandbox("GET", self.id, "/execs"))["execs"]]

    def events(self, after: int = 0) -> Iterator[Event]:
        """Its own events: state changes, warnings, its end."""
        return follow(self._transport.config, f"/v1/sandboxes/{self.id}/events", after)

    def _update(self, call: calls.Call) -> SandboxInfo:
        self.info = SandboxInfo.parse(self._transport.send(call))
        return self.info

    def commit(self, path: str) -> None:
        """Let the volume that lies at path have the files that are there now."""
        self._transport.send(
            calls.sandbox("POST", self.id, "/volumes/commit", json={"path": path}, read_timeout_s=None)
        )

    def reload(self, path: str) -> None:
        """Have the volume's files as they were committed last; changes here that were not committed are lost."""
        self._transport.send(
            calls.sandbox("POST", self.id, "/volumes/reload", json={"path": path}, read_timeout_s=None)
        )

    def refresh(self) -> SandboxInfo:
        """Look again."""
        return self._update(calls.sandbox("GET", self.id))

    def extend(self, timeout_s: float) -> SandboxInfo:
        """Let it live timeout_s seconds from now."""
        return self._update(calls.sandbox("PATCH", self.id, json={"timeout_s": timeout_s}))

    def pause(self) -> SandboxInfo:
        """Copy it to disk and free its memory; its execs go on at the resume."""
        return self._update(calls.sandbox("POST", self.id, "/pause"))

    def resume(self) -> SandboxInfo:
        """Let it go on."""
        return self._update(calls.sandbox("POST", self.id, "/resume"))

    def wait(self, timeout_s: float = 60.0) -> SandboxInfo:
        """Wait for its end, at most timeout_s seconds."""
        params = {"timeout_s": timeout_s}
        return self._update(calls.sandbox("GET", self.id, "/wait", params=params, read_timeout_s=timeout_s + 30))

    def stats(self) -> dict[str, Any]:
        """What it uses now."""
        found: dict[str, Any] = self._transport.send(calls.sandbox("GET", self.id, "/stats"))
        return found

    def terminate(self) -> SandboxInfo:
        """End it; however often."""
        return self._update(calls.sandbox("DELETE", self.id))
