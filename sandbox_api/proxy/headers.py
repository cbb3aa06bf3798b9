"""Which headers pass between a client and a program inside a sandbox, and how they change. No I/O.

What is inside is hostile: it never sees the API's key, and no page of its can act in the API's origin. A document from
a port gets an origin of its own (Content-Security-Policy: sandbox), its cookies are bound to its path, and headers that
would act on the whole origin are left out.
"""

from collections.abc import Iterable
from typing import Final

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
_NOT_OUT: Final = frozenset(
    {
        b"clear-site-data",
        b"content-security-policy-report-only",
        b"date",  # the server's own is there
        b"public-key-pins",
        b"service-worker-allowed",
        b"strict-transport-security",
        b"x-request-id",
    }
)
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


def response_headers(headers: Headers, *, port: int, prefix: str) -> Headers:
    """What the client is sent."""
    left_out = _HOP | _NOT_OUT | _named_by_connection(headers)
    passed: Headers = []
    policies = [_SANDBOXED]
    for name, value in headers:
        lower = name.lower()
        if lower in left_out:
            continue
        if lower == b"content-security-policy":
            policies.append(value)
        elif lower == b"set-cookie":
            passed.append((lower, _bound(value, prefix.encode())))
        elif lower == b"location":
            passed.append((lower, _relocated(value, port, prefix.encode())))
        else:
            passed.append((lower, value))
    passed += [(b"content-security-policy", policy) for policy in policies]
    passed.append((b"x-content-type-options", b"nosniff"))
    return passed


def _bound(cookie: bytes, prefix: bytes) -> bytes:
    """A cookie that goes to this port alone."""
    first, *attributes = [part.strip() for part in cookie.split(b";")]
    path = next((a.partition(b"=")[2] for a in attributes if a.lower().startswith(b"path=")), b"/")
    kept = [a for a in attributes if not a.lower().startswith((b"path=", b"domain="))]
    return b"; ".join([first, *kept, b"Path=" + prefix + (path if path.startswith(b"/") else b"/")])


def _relocated(location: bytes, port: int, prefix: bytes) -> bytes:
    """A redirect within the program stays within it."""
    for origin in (f"http://localhost:{port}", f"http://127.0.0.1:{port}"):
        if location == origin.encode() or location.startswith(origin.encode() + b"/"):
            location = location[len(origin) :] or b"/"
    if location.startswith(b"/") and not location.startswith(b"//"):
        return prefix + location
    return location


def subprotocols(offered: Iterable[str], *, key_prefix: str) -> list[str]:
    """Those that a websocket's client offers to the program: the one that carries the API's key is not for it."""
    return [each for each in offered if not each.startswith(key_prefix)]
