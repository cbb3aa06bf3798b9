"""The Range header of a request for bytes (RFC 9110, 14.1 and 14.2). No I/O."""

import re
from typing import Final

from sandbox_api.problems import Problem

_UNIT: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RANGE: Final = re.compile(r"([0-9]+)-([0-9]*)|-([0-9]+)")
_OFFSET_MAX: Final = 1 << 62
"""Larger than any file: what asks for more asks for this."""


def parse_range(text: str | None) -> tuple[int, int] | None:
    """(offset, length) of the one range of bytes that is asked for, or None for all.

    A negative offset counts from the end; length -1 means up to the end. A unit other than bytes is ignored, as the
    RFC wants it. 416 for a range that no file satisfies (`bytes=-0`), more than one, or what is not in the grammar.
    """
    if text is None:
        return None
    unit, equals, ranges = text.strip(" \t").partition("=")
    if equals and _UNIT.fullmatch(unit) and unit.lower() != "bytes":
        return None
    # Elements of a list may be empty, and have white space around them.
    asked = [part for element in ranges.split(",") if (part := element.strip(" \t"))]
    matches = [match for part in asked if (match := _RANGE.fullmatch(part))]
    if unit.lower() != "bytes" or not asked or len(matches) != len(asked):
        raise _refused("Range is not bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT")
    if len(matches) > 1:
        raise _refused("Range asks for more than one range")
    first, last, count = matches[0].groups()
    if count is not None:
        if (suffix := _number(count)) == 0:
            raise _refused("Range asks for the last 0 bytes")
        return -suffix, -1
    if not last:
        return _number(first), -1
    begin, end = _number(first), _number(last)
    if end < begin:
        raise _refused("Range ends before it begins")
    return begin, end - begin + 1


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    return _OFFSET_MAX if len(digits) > 18 else int(digits)


def _refused(detail: str) -> Problem:
    return Problem(416, "range_not_satisfiable", detail, hint="ask for one range of bytes, for example bytes=0-1023")
