"""JSON that strangers wrote, read with bounds. Pure."""

import json
from typing import Any, Final

from common.text import clean_json
from fs.errors import ImageInvalid

BYTES_MAX: Final = 4 << 20
"""What registries take of a manifest at most."""

_VALUES_MAX: Final = 200_000
_MARKS: Final = (b",", b"[", b"{")


def read(raw: bytes, what: str) -> Any:
    """What a document says; ImageInvalid, with `what` it is, for one that is damaged or of very many values.

    Each value costs a hundred times the two bytes that it may have, and nobody else runs while it is made: so what
    could be a value is counted first.
    """
    if len(raw) > BYTES_MAX:
        raise ImageInvalid(f"{what} is longer than {BYTES_MAX >> 20} MiB")
    if sum(raw.count(mark) for mark in _MARKS) > _VALUES_MAX:
        raise ImageInvalid(f"{what} has more than {_VALUES_MAX} values", hint="it is damaged, or made to do harm")
    try:
        return clean_json(json.loads(raw))
    except (ValueError, RecursionError) as error:
        raise ImageInvalid(f"{what} is no JSON", hint="it is damaged") from error
