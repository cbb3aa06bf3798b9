"""Edits of a text: all of them or none. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Replace:
    """Put `new` in the place of `old`, which has to stand there exactly `count` times."""

    old: bytes
    new: bytes
    count: int = 1


class EditMismatch(Exception):
    """An edit does not fit; `index` says which (from 0), `found` how often its text stands there, `lines` where."""

    def __init__(self, index: int, found: int, lines: Sequence[int], wanted: int, old: bytes) -> None:
        shown = old.decode(errors="replace")
        shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
        where = f" (lines {', '.join(map(str, lines))})" if lines else ""
        super().__init__(f"edit {index + 1}: {shown!r} stands there {found} times{where}, not {wanted}")
        self.index = index
        self.found = found


def apply(contents: bytes, edits: Sequence[Replace]) -> bytes:
    """The contents after all edits, each made in what the ones before it left; EditMismatch if one does not fit."""
    for index, edit in enumerate(edits):
        found = contents.count(edit.old)
        if found != edit.count:
            raise EditMismatch(index, found, _lines(contents, edit.old), edit.count, edit.old)
        contents = contents.replace(edit.old, edit.new)
    return contents


def _lines(contents: bytes, old: bytes, most: int = 10) -> list[int]:
    lines: list[int] = []
    at = contents.find(old)
    while at >= 0 and len(lines) < most:
        lines.append(contents.count(b"\n", 0, at) + 1)
        at = contents.find(old, at + 1)
    return lines
