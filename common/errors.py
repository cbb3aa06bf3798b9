"""The root of every error that isobox raises on purpose."""

from typing import Final

from common.text import clean_text

_DETAIL_MAX: Final = 8192


class IsoboxError(Exception):
    """A failure that somebody can act on; its text says what happened, `hint` how to mend it.

    Both may quote a guest, a registry or an archive, and are stored and sent: they are cleaned and bounded here.
    """

    def __init__(self, detail: str, *, hint: str = "") -> None:
        detail = clean_text(detail, _DETAIL_MAX)
        super().__init__(detail)
        self.detail = detail
        self.hint = clean_text(hint, _DETAIL_MAX)
