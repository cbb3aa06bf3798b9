"""The server's process: lock, listen, serve, drain."""

import asyncio
import logging
import os
import resource
import socket
import sys
from pathlib import Path

import structlog
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common import logs
from common.errors import IsoboxError
from sandbox_api.app import lock_state, make_app
from sandbox_api.in_flight import InFlight
from sandbox_api.listener.http import protocol
from sandbox_api.listener.websocket import WebsocketProtocol
from sandbox_api.settings import Settings
from sandbox_api.store.store import Store

_DRAIN_S = 10
_FINISH_S = 1.0
"""What a request is given to end by itself when the server stops; those that only wait are told then."""

_BACKLOG = 1024
_OOM_SCORE = -500
_SWITCH_S = 0.0005
"""How long the loop waits at most for a thread of ours that computes; Python's own 5 ms are more than a GET takes."""
_log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """uvicorn, saying in one line when it is ready, and answering who waits when it stops."""

    def __init__(self, config: uvicorn.Config, in_flight: InFlight) -> None:
        super().__init__(config)
        self._in_flight = in_flight

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            print(f"isobox ready on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        interrupting = asyncio.get_running_loop().call_later(_FINISH_S, self._in_flight.interrupt)
        try:
            await super().shutdown(sockets)
        finally:
            interrupting.cancel()


class _Start:
    """The application, whose errors of ours at the start are kept, to be told in a line instead of a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failure: IsoboxError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI's lifespan."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def telling(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and isinstance(error := sys.exception(), IsoboxError):
                self.failure, message = error, {**message, "message": ""}
            await send(message)

        await self._app(scope, receive, telling)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise IsoboxError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}",
            hint="choose another address with --listen HOST:PORT",
        ) from error
    listener.listen(_BACKLOG)
    listener.set_inheritable(False)
    return listener


def raise_file_limit() -> None:
    """Let this process open as many files as it may: a sandbox takes a dozen, and systemd's soft limit is 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def come_last_to_the_oom_killer() -> None:
    """Lower this process' oom_score_adj, and that of its helpers: guests go first. What an operator set stays."""
    score = Path("/proc/self/oom_score_adj")
    if int(score.read_text()) != 0:
        return
    try:
        score.write_text(str(_OOM_SCORE))
    except PermissionError as error:  # in a container: guests are made to go first all the same
        _log.info("the server cannot be protected from the OOM killer", error=str(error))


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """False for what uvicorn says of a websocket that is refused with a document, and of an answer that breaks off.

    The first was answered, the second is told by the gate, with its reason.
    """
    return "returned without completing" not in record.getMessage()


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what runs goes on for the next server. IsoboxError if it cannot."""
    logs.configure()
    logging.getLogger("uvicorn.error").addFilter(_is_worth_telling)
    raise_file_limit()
    come_last_to_the_oom_killer()
    sys.setswitchinterval(_SWITCH_S)
    if os.geteuid() != 0:
        raise IsoboxError("isobox serve needs root: it makes control groups and mounts", hint="run it with sudo")
    lock = lock_state(settings.state)
    store = Store(settings.state / "isobox.db")
    listener = _listen(settings)
    in_flight = InFlight()
    app = _Start(make_app(settings, store, in_flight))
    try:
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=protocol(
                # Half of the files that may be open: the other half is the sandboxes'.
                most=min(settings.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2),
                per_address=settings.connections_per_address,
                head_timeout_s=settings.head_timeout_s,
            ),  # type: ignore[arg-type]  # uvicorn calls it, and asks for no class
            ws=WebsocketProtocol,
            ws_max_size=2 << 20,
            ws_per_message_deflate=False,
            ws_ping_interval=20,
            ws_ping_timeout=120,
            server_header=False,
            access_log=False,
            log_level="warning",
            log_config=None,  # our own, see common/logs.py
            timeout_graceful_shutdown=_DRAIN_S,
            lifespan="on",
        )
        _Server(config, in_flight).run(sockets=[listener])
    except SystemExit:
        if app.failure is not None:
            raise app.failure from None
        raise
    finally:
        listener.close()
        store.close()
        os.close(lock)
