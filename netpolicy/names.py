"""Host names, made canonical once: that one string is matched, resolved, dialled and written down. No I/O."""

import re
from functools import cache
from typing import Final

import idna
from publicsuffixlist import PublicSuffixList

_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_MAX: Final = 253


class NameInvalid(ValueError):
    """No name of a host; the text says why."""


def canonical(text: str) -> str:
    """The one form of a host's name: ASCII by IDNA, lower case, no trailing dot; NameInvalid."""
    if not text or len(text) > 1024:
        raise NameInvalid("a host's name has 1 to 253 characters")
    name = text[:-1] if text.endswith(".") else text
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode()
        except idna.IDNAError as error:
            raise NameInvalid(f"{text!r} is no host name: {error}") from None
    name = name.lower()
    if len(name) > _MAX:
        raise NameInvalid("a host's name has 1 to 253 characters")
    labels = name.split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise NameInvalid(f"{text!r} is no host name: labels are letters, digits and hyphens")
    if labels[-1].isdecimal() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        raise NameInvalid(f"{text!r} is an address, not a host name: use a cidr rule")
    return name


def from_wire(labels: tuple[bytes, ...]) -> str | None:
    """The canonical name of a DNS question's labels; None where it is no host's name."""
    try:
        return canonical(b".".join(labels).decode("ascii")) if labels else None
    except (UnicodeDecodeError, NameInvalid):
        return None


def pattern(text: str) -> str:
    """The canonical form of a rule's host: a name, or `*.` before one; NameInvalid."""
    if not text.startswith("*"):
        return canonical(text)
    if not text.startswith("*."):
        raise NameInvalid(f"{text!r}: a wildcard is written *.example.com; all hosts are the preset `open`")
    base = canonical(text[2:])
    if _suffixes().privatesuffix(base) is None:
        raise NameInvalid(f"{text!r} is too wide: anybody can register a name below {base}")
    return f"*.{base}"


def matches(pattern_: str, name: str) -> bool:
    """Whether a canonical name falls under a canonical pattern; `*.x` does not match x itself."""
    return name.endswith(pattern_[1:]) and len(name) >= len(pattern_) if pattern_[0] == "*" else name == pattern_


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()
