"""Where a redirect of a program inside may lead a client: anywhere, but in the API's own origin to the program alone.

A client that follows a redirect within an origin sends its key along, and with 307 and 308 its method and body too. So
every way to write the API's origin counts: relative to the request, from the root, with the API's host in it. What a
client would take for such a way is what browsers take for one (WHATWG URL), the most lenient of them. No I/O.
"""

import ipaddress
import re
from typing import Final

_SCHEME: Final = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_AUTHORITY: Final = re.compile(rb"[/\\]{2,}([^/\\?#]*)(.*)", re.DOTALL)
_NAME: Final = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_STRIPPED: Final = bytes(range(0x21))
_REFRESH: Final = re.compile(
    rb"(\s*[0-9.]+\s*[;,\s]\s*(?:url\s*=\s*)?)(['\"]?)([^'\"]*)\2\s*", re.DOTALL | re.IGNORECASE
)
_DEFAULT_PORTS: Final = frozenset({80, 443})


def relocated(location: bytes, *, port: int, prefix: bytes, host: bytes, path: bytes) -> bytes:
    """The location that a client is told: what lies in the program's root lies below prefix there.

    host is what the client calls the API, path the request's own below the prefix, empty for the prefix itself.
    """
    text = re.sub(rb"[\t\r\n]", b"", location.strip(_STRIPPED))
    scheme, rest = b"", text
    if (match := _SCHEME.fullmatch(text)) is not None:
        scheme, rest = match[1].lower() + b":", match[2]
        if scheme not in (b"http:", b"https:"):
            return text  # no client sends a key there
    if (match := _AUTHORITY.fullmatch(rest)) is not None:
        origin, after = _origin(match[1]), match[2].replace(b"\\", b"/")
        own = {("localhost", port), ("127.0.0.1", port), _origin(host)}
        if origin is not None and origin not in own:
            return scheme + b"//" + match[1] + after  # written as every client reads it
        # A host that is written in an unusual way might be any, and is not heeded.
        rest = after if after.startswith(b"/") else b"/" + after
    return _below(rest, prefix, path)


def _origin(authority: bytes) -> tuple[str, int] | None:
    """Host and port (0 for a scheme's usual one); None unless written in the one way that all clients read."""
    text = authority.rpartition(b"@")[2].lower().decode("latin-1")
    host, colon, digits = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon and not text.endswith("]"):
        host, digits = text, ""
    if digits and not (_PORT.fullmatch(digits) and str(int(digits)) == digits):
        return None
    number = 0 if not digits or int(digits) in _DEFAULT_PORTS else int(digits)
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), number
        except ValueError:
            return None
    if _NAME.fullmatch(host) is None:
        return None
    if _NUMBER.fullmatch(host.rpartition(".")[2]) is not None:  # browsers read it as an IPv4 address, in many notations
        try:
            return str(ipaddress.IPv4Address(host)), number
        except ValueError:
            return None
    return host, number


def refresh(value: bytes, *, port: int, prefix: bytes, host: bytes, path: bytes) -> bytes:
    """A Refresh header's value, its address relocated."""
    if (match := _REFRESH.fullmatch(value)) is None or not match[3]:
        return value
    return match[1] + relocated(match[3], port=port, prefix=prefix, host=host, path=path)


def _below(rest: bytes, prefix: bytes, path: bytes) -> bytes:
    """A path from the root, or relative to the request's, with what follows it."""
    end = next((at for at, byte in enumerate(rest) if byte in b"?#"), len(rest))
    written, tail = rest[:end].replace(b"\\", b"/"), rest[end:]
    if not written:
        return rest  # the request's own path, with another query
    if written.startswith(b"/"):
        # A program that heeds X-Forwarded-Prefix has put it there itself.
        inner = written.removeprefix(prefix) if (written + b"/").startswith(prefix + b"/") else written
    else:
        base = path.partition(b"?")[0]
        inner = base.rpartition(b"/")[0] + b"/" + written
        if base and not _has_dots(written) and b":" not in written.partition(b"/")[0]:
            return written + tail  # else the client would look beside the prefix, or take a name for a scheme
    return prefix + _resolved(inner) + tail


def _dots(segment: bytes) -> bytes:
    return segment.lower().replace(b"%2e", b".")


def _has_dots(path: bytes) -> bool:
    return any(_dots(segment) in (b".", b"..") for segment in path.split(b"/"))


def _resolved(path: bytes) -> bytes:
    """An absolute path without dot segments; above the root is the root (RFC 3986, 5.2.4)."""
    kept: list[bytes] = []
    *folders, last = path.split(b"/")[1:] or [b""]
    for segment in folders:
        if _dots(segment) == b"..":
            del kept[-1:]
        elif _dots(segment) != b".":
            kept.append(segment)
    if _dots(last) in (b".", b".."):
        if _dots(last) == b"..":
            del kept[-1:]
        last = b""
    return b"/" + b"/".join([*kept, last])
