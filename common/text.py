"""Text and JSON values from outside, made fit to be stored and sent as JSON.

Outside is a guest, a registry, an archive, a store: what they say may hold lone surrogates, numbers that JSON has no
word for, nesting without end. Values pass here once, where they come in, and models clean them again where they go
out, because rows and logs of an older server were not cleaned. Nothing here raises.
"""

import math
import os
from typing import Any, Final

DEPTH_MAX: Final = 64
VALUES_MAX: Final = 100_000
KEY_MAX: Final = 1024
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_ERRNO_MAX: Final = 4095
"""The largest number that a Linux system call gives as an error (MAX_ERRNO)."""

_TOO_DEEP: Final = f"… (nested deeper than {DEPTH_MAX} levels)"
_TOO_MANY: Final = f"… (more than {VALUES_MAX} values)"


def clean_text(text: str, most: int | None = None) -> str:
    """The text with U+FFFD for each lone surrogate, and cut to `most` characters with an ellipsis at its end."""
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean_json(value: Any) -> Any:
    """The value as any JSON parser can read it again.

    Lone surrogates become U+FFFD; NaN and infinities null, as JavaScript writes them; integers that 64 bits do not hold
    their digits as text. What lies deeper than DEPTH_MAX, or behind the first VALUES_MAX values, becomes a text that
    says so. Types that JSON does not have become their `repr`.
    """
    return _Cleaner().clean(value, 0)


class _Cleaner:
    """Cleans one value; counts what it has seen of it."""

    def __init__(self) -> None:
        self._left = VALUES_MAX

    def clean(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if isinstance(value, str):
            return clean_text(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return value if _INT_MIN <= value <= _INT_MAX else _digits(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if not isinstance(value, dict | list | tuple):
            return clean_text(repr(value))
        if depth >= DEPTH_MAX:
            return _TOO_DEEP
        return self._object(value, depth) if isinstance(value, dict) else self._array(value, depth)

    def _object(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        cleaned: dict[str, Any] = {}
        for name, item in value.items():
            if self._left <= 0:
                cleaned["…"] = _TOO_MANY
                break
            cleaned[clean_text(str(name), KEY_MAX)] = self.clean(item, depth + 1)
        return cleaned

    def _array(self, value: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        cleaned: list[Any] = []
        for item in value:
            if self._left <= 0:
                cleaned.append(_TOO_MANY)
                break
            cleaned.append(self.clean(item, depth + 1))
        return cleaned


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # longer than Python turns into text
        return f"(an integer of {value.bit_length()} bits)"


def errno_text(number: int) -> str:
    """What an errno means; also for a number that no system has, as a guest may give it."""
    return os.strerror(number) if 0 < number <= _ERRNO_MAX else "unknown error"
