"""How much of what came is parsed before others have their turn. No I/O."""

from typing import Final

_LEAST: Final = 1 << 10
_MOST: Final = 64 << 10
_FEW: Final = 2
_MANY: Final = 16


class PieceSize:
    """The bytes of the next piece: large ones of large frames, small ones of a flood of tiny frames."""

    def __init__(self) -> None:
        self.bytes = _LEAST

    def parsed(self, frames: int) -> None:
        """A piece held so many frames."""
        if frames <= _FEW:
            self.bytes = min(_MOST, self.bytes * 2)
        elif frames > _MANY:
            self.bytes = _LEAST
