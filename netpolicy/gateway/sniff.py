"""Tells from a client's first bytes which protocol it speaks, on a port where any may be spoken. No I/O.

A server may be more lenient than the parser that checks requests. So whatever some server could take for HTTP counts as
HTTP here (blank lines first, a verb in any case, other versions, none at all), and is then held to the strict parser.
"""

import re
from enum import Enum
from typing import Final

from netpolicy.gateway import tls

LINE_MAX: Final = 8192
"""Bytes of a first line; a longer one counts as HTTP, which the parser refuses."""

_SPACE: Final = rb"[\t-\r\x1c-\x20\x85\xa0]"
_LINE: Final = re.compile(
    _SPACE + rb"*(?:(?P<word>[!#$%&'*+.^_`|~0-9A-Za-z-]+)(?P<rest>(?:(?!\n)" + _SPACE + rb"[^\n]*)?))?(?P<end>\n?)"
)
_VERSIONED: Final = re.compile(rb"HTTP/", re.IGNORECASE)
_WITHOUT_VERSION: Final = re.compile(_SPACE + rb"+(?:/|https?:)", re.IGNORECASE)
_VERBS: Final = frozenset(
    {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"CONNECT", b"PRI"}
)
_SSL2_HELLO: Final = re.compile(rb"[\x80-\xff](?:.(?:\x01(?:[\x00\x03](?:[\x00-\x04])?)?)?)?", re.DOTALL)


class Protocol(Enum):
    """What a client speaks."""

    UNDECIDED = "undecided"
    """What came may still become TLS or HTTP. It holds no whole line, so a server cannot act on it yet."""
    TLS = "TLS"
    HTTP = "HTTP"
    OTHER = "other"


def sniff(data: bytes) -> Protocol:
    """Tell the protocol of a client's first bytes."""
    if not data:
        return Protocol.UNDECIDED
    if tls.looks_like(data):
        return Protocol.TLS
    if (old := _SSL2_HELLO.match(data)) is not None and len(old[0]) == min(len(data), 5):
        return Protocol.TLS if len(data) >= 5 else Protocol.UNDECIDED
    return _sniff_line(data)


def _sniff_line(data: bytes) -> Protocol:
    line = _LINE.match(data)
    if line is None:
        return Protocol.OTHER
    word, rest = line["word"] or b"", line["rest"] or b""
    if word and (_VERSIONED.search(rest) or (word.upper() in _VERBS and _WITHOUT_VERSION.match(rest))):
        return Protocol.HTTP
    if line["end"] or line.end() < len(data):
        return Protocol.OTHER  # the first line has ended, or holds what no request begins with
    return Protocol.HTTP if len(data) > LINE_MAX else Protocol.UNDECIDED
