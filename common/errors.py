"""The root of every error that isobox raises on purpose."""


class IsoboxError(Exception):
    """A failure that somebody can act on; its text says what happened, `hint` how to mend it."""

    def __init__(self, detail: str, *, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
