"""HTTP requests to hosts that somebody else named: never to a private address, unless the operator allows that host.

Every connection goes to the address that was looked up and checked, so that a name cannot change its mind in between;
every redirect is checked like the first request. Behind a proxy it is the proxy that looks names up. A request has a
deadline as a whole, nothing is decompressed on the way, and `abort` ends whatever is going on.
"""

import ipaddress
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin
from urllib.request import getproxies, proxy_bypass

import httpx

from fs.errors import ImageInvalid, StoreUnreachable
from fs.transport import Connections, Transport

_REDIRECTS: Final = 5
_CONNECT_S: Final = 10.0
_READ_S: Final = 60.0
_WHOLE_S: Final = 120.0
_WHOLE_BYTES_S: Final = 32 << 10
"""Bytes a second that a request with a large body makes at least."""

_REDIRECT_CODES: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Access:
    """What an operator says of hosts: those that may have private addresses, and those spoken to without TLS.

    "HOST:PORT" or "HOST" each; setting is the variable that says so.
    """

    private: frozenset[str] = frozenset()
    plain: frozenset[str] = frozenset()
    setting: str = "ISOBOX_REGISTRIES"

    def is_plain(self, host: str) -> bool:
        """Whether a host (HOST:PORT) is spoken to without TLS."""
        return host in self.plain


class Guarded:
    """A client of such hosts."""

    def __init__(self, access: Access, *, read_timeout_s: float = _READ_S) -> None:
        self._allowed = access.private | access.plain
        self._setting = access.setting
        self._timeout = httpx.Timeout(read_timeout_s, connect=_CONNECT_S)
        self._connections = Connections()
        self._direct = self._client(None)
        self._by_proxy: dict[str, httpx.Client] = {}

    def _client(self, proxy: str | None) -> httpx.Client:
        return httpx.Client(timeout=self._timeout, trust_env=False, transport=Transport(self._connections, proxy=proxy))

    def close(self) -> None:
        """Close its connections."""
        self._direct.close()
        for client in list(self._by_proxy.values()):
            client.close()

    def abort(self) -> None:
        """End what goes on in other threads, now, and begin nothing more."""
        self._connections.abort()

    @property
    def aborted(self) -> bool:
        """Whether it was aborted."""
        return self._connections.aborted

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Let all requests that this thread makes inside the block take so long together."""
        return self._connections.deadline(seconds)

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Iterator[bytes] | bytes | None = None,
        size: int = 0,
    ) -> Iterator[httpx.Response]:
        """Send a request, follow where it is redirected to; credentials do not go to another host.

        size: bytes of content, either way, that the request is given time for. StoreUnreachable if nobody answers,
        ImageInvalid for an address that is refused.
        """
        sent = dict(headers or {})
        first = _address_of(url)
        for _ in range(_REDIRECTS + 1):
            target = _address_of(url)
            if (target.host, target.port) != (first.host, first.port):
                sent.pop("Authorization", None)
            if first.scheme == "https" and target.scheme != "https":
                raise ImageInvalid(f"{first.host} redirects to an address without TLS", hint="ask who runs it")
            try:
                with self.send(method, target, sent, content, size=size) as answer:
                    if answer.status_code not in _REDIRECT_CODES or method not in ("GET", "HEAD"):
                        yield answer
                        return
                    url = str(_address_of(answer.headers.get("location", ""), below=url))
            except httpx.HTTPError as error:
                raise StoreUnreachable(f"{target.host} does not answer: {error or type(error).__name__}") from error
        raise ImageInvalid(f"{first.host} redirects in a circle")

    @contextmanager
    def send(
        self,
        method: str,
        target: httpx.URL,
        headers: Mapping[str, str],
        content: Iterator[bytes] | bytes | None,
        *,
        size: int = 0,
    ) -> Iterator[httpx.Response]:
        """One request, wherever it may be redirected to; httpx.HTTPError too. size as in `stream`."""
        if target.scheme not in ("http", "https") or not target.host:
            raise ImageInvalid(f"{str(target)[:200]!r} is no address that can be spoken to")
        # What was compressed on the way could become any number of bytes: nobody here decompresses it.
        headers = {"Accept-Encoding": "identity", **headers}
        with self._connections.deadline(_WHOLE_S + size / _WHOLE_BYTES_S):
            proxy = getproxies().get(target.scheme)
            if proxy is not None and not proxy_bypass(target.host):
                if (client := self._by_proxy.get(proxy)) is None:
                    client = self._by_proxy[proxy] = self._client(proxy)
                with client.stream(method, target, headers=headers, content=content) as answer:
                    yield answer
                return
            url = target.copy_with(host=self._address(target))
            headers = {"Host": target.netloc.decode("ascii"), **headers}
            named = {"sni_hostname": target.host}
            with self._direct.stream(method, url, headers=headers, content=content, extensions=named) as answer:
                yield answer

    def _address(self, target: httpx.URL) -> str:
        port = target.port or (443 if target.scheme == "https" else 80)
        try:
            found = socket.getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # a label that is too long, or empty
            raise ImageInvalid(f"{target.host[:200]} is no name of a host") from error
        except OSError as error:
            raise StoreUnreachable(f"there is no host {target.host}: {error.strerror or error}") from error
        except (ValueError, OverflowError) as error:  # a label or a port that is too long
            raise ImageInvalid(f"{str(target)[:200]!r} is no address that can be spoken to") from error
        allowed = target.host in self._allowed or f"{target.host}:{port}" in self._allowed
        for *_, address in found:
            ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
            if allowed or ip.is_global:
                return str(ip)
        raise ImageInvalid(
            f"{target.host} has a private address",
            hint=f"if it is meant, the operator allows it with {self._setting}={target.host}:{port}",
        )


def _address_of(url: str, *, below: str | None = None) -> httpx.URL:
    """The address that a stranger's text means; ImageInvalid."""
    try:
        return httpx.URL(url if below is None else urljoin(below, url))
    except (httpx.InvalidURL, ValueError) as error:
        raise ImageInvalid(f"{url[:200]!r} is no address that can be spoken to") from error
