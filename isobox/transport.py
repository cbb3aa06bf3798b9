"""Sends calls: repeats what may be repeated while the server is away, turns refusals into errors."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx

from isobox.calls import Call, pauses, raise_for
from isobox.config import Config
from isobox.errors import ConnectionFailed

_CONNECT_TIMEOUT_S = 10.0
_UNAVAILABLE = 503
_BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


def _arguments(call: Call) -> dict[str, Any]:
    return {
        "method": call.method,
        "url": call.path,
        "params": call.params,
        "json": call.json,
        "content": call.content,
        "headers": dict(call.headers),
        "timeout": httpx.Timeout(call.read_timeout_s, connect=_CONNECT_TIMEOUT_S),
    }


def _failed(config: Config, error: httpx.TransportError) -> ConnectionFailed:
    hint = "start it with `isobox serve`, or set ISOBOX_URL"
    if isinstance(error, httpx.UnsupportedProtocol):
        hint = "ISOBOX_URL is written http://HOST:PORT"
    elif "WRONG_VERSION_NUMBER" in str(error):
        hint = "nothing there speaks TLS; the server itself speaks http://, and https:// takes a proxy before it"
    return ConnectionFailed(f"cannot reach the isobox server at {config.url}: {error or type(error).__name__} ({hint})")


def _may_repeat(call: Call, error: httpx.TransportError, tried: int) -> bool:
    if isinstance(error, httpx.ConnectError) and tried == 0:
        return False  # nobody was ever there: say so at once
    return call.safe and isinstance(error, _BROKEN)


def _restarts(call: Call, response: httpx.Response, body: Any) -> bool:
    """Whether the server was stopped while the call waited: the next one answers."""
    return (
        call.safe
        and response.status_code == _UNAVAILABLE
        and isinstance(body, dict)
        and body.get("code") == "restarting"
    )


def _body(response: httpx.Response) -> Any:
    if response.content and "json" in response.headers.get("content-type", ""):
        return response.json()
    return response.content


class Transport:
    """Blocking."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._http = httpx.Client(base_url=config.url, headers=config.headers)
        self._reached = False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call) -> Any:
        """The answer's JSON, or its bytes; ApiError, ConnectionFailed."""
        waits = iter(pauses())
        while True:
            try:
                response = self._http.request(**_arguments(call))
            except httpx.TransportError as error:
                wait = next(waits, None) if _may_repeat(call, error, self._reached) else None
                if wait is None:
                    raise _failed(self.config, error) from error
                time.sleep(wait)
                continue
            self._reached = True
            body = _body(response)
            if _restarts(call, response, body) and (wait := next(waits, None)) is not None:
                time.sleep(wait)
                continue
            raise_for(response.status_code, body)
            return body

    @contextmanager
    def stream(self, call: Call) -> Iterator[Iterator[bytes]]:
        """The answer's bytes as they come."""
        try:
            with self._http.stream(**_arguments(call)) as response:
                if response.status_code >= 400:
                    response.read()
                    raise_for(response.status_code, _body(response))
                yield response.iter_bytes(1 << 18)
        except httpx.TransportError as error:
            raise _failed(self.config, error) from error


class AsyncTransport:
    """The same for asyncio."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._http = httpx.AsyncClient(base_url=config.url, headers=config.headers)
        self._reached = False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call) -> Any:
        """The answer's JSON, or its bytes; ApiError, ConnectionFailed."""
        waits = iter(pauses())
        while True:
            try:
                response = await self._http.request(**_arguments(call))
            except httpx.TransportError as error:
                wait = next(waits, None) if _may_repeat(call, error, self._reached) else None
                if wait is None:
                    raise _failed(self.config, error) from error
                await asyncio.sleep(wait)
                continue
            self._reached = True
            body = _body(response)
            if _restarts(call, response, body) and (wait := next(waits, None)) is not None:
                await asyncio.sleep(wait)
                continue
            raise_for(response.status_code, body)
            return body

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        """The answer's bytes as they come."""
        try:
            async with self._http.stream(**_arguments(call)) as response:
                if response.status_code >= 400:
                    await response.aread()
                    raise_for(response.status_code, _body(response))
                yield response.aiter_bytes(1 << 18)
        except httpx.TransportError as error:
            raise _failed(self.config, error) from error
