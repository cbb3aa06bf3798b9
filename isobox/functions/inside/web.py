"""Web endpoints, inside: the program that listens is begun, and awaited. Copied there as `isobox_inside.web`."""

from __future__ import annotations

import socket
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_PAUSE_S = 0.01
_UVICORN_S = 60.0


def serve(mark: tuple[Any, ...], target: Callable[..., Any]) -> None:
    """Begin what a function marked as a web endpoint serves; returns once it listens. TimeoutError, RuntimeError."""
    kind, port, *rest = mark
    if kind == "server":
        target()
        _await(port, rest[0], lambda: True)
        return
    app = target() if kind == "asgi" else _endpoint(target, *rest)
    if not callable(app):
        raise TypeError(f"an asgi_app function returns an ASGI application, not a {type(app).__name__}")
    server = _uvicorn(app, port)
    thread = threading.Thread(target=server.run, name="uvicorn", daemon=True)
    thread.start()
    _await(port, _UVICORN_S, thread.is_alive)


def _await(port: int, timeout_s: float, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError as error:
            if not alive():
                raise RuntimeError("the application did not start; what it printed says why") from error
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing listens on port {port} after {timeout_s:g} s") from error
        time.sleep(_PAUSE_S)


def _uvicorn(app: Any, port: int) -> Any:
    try:
        import uvicorn
    except ImportError as error:
        raise RuntimeError("the image has no uvicorn: image.pip_install('uvicorn')") from error
    return uvicorn.Server(uvicorn.Config(Prefixed(app), host="127.0.0.1", port=port, log_level="warning"))


def _endpoint(target: Callable[..., Any], method: str, docs: bool) -> Any:
    try:
        import fastapi
    except ImportError as error:
        raise RuntimeError("the image has no fastapi: image.pip_install('fastapi', 'uvicorn')") from error
    pages: dict[str, Any] = {} if docs else {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = fastapi.FastAPI(title=target.__name__, **pages)
    app.add_api_route("/", target, methods=[method])
    return app


class Prefixed:
    """An ASGI application that knows below which path of the server's it lies."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve."""
        for name, value in scope.get("headers", ()):
            if name == b"x-forwarded-prefix":
                scope = scope | {"root_path": value.decode("latin-1")}
        await self._app(scope, receive, send)
