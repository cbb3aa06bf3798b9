"""The server's side of the gateway: starts it, keeps it running, tells it what to guard, hears its records.

One gateway a state directory. A server that comes after a killed one goes on with the gateway it finds, if that was
made of the same sources. While there is none nothing gets out: the kernel's rules lead nowhere.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from common import processes
from common.owners import IDENTITY
from common.unixsocket import address
from netpolicy import conntrack
from netpolicy.errors import GatewayUnavailable
from netpolicy.gateway import nflog
from netpolicy.gateway.sources import sources
from netpolicy.gateway.wire import PACKET_MAX, Guarded, encode_guarded, packet
from netpolicy.plan import DNS_PORT, PROXY_PORT, Place

_log = structlog.get_logger(__name__)
_CALL_TIMEOUT_S: Final = 10.0
_HEARD_WITHIN_S: Final = 1.0
_LEAVE_WITHIN_S: Final = 5.0
_START_TIMEOUT_S: Final = 20.0
_BACK_OFF_MAX_S: Final = 5.0
_BACKLOG: Final = 4096
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_QUESTIONS_BYTES: Final = 8 << 20
"""The resolver's queue: room for what the kernel's rules let through of many floods at once."""
_START: Final = "import sys; sys.path.insert(0, {root!r}); from netpolicy.gateway.process import main; main()"

OnRecords = Callable[[list[dict[str, Any]]], Awaitable[None]]
"""Writes records down; they are acknowledged when it returns."""


class Supervisor:
    """See the module. Made by `supervised`; `run` is a task of whoever asked."""

    def __init__(
        self, state: Path, place: Place, resolvers: Sequence[tuple[str, int]], on_records: OnRecords, trust: Path | None
    ) -> None:
        self._path = state / "gateway.sock"
        self._log_path = state / "gateway.log"
        self._place = place
        self._resolvers = resolvers
        self._on_records = on_records
        self._trust = trust
        self._identity = state / IDENTITY
        self._failure: str | None = None
        self._guarded: dict[str, Guarded] = {}
        self._connection: socket.socket | None = None
        self._calls = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._up = asyncio.Event()
        self._sending = asyncio.Lock()
        self._heard = 0
        self._lost = 0
        self._news = asyncio.Event()
        self.starts = 0
        """How often a gateway had to be started."""

    @property
    def problem(self) -> str | None:
        """Why there is no gateway; None where there is one, or one is on its way."""
        return None if self._up.is_set() else self._failure

    # ---- what is asked of it

    def know(self, each: Guarded) -> None:
        """Before `run`: a sandbox that an earlier server's gateway guards already, or should."""
        self._guarded[each.sandbox] = each

    async def guard(self, each: Guarded) -> None:
        """Guard a sandbox by these rules from now on; what they no longer allow is cut off when this returns."""
        self._guarded[each.sandbox] = each
        await self._call("put", **encode_guarded(each))

    async def forget(self, sandbox: str) -> None:
        """A sandbox has ended: its connections are cut off."""
        if self._guarded.pop(sandbox, None) is not None:
            with contextlib.suppress(GatewayUnavailable):  # it will not be told of it again
                answer = await self._call("drop", sandbox=sandbox)
                await self._until_heard(int(answer["seq"]))

    async def _until_heard(self, seq: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEARD_WITHIN_S):
                while self._heard < seq and self._up.is_set():
                    await self._news.wait()

    async def _call(self, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                await self._up.wait()
                return await self._exchange(do, arguments)
        except (OSError, TimeoutError) as error:
            raise GatewayUnavailable(
                f"the gateway did not answer ({do})", hint="nothing leaves the sandbox meanwhile; try again"
            ) from error

    async def _exchange(self, do: str, arguments: dict[str, Any]) -> dict[str, Any]:
        connection = self._connection
        if connection is None:
            raise ConnectionResetError("no gateway")
        self._calls += 1
        number, answer = self._calls, asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self._send(connection, {"call": number, "do": do, **arguments})
            found: dict[str, Any] = await answer
        finally:
            self._waiting.pop(number, None)
        if "error" in found:
            raise GatewayUnavailable(str(found["error"]))
        return found

    # ---- keeping it up

    async def run(self) -> None:
        """Keep a gateway running and listen to it, for ever."""
        pause = 0.1
        while True:
            try:
                await self._connect()
                reading = asyncio.get_running_loop().time()
                await self._read()
            except (OSError, TimeoutError, subprocess.SubprocessError, GatewayUnavailable) as error:
                self._failure = f"the gateway is down: {error}"
                _log.warning("the gateway is down", error=str(error))
            else:
                _log.warning("the gateway has gone; another one is started")
                pause = 0.1 if asyncio.get_running_loop().time() - reading > _BACK_OFF_MAX_S else pause
            self._lose()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _BACK_OFF_MAX_S)

    async def _connect(self) -> None:
        async with asyncio.timeout(_START_TIMEOUT_S):
            if not await self._try():
                starting = asyncio.get_running_loop().run_in_executor(None, self._start)
                try:
                    await asyncio.shield(starting)
                except asyncio.CancelledError:
                    await starting  # `leave` has to find it
                    raise
                if not await self._try():
                    raise GatewayUnavailable("the gateway did not start", hint=f"see {self._log_path}")

    async def _try(self) -> bool:
        """Connect to the gateway that is there, if it is one of ours, and tell it all that it has to know."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, PACKET_MAX)
        try:
            with address(str(self._path)) as short:
                connection.connect(short)
            await self._send(connection, {"call": 0, "do": "hello"})
            hello = await _answer(connection, self._hear)
            if hello.get("sources") != sources():
                connection.close()
                await self._stop()
                raise ConnectionRefusedError("it was of another version")
            for each in list(self._guarded.values()):
                await self._send(connection, {"call": 0, "do": "put", **encode_guarded(each)})
                await _answer(connection, self._hear)
            await self._send(connection, {"call": 0, "do": "keep", "sandboxes": list(self._guarded)})
            await _answer(connection, self._hear)
        except (FileNotFoundError, ConnectionError, EOFError):
            connection.close()
            return False
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._failure = None
        self._up.set()
        return True

    async def _read(self) -> None:
        assert self._connection is not None
        while raw := await asyncio.get_running_loop().sock_recv(self._connection, PACKET_MAX):
            message = json.loads(raw)
            if "answer" in message:
                waiting = self._waiting.get(message["answer"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            else:
                await self._hear(self._connection, message)

    async def _hear(self, connection: socket.socket, message: dict[str, Any]) -> None:
        records = message["records"]
        await self._on_records(records)
        if message["lost"] > self._lost:
            _log.error("audit records found no room", lost=message["lost"])
        self._lost = message["lost"]
        self._heard = records[-1]["seq"]
        self._news.set()
        self._news = asyncio.Event()
        await self._send(connection, {"acknowledged": records[-1]["seq"]})

    async def _send(self, connection: socket.socket, message: dict[str, Any]) -> None:
        async with self._sending:  # a loop waits for one sender of a socket only
            await asyncio.get_running_loop().sock_sendall(connection, packet(message))

    def _lose(self) -> None:
        self._up.clear()
        self._heard = 0
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError("the gateway went away"))

    def _start(self) -> None:
        self.starts += 1
        if self._place.owner:  # one that answers no more (its socket was removed) has our addresses still
            processes.end(processes.GATEWAY, self._place.owner)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            with address(str(self._path)) as short:
                listener.bind(short)
            listener.listen(4)
            gateway = str(self._place.gateway)
            dns = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            _bind(dns, gateway, DNS_PORT)
            dns.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUESTIONS_BYTES)
            dns.setblocking(False)
            sockets = {"server": listener, "dns": dns}
            for name, port in (("dns_streams", DNS_PORT), ("proxy", PROXY_PORT)):
                each = sockets[name] = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                _bind(each, gateway, port)
                each.listen(_BACKLOG)
                each.setblocking(False)
            sockets["kernel"] = stack.enter_context(nflog.subscribe(self._place.log_group))
            sockets["ends"] = stack.enter_context(conntrack.subscribe())
            fds = {name: each.fileno() for name, each in sockets.items()}
            settings: dict[str, Any] = {
                "sockets": fds,
                "resolvers": list(self._resolvers),
                "uid": self._place.gateway_uid,
            }
            with contextlib.suppress(FileNotFoundError):
                identity = stack.enter_context(open(self._identity, "rb"))
                settings |= {"owner": self._place.owner, "state": str(self._identity.parent)}
                settings |= {"identity": identity.fileno()}
            passed = [*fds.values(), *([settings["identity"]] if "identity" in settings else [])]
            settings |= {"trust": str(self._trust)} if self._trust else {}
            log = stack.enter_context(open(self._log_path, "ab"))
            subprocess.run(
                [sys.executable, "-I", "-c", _START.format(root=str(Path(__file__).parents[1])), json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                pass_fds=passed,
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
                timeout=_START_TIMEOUT_S,
                check=True,
            )

    async def leave(self) -> None:
        """Let go of it: it goes on as long as it guards something."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if not self._guarded and self._path.exists():
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_LEAVE_WITHIN_S):
                    await self._stop()
            self._path.unlink(missing_ok=True)

    async def _stop(self) -> None:
        """End the gateway that is there, and wait until it has let go of its addresses."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as connection:
            with address(str(self._path)) as short:
                connection.connect(short)
            await loop.sock_sendall(connection, packet({"call": 0, "do": "stop"}))
            while await loop.sock_recv(connection, PACKET_MAX):
                pass


@asynccontextmanager
async def supervised(
    state: Path,
    place: Place,
    *,
    resolvers: Sequence[tuple[str, int]],
    on_records: OnRecords,
    trust: Path | None,
) -> AsyncIterator[Supervisor]:
    """A supervisor until the end of the block; trust: certificates to verify hosts by (None: the system's)."""
    supervisor = Supervisor(state, place, resolvers, on_records, trust)
    try:
        yield supervisor
    finally:
        await supervisor.leave()


def _bind(listener: socket.socket, host: str, port: int) -> None:
    """Bind; an address that is taken is told with who has it."""
    try:
        listener.bind((host, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        kind = "udp" if listener.type == socket.SOCK_DGRAM else "tcp"
        raise GatewayUnavailable(
            f"{kind} {host}:{port} is taken by {processes.holder(kind, host, port) or 'somebody unknown'}",
            hint="end it, or run `isobox doctor --sweep` if a dead server left it",
        ) from error


async def _answer(connection: socket.socket, hear: Callable[..., Any]) -> dict[str, Any]:
    while raw := await asyncio.get_running_loop().sock_recv(connection, PACKET_MAX):
        message: dict[str, Any] = json.loads(raw)
        if "answer" in message:
            return message
        await hear(connection, message)
    raise EOFError
