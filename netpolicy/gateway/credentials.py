"""Which credential a request gets: decided and put in, without I/O."""

import base64
import binascii
import re
import secrets as random
from collections.abc import Iterable
from typing import Final

from netpolicy.gateway.http import Head, Headers, RequestRefused
from netpolicy.gateway.ward import Ward
from netpolicy.policy import Injection

_AMBIGUOUS: Final = re.compile(r"%(?:2e|2f|5c|00)|\\|//|/\.{1,2}(?:/|$)", re.IGNORECASE)
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
    if each.path_prefix == "/":
        return True
    path = re.split(r"[?#]", head.target, maxsplit=1)[0]
    if _AMBIGUOUS.search(path):
        raise RequestRefused("its path can be read in two ways, and credentials are given by path here")
    prefix = each.path_prefix
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")


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
