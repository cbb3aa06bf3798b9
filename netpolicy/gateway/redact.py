"""Makes secrets unreadable in a stream, whichever way they are written. No I/O."""

import base64
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

_SHORTEST: Final = 6
"""Shorter ones would be found in what is no secret."""


def encodings(secret: str) -> set[bytes]:
    """The ways in which a secret may be written: as it is, quoted, escaped, in hexadecimal, in base64 at any place."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), raw.hex().encode(), raw.hex().upper().encode()}
    found.add(secret.replace("\\", "\\\\").replace('"', '\\"').encode())
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(b"\0" * shift + raw)
            # The characters at either end also hold bits of what stands beside the secret.
            begin, bits = (0, 2, 3)[shift], (shift + len(raw)) * 8
            found.add(whole[begin : bits // 6])
    return {each for each in found if len(each) >= _SHORTEST}


class Redactor:
    """Replaces secrets by stars, as many as they have bytes. What may begin one is held back until that is clear."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._needles = sorted({each for secret in secrets for each in encodings(secret)}, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._needles))) if self._needles else None
        self._longest = len(self._needles[0]) if self._needles else 0
        self._held = b""
        self.found = 0

    def feed(self, data: bytes) -> bytes:
        """What can be passed on."""
        if self._pattern is None:
            return data
        text = self._stars(self._held + data)
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> bytes:
        """The rest, at the end."""
        rest, self._held = self._held, b""
        return rest

    def all(self, data: bytes) -> bytes:
        """A piece that stands for itself."""
        return self._stars(data)

    def _stars(self, data: bytes) -> bytes:
        if self._pattern is None:
            return data
        text, count = self._pattern.subn(lambda match: b"*" * len(match[0]), data)
        self.found += count
        return text

    def _beginning(self, text: bytes) -> int:
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-size:]
            if any(each.startswith(end) for each in self._needles):
                return size
        return 0
