"""Which credential a request gets: decided and put in, without I/O."""

import base64
import binascii
import re
import secrets as random
import unicodedata
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

from netpolicy.gateway.http import Head, Headers, RequestRefused
from netpolicy.gateway.ward import Ward
from netpolicy.policy import Injection

_PLAIN_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})+")
_OVERRIDES: Final = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
_REROUTES: Final = frozenset({b"x-original-url", b"x-rewrite-url"})
"""Headers by which some servers take another method, or another path, than the request's own."""
_PREFIX: Final = re.compile(r"(?:[A-Za-z0-9]{1,12}[-_]){1,3}")
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_RANDOM_MIN: Final = 16


def placeholder(secret: str) -> str:
    """A worthless string that looks like the secret: its prefix (sk-, ghp_ …) and its length, the rest random."""
    match = _PREFIX.match(secret)
    prefix = match[0] if match is not None and len(match[0]) <= len(secret) // 2 else ""
    size = max(_RANDOM_MIN, len(secret) - len(prefix))
    return prefix + "".join(random.choice(_ALPHABET) for _ in range(size))


class BudgetSpent(RequestRefused):
    """No further request may carry this credential."""


def with_credentials(ward: Ward, head: Head) -> tuple[Headers, list[str]]:
    """The headers that a request goes on with, and the names of the secrets among them; RequestRefused, BudgetSpent."""
    headers, used = head.headers, []
    for each in ward.injections(head.host):
        secret = ward.credentials.secrets.get(each.secret)
        if secret is None:
            raise RequestRefused(f"the secret {each.secret} is gone")
        if each.header is not None and _applies(each, head):
            name = each.header.lower().encode()
            value = each.format.replace("{secret}", secret).encode()
            headers = [(n, v) for n, v in headers if n != name] + [(name, value)]
        elif each.env is not None and (mark := ward.credentials.placeholders.get(each.env)):
            replaced = [(n, _replaced(v, mark.encode(), secret.encode())) for n, v in headers]
            if replaced == headers:
                continue
            headers = replaced
        else:
            continue
        if not ward.spend(each):
            raise BudgetSpent(f"the budget of {each.budget} requests with the secret {each.secret} is spent")
        used.append(each.secret)
    return headers, used


def _applies(each: Injection, head: Head) -> bool:
    if each.methods and head.method not in each.methods:
        return False
    if each.path_prefix != "/" and not _is_below(each.path_prefix, head.target):
        return False
    if each.methods:
        _refuse_headers(head, _OVERRIDES, "method")
    if each.path_prefix != "/":
        _refuse_headers(head, _REROUTES, "path")
    return True


def _is_below(prefix: str, target: str) -> bool:
    path = target.partition("?")[0]
    if not is_plain(path):
        raise RequestRefused("its path can be read in two ways, and credentials are given by path here")
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")


def _refuse_headers(head: Head, names: frozenset[bytes], what: str) -> None:
    for name, _ in head.headers:
        if name.replace(b"_", b"-") in names:
            raise RequestRefused(f"its header {name.decode()} asks for another {what} than the one that is checked")


def is_plain(path: str) -> bool:
    """Whether every server reads a path in one way: none finds other segments in it than those between its slashes.

    Escapes have to be of UTF-8, and of characters that stay ordinary when a server decodes them, and whatever it makes
    of them, once more.
    """
    if not path.startswith("/") or not _PLAIN_PATH.fullmatch(path):
        return False
    try:
        decoded = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:  # over-long forms are such
        return False
    # Escaped or not: a server may decode first, drop what follows `;`, or take a full-width stop for a stop.
    segments = [segment.partition(";")[0] for segment in unicodedata.normalize("NFKC", decoded).split("/")]
    return (
        decoded.isprintable()
        and not any(mark in unicodedata.normalize("NFKC", decoded) for mark in "%\\")
        and len(segments) == path.count("/") + 1
        and not any(segment in ("", ".", "..") for segment in segments[1:-1])
        and segments[-1] not in (".", "..")
    )


def _replaced(value: bytes, mark: bytes, secret: bytes) -> bytes:
    """The secret in place of its placeholder, inside Basic credentials too."""
    if value[:6].lower() == b"basic ":
        try:
            inner = base64.b64decode(value[6:].strip(), validate=True)
        except (binascii.Error, ValueError):
            return value.replace(mark, secret)
        return value[:6] + base64.b64encode(inner.replace(mark, secret)) if mark in inner else value
    return value.replace(mark, secret)


def strays(marks: Iterable[str], head: Head) -> bool:
    """Whether a placeholder stands in a request (to a host that it is not for)."""
    wanted = [each.encode() for each in marks]
    return any(_replaced(value, mark, b"") != value for _, value in head.headers for mark in wanted)
