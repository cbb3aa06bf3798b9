"""A user's password for a registry, and whom the registry may send it to (docs/adr/0021). Pure.

A registry answers with the place where its tokens are given (`Bearer realm`), and that may be any host. The password
goes to the registry itself, to hosts of its registrable domain (registry-1.docker.io and auth.docker.io) and to the one
that the user named, never without TLS unless the registry is spoken to without.
"""

import base64
import ipaddress
from dataclasses import dataclass
from functools import cache
from typing import Final

import httpx
from publicsuffixlist import PublicSuffixList

_PORTS: Final = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Login:
    """credentials: "USER:PASSWORD"; auth_host: "HOST" or "HOST:PORT", where its tokens are given."""

    credentials: str
    auth_host: str | None = None

    @property
    def header(self) -> str:
        """What Authorization says."""
        return "Basic " + base64.b64encode(self.credentials.encode()).decode()

    def may_go_to(self, url: httpx.URL, registry: httpx.URL) -> bool:
        """Whether the password may be sent to a URL that a registry named."""
        if url.scheme not in _PORTS or not url.host or (url.scheme == "http" and registry.scheme != "http"):
            return False
        if self.auth_host is not None and self.auth_host.lower() in (_place(url), url.netloc.decode("ascii").lower()):
            return True
        return same_origin(url, registry) or (url.scheme == "https" and _port(url) == 443 and _related(url, registry))


def same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    """Whether two URLs have the same scheme, host and port."""
    return (one.scheme, one.host, _port(one)) == (other.scheme, other.host, _port(other))


def _port(url: httpx.URL) -> int:
    return url.port or _PORTS[url.scheme]


def _place(url: httpx.URL) -> str:
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{host}:{_port(url)}"


def _related(one: httpx.URL, other: httpx.URL) -> bool:
    domain = _registrable(one.host)
    return domain is not None and domain == _registrable(other.host)


def _registrable(host: str) -> str | None:
    """The domain that somebody registered; None for addresses, single labels, and suffixes that are open to all."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        found: str | None = _suffixes().privatesuffix(host.lower().rstrip("."))
        return found
    return None


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=False)
