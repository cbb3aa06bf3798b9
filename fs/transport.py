"""An httpx transport whose requests have a deadline as a whole, and whose connections can be ended from any thread.

httpx bounds each read, so that a server which sends a byte now and then is listened to forever, and a thread that waits
in a read cannot be told to stop. Here every wait on a connection ends at the deadline of the thread's request, and
`Connections.abort` ends them all at once.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import httpcore
import httpx

_CONNECTIONS_MAX: Final = 100
_KEPT_ALIVE: Final = 20
_KEPT_ALIVE_S: Final = 5.0
_PIECES_MAX: Final = 2000
_PIECE_MEAN: Final = 128
"""Bytes that a piece of a body has on average, beyond the first ones: each takes work, however small it is."""


class Connections(httpcore.NetworkBackend):
    """Makes the connections of one client, and knows those that are open. Used from many threads."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()
        self._lock = threading.Lock()
        self._open: set[_Stream] = set()
        self._local = threading.local()
        self.aborted = False
        """Whether `abort` was called: nothing is connected to any more."""

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Let the requests that this thread makes inside the block take so long together."""
        before: float | None = getattr(self._local, "deadline", None)
        until = time.monotonic() + seconds
        self._local.deadline = until if before is None else min(before, until)
        try:
            yield
        finally:
            self._local.deadline = before

    def left(self, timeout: float | None, late: type[Exception]) -> float | None:
        """Seconds that a wait may take; raises `late` once the deadline has passed or everything was aborted."""
        if self.aborted:
            raise late("it was aborted")
        deadline: float | None = getattr(self._local, "deadline", None)
        if deadline is None:
            return timeout
        left = deadline - time.monotonic()
        if left <= 0:
            raise late("it takes too long as a whole")
        return left if timeout is None else min(timeout, left)

    def abort(self) -> None:
        """End every connection, and whatever waits in one, and make no others."""
        with self._lock:
            self.aborted = True
            streams = list(self._open)
        for stream in streams:
            stream.abort()

    def adopt(self, inner: httpcore.NetworkStream) -> "_Stream":
        """Know of a connection until it is closed."""
        stream = _Stream(inner, self)
        with self._lock:
            self._open.add(stream)
            aborted = self.aborted
        if aborted:
            stream.abort()
        return stream

    def forget(self, stream: "_Stream") -> None:
        """Know no more of a connection that was closed or became another one."""
        with self._lock:
            self._open.discard(stream)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """See httpcore."""
        left = self.left(timeout, httpcore.ConnectTimeout)
        return self.adopt(self._backend.connect_tcp(host, port, left, local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    """A connection; waits no longer than the request of its thread may."""

    def __init__(self, inner: httpcore.NetworkStream, owner: Connections) -> None:
        self._inner = inner
        self._owner = owner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._owner.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._owner.left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._owner.forget(self)
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._owner.left(timeout, httpcore.ConnectTimeout)
        secured = self._inner.start_tls(ssl_context, server_hostname, left)
        self._owner.forget(self)
        return self._owner.adopt(secured)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def abort(self) -> None:
        """End it from another thread: whoever waits in a read or write of it gets an error now."""
        with contextlib.suppress(OSError):
            # Not the method of SSLSocket, which changes the object that another thread is using.
            socket.socket.shutdown(self._inner.get_extra_info("socket"), socket.SHUT_RDWR)


class Transport(httpx.BaseTransport):
    """What httpx sends by. proxy: the URL of an HTTP proxy, whose operator is trusted to look names up."""

    def __init__(self, connections: Connections, *, proxy: str | None = None) -> None:
        options: dict[str, Any] = {
            "ssl_context": _trust(proxy is not None),
            "max_connections": _CONNECTIONS_MAX,
            "max_keepalive_connections": _KEPT_ALIVE,
            "keepalive_expiry": _KEPT_ALIVE_S,
            "network_backend": connections,
        }
        self._pool: httpcore.ConnectionPool
        if proxy is None:
            self._pool = httpcore.ConnectionPool(**options)
        else:
            way = httpx.Proxy(proxy)
            kind = httpcore.SOCKSProxy if way.url.scheme.startswith("socks") else httpcore.HTTPProxy
            self._pool = kind(proxy_url=_url(way.url), proxy_auth=way.raw_auth, **options)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx."""
        assert isinstance(request.stream, httpx.SyncByteStream)
        sent = httpcore.Request(
            method=request.method,
            url=_url(request.url),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx():
            answer = self._pool.handle_request(sent)
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions
        )

    def close(self) -> None:
        """Close its connections."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        pieces = size = 0
        with _as_httpx():
            for piece in self._inner:
                pieces, size = pieces + 1, size + len(piece)
                if pieces > _PIECES_MAX + size // _PIECE_MEAN:
                    raise httpx.RemoteProtocolError("it answers in crumbs")
                yield piece

    def close(self) -> None:
        self._inner.close()


def _url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


@cache
def _trust(trust_env: bool) -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=trust_env)


@contextmanager
def _as_httpx() -> Iterator[None]:
    """Errors of httpcore as those of httpx, which have the same names."""
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
        raise getattr(httpx, type(error).__name__, httpx.TransportError)(str(error)) from error
    except (httpcore.UnsupportedProtocol, httpcore.ConnectionNotAvailable) as error:
        raise httpx.TransportError(str(error)) from error
