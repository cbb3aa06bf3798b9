"""What a runner says, taken apart. Pure.

It is the guest's word: lines are bounded, and whatever is not of the form that runner.py gives is a violation, which
ends the container.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from common.text import clean_text

LINE_MAX: Final = 512 << 10
FILE_MAX: Final = 4 << 30
INLINE: Final = 48 << 10
"""Bytes of a value that comes in the line; a larger one lies in a file (runner.py)."""

_BATCH_LINES: Final = 16
_BATCH_BYTES: Final = 64 << 10
_LINE_COST: Final = 16 << 10
_ELEMENT_COST: Final = 100
_TEXT_MAX: Final = 128 << 10
_IDS_MAX: Final = 4096
_PATH_MAX: Final = 2048
_PATH: Final = re.compile(r"/[^\0\ud800-\udfff]{1,4094}")
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE")


class RunnerViolation(Exception):
    """What no runner of ours says."""


@dataclass(frozen=True, slots=True)
class Value:
    """Bytes, or a file inside that holds so many."""

    data: bytes = b""
    file: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """A line: its kind, the input that it is about ("" for none), and what came with it."""

    kind: str
    input: str = ""
    value: Value | None = None
    number: int = 0
    text: str = ""
    name: str = ""
    trace: str = ""
    ids: list[str] = field(default_factory=list)


class Lines:
    """Takes a stream apart, however it is cut."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def pending(self) -> int:
        """Bytes of a line that is not whole yet."""
        return len(self._rest)

    def cut(self, data: bytes) -> list[bytes]:
        """The lines that are whole now; RunnerViolation."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_MAX:
            raise RunnerViolation("a line without an end")
        return lines

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now; RunnerViolation."""
        return map(parse, self.cut(data))


def batches(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Lines in pieces that one turn of the loop may deal with (`common.turns`); none is empty."""
    begin = size = 0
    for at, line in enumerate(lines):
        if at > begin and (at - begin == _BATCH_LINES or size + len(line) > _BATCH_BYTES):
            yield lines[begin:at]
            begin, size = at, 0
        size += len(line)
    if begin < len(lines):
        yield lines[begin:]


def cost(lines: Sequence[bytes]) -> int:
    """What it takes to deal with lines, as a size in bytes (`common.turns`)."""
    elements = sum(line.count(b",") + line.count(b"[") for line in lines)
    return sum(map(len, lines)) + len(lines) * _LINE_COST + elements * _ELEMENT_COST


def parse(line: bytes) -> Frame:
    """One line; RunnerViolation."""
    if len(line) > LINE_MAX:
        raise RunnerViolation("a line that is too long")
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunnerViolation("a line that is no JSON") from error
    if not isinstance(raw, dict):
        raise RunnerViolation("a line that is no object")
    match raw.get("k"):
        case "begun" | "ready" | "snap" as kind:
            return Frame(kind)
        case "have":
            ids = raw.get("ids")
            if not isinstance(ids, list) or len(ids) > _IDS_MAX:
                raise RunnerViolation("ids that are no list")
            return Frame("have", number=_number(raw, "n"), ids=[_short(each) for each in ids])
        case "ask":
            method, path = raw.get("m"), _text(raw, "p")
            if method not in _METHODS or not path.startswith("/") or len(path) > _PATH_MAX:
                raise RunnerViolation("a question that is none")
            return Frame(
                "ask",
                "" if raw.get("i") is None else _short(raw["i"]),
                _value(raw.get("v")),
                number=_number(raw, "q"),
                name=method,
                text=path,
            )
        case "broken":
            return Frame("broken", name=_text(raw, "t"), text=_text(raw, "m"), trace=_text(raw, "b"))
        case "print":
            number = raw.get("i")
            return Frame(
                "print", "" if number is None else _short(number), number=_number(raw, "s"), text=_text(raw, "t")
            )
        case "done":
            return Frame("done", _short(raw.get("i")), _value(raw.get("v")))
        case "yield":
            return Frame("yield", _short(raw.get("i")), _value(raw.get("v")), number=_number(raw, "y"))
        case "error":
            value = None if raw.get("v") is None else _value(raw["v"])
            return Frame(
                "error", _short(raw.get("i")), value, name=_text(raw, "t"), text=_text(raw, "m"), trace=_text(raw, "b")
            )
    raise RunnerViolation("a line of another kind")


def _short(raw: Any) -> str:
    if not isinstance(raw, str) or not 0 < len(raw) <= 64 or not raw.isascii():
        raise RunnerViolation("an id that is none")
    return raw


def _text(raw: dict[str, Any], name: str) -> str:
    found = raw.get(name)
    if not isinstance(found, str) or len(found) > _TEXT_MAX:
        raise RunnerViolation(f"{name} is no text")
    return clean_text(found)


def _number(raw: dict[str, Any], name: str) -> int:
    found = raw.get(name)
    if not isinstance(found, int) or not 0 <= found < 1 << 53:
        raise RunnerViolation(f"{name} is no number")
    return found


def _value(raw: Any) -> Value:
    if isinstance(raw, dict) and isinstance(raw.get("d"), str):
        try:
            return Value(base64.b64decode(raw["d"], validate=True))
        except (binascii.Error, ValueError) as error:
            raise RunnerViolation("a value that is no base64") from error
    if isinstance(raw, dict) and isinstance(raw.get("f"), str) and _PATH.fullmatch(raw["f"]):
        size = _number(raw, "n")
        if not INLINE < size <= FILE_MAX:
            raise RunnerViolation("a value in a file of a size that no runner of ours puts there")
        return Value(file=raw["f"], size=size)
    raise RunnerViolation("a value that is none")


def environment(variables: dict[str, str]) -> bytes:
    """The first line, for an interpreter that has begun: the function's folder is there, and this its environment."""
    return json.dumps(variables).encode() + b"\n"


def run(input_: str, argument: dict[str, Any], *, beside: bool = False) -> bytes:
    """Tell a runner to run an input; beside: at once, in a thread of its own, whatever others wait for."""
    return json.dumps({"c": "run", "i": input_, "a": argument, "x": beside}).encode() + b"\n"


def go_on() -> bytes:
    """Tell a runner that said `snap` to go on."""
    return b'{"c": "go"}\n'


def answer(number: int, status: int, value: dict[str, Any]) -> bytes:
    """Answer what a runner asked."""
    return json.dumps({"c": "answer", "q": number, "s": status, "a": value}).encode() + b"\n"


def again() -> bytes:
    """Have a runner ask again what was not answered: whoever was to answer is gone."""
    return b'{"c": "again"}\n'


def have(number: int) -> bytes:
    """Ask a runner which inputs it has in hand."""
    return json.dumps({"c": "have", "n": number}).encode() + b"\n"
