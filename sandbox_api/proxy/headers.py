"""Which headers pass between a client and a program inside a sandbox, and how they change. No I/O.

What is inside is hostile: it never sees the API's key, and no page of its can act in the API's origin. A document from
a port gets an origin of its own (Content-Security-Policy: sandbox), its cookies are bound to its path, and headers that
would act on the whole origin are left out.
"""

from collections.abc import Iterable
from typing import Final

from sandbox_api.proxy.redirects import refresh, relocated

Headers = list[tuple[bytes, bytes]]

FORWARDED_AUTHORIZATION: Final = b"x-isobox-forward-authorization"
"""Authorization is the API's; this one becomes the program's."""

_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110, 7.6.1: meant for the next hop alone."""

_NOT_IN: Final = frozenset({b"authorization", b"host", b"idempotency-key", FORWARDED_AUTHORIZATION}) | {
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-forwarded-prefix",
}
_WEBSOCKET: Final = frozenset(
    {
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"sec-websocket-accept",
    }
)
_ORIGIN_WIDE: Final = frozenset(
    {
        b"accept-ch",  # a browser keeps these for the origin …
        b"accept-ch-lifetime",
        b"activate-storage-access",
        b"alt-svc",  # … and would speak to a server of the program's choice in the API's place
        b"alternate-protocol",
        b"clear-site-data",
        b"critical-ch",
        b"expect-ct",
        b"expect-staple",
        b"nel",
        b"observe-browsing-topics",
        b"origin-agent-cluster",
        b"public-key-pins",
        b"public-key-pins-report-only",
        b"report-to",
        b"reporting-endpoints",
        b"service-worker-allowed",
        b"set-cookie2",
        b"set-login",
        b"shared-storage-write",
        b"strict-transport-security",
        b"use-as-dictionary",  # of all answers of the origin that its pattern matches
        b"www-authenticate",  # a browser asks for a password in the API's name, and sends it there
        b"authentication-info",
    }
)
"""Headers of an answer that act on the whole origin, which is the API's."""

_ORIGIN_WIDE_PREFIXES: Final = (b"ad-auction-", b"attribution-reporting-", b"sec-", b"secure-session-")
_FOR_SERVERS: Final = (b"x-accel-", b"x-lighttpd-", b"x-litespeed-", b"x-reproxy-", b"x-sendfile")
"""Orders to a web server in front of the API, for example to send a file of its machine."""

_NOT_OUT: Final = _ORIGIN_WIDE | {
    b"content-security-policy-report-only",
    b"date",  # the server's own is there
    b"x-request-id",
}
_BUFFERING: Final = b"x-accel-buffering"
_SANDBOXED: Final = b"sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    return {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }


def request_headers(headers: Headers, *, port: int, prefix: str, scheme: str, client: str) -> Headers:
    """What the program inside is sent."""
    left_out = _HOP | _NOT_IN | _WEBSOCKET | _named_by_connection(headers)
    kept = [(name, value) for name, value in headers if name.lower() not in left_out]
    host = next((value for name, value in headers if name.lower() == b"host"), b"")
    own = [(b"authorization", value) for name, value in headers if name.lower() == FORWARDED_AUTHORIZATION]
    return [
        # Development servers answer to this name alone.
        (b"host", f"localhost:{port}".encode()),
        *kept,
        *own,
        (b"x-forwarded-for", client.encode()),
        (b"x-forwarded-host", host),
        (b"x-forwarded-proto", scheme.encode()),
        (b"x-forwarded-prefix", prefix.encode()),
    ]


def response_headers(headers: Headers, *, port: int, prefix: str, host: bytes = b"", path: bytes = b"/") -> Headers:
    """What the client is sent; host is what it calls the API, path its request's below the prefix.

    What acts on the answer alone passes: CORS, framing and isolation of its document, caching, Link, Refresh. A page
    could do as much by script, in the origin of its own that it is given.
    """
    left_out = _HOP | _NOT_OUT | _named_by_connection(headers)
    root = prefix.encode()
    passed: Headers = []
    policies = [_SANDBOXED]
    for name, value in headers:
        lower = name.lower()
        if lower in left_out or (lower.startswith((*_ORIGIN_WIDE_PREFIXES, *_FOR_SERVERS)) and lower != _BUFFERING):
            continue
        if lower == b"content-security-policy":
            policies.append(value)
        elif lower == b"set-cookie":
            passed.append((lower, _bound(value, root)))
        elif lower == b"location":
            passed.append((lower, relocated(value, port=port, prefix=root, host=host, path=path)))
        elif lower == b"refresh":
            passed.append((lower, refresh(value, port=port, prefix=root, host=host, path=path)))
        else:
            passed.append((lower, value))
    passed += [(b"content-security-policy", policy) for policy in policies]
    passed.append((b"x-content-type-options", b"nosniff"))
    return passed


def _bound(cookie: bytes, prefix: bytes) -> bytes:
    """A cookie that goes to this port alone."""
    first, *attributes = [part.strip() for part in cookie.split(b";")]
    named = [(attribute.partition(b"=")[0].strip().lower(), attribute) for attribute in attributes]
    path = next((attribute.partition(b"=")[2].strip() for name, attribute in named if name == b"path"), b"/")
    kept = [attribute for name, attribute in named if name not in (b"path", b"domain")]
    return b"; ".join([first, *kept, b"Path=" + prefix + (path if path.startswith(b"/") else b"/")])


def subprotocols(offered: Iterable[str], *, key_prefix: str) -> list[str]:
    """Those that a websocket's client offers to the program: the one that carries the API's key is not for it."""
    return [each for each in offered if not each.startswith(key_prefix)]
