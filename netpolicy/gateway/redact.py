"""Makes secrets unreadable in a stream, in every way that honest servers write them. No I/O.

A secret is searched for as it is, in JSON strings, in URLs, in HTML, in hexadecimal and in base64, upper and lower case
alike (docs/policies.md tells each). Reading happens in three steps, so that what holds no secret passes at the speed of
`bytes.find`: an anchor (a part of the secret without punctuation, or an escaped character of it), then a pattern of how
the secret begins, then character by character to its end.
"""

import base64
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from html.entities import html5
from typing import Final

_SHORTEST: Final = 6
"""Bytes; shorter ones would be found in what is no secret."""
_HEAD: Final = 48
"""Characters after which it is clear that it is the secret: the rest of a long one is not waited for."""
_ANCHOR_MAX: Final = 12
_ZEROS: Final = 3
"""Leading zeros of a character reference that are understood."""

_FORM_MAX: Final = 32
"""Bytes that no form of a character reaches."""

Forms = tuple[bytes, ...]
"""How one character may be written, in lower case, the longest first."""
Writing = tuple[Forms, ...]
"""How a secret may be written: its characters, one after the other."""

_NAMES: Final = {
    character: [name for name, text in html5.items() if text == character and name.endswith(";")]
    for character in map(chr, range(0x21, 0x7F))
}


@cache
def _forms(style: Callable[[str], list[str]], character: str) -> Forms:
    return tuple(sorted({text.lower().encode() for text in style(character)}, key=lambda form: (-len(form), form)))


def _raw(character: str) -> list[str]:
    return [character]


def _json(character: str) -> list[str]:
    code = f"{ord(character):02x}"
    escaped = [f"\\u00{code}", f"\\x{code}"] + [f"\\{character}"] * (character in "\"'/\\")
    return escaped if character in '"\\' else [*escaped, character]


def _percent(character: str) -> list[str]:
    return [f"%{ord(character):02x}"] + [character] * (character != "%")


def _html(character: str) -> list[str]:
    code, named = ord(character), [f"&{name}" for name in _NAMES[character]]
    numbers = [f"&#{'0' * zeros}{text}" for zeros in range(_ZEROS + 1) for text in (str(code), f"{code:x}")]
    numbers = [number.replace("#", mark, 1) for number in numbers for mark in ("#", "#x")]
    wanted = [number for number in numbers if _meant(number) == code]
    return named + wanted + [f"{number};" for number in wanted] + [character] * (character != "&")


def _meant(reference: str) -> int:
    digits = reference[2:]
    if digits.startswith("x"):
        return int(digits[1:], 16)
    return int(digits) if digits.isdecimal() else -1


def _twice(once: Callable[[str], list[str]], *escapes: tuple[str, str]) -> Callable[[str], list[str]]:
    """What is written in a way and then once more: only what must be is escaped again."""

    def twice(character: str) -> list[str]:
        forms = once(character)
        for mark, escaped in escapes:
            forms = [form.replace(mark, escaped) for form in forms]
        return forms

    return twice


_STYLES: Final = (
    _raw,
    _json,
    _twice(_json, ("\\", "\\\\"), ('"', '\\"')),
    _percent,
    _twice(_percent, ("%", "%25")),
    _html,
    _twice(_html, ("&", "&amp;")),
)
_NEWLINES: Final = ("", "\n", "\r\n", "\\n", "\\r\\n")
_LINE_ENDS: Final = tuple(newline.encode() for newline in _NEWLINES if newline)


def _base64(character: str) -> list[str]:
    written = [character, {"+": "-", "/": "_"}.get(character, character)]
    if not character.isalnum():
        written += [form for style in _STYLES[1:] for form in style(character)]
    return [form + newline for form in dict.fromkeys(written) for newline in _NEWLINES]


def _aligned(raw: bytes) -> Iterator[str]:
    """The secret in base64 behind none, one and two bytes, without characters that hold bits of what is beside it."""
    for shift in range(3):
        bits = (shift + len(raw)) * 8
        yield base64.b64encode(bytes(shift) + raw).decode()[(0, 2, 3)[shift] : bits // 6]


def _writings(secret: str) -> Iterator[Writing]:
    for style in _STYLES:
        yield tuple(_forms(style, character) for character in secret)
    yield tuple(_forms(_raw, digit) for digit in secret.encode().hex())
    for text in _aligned(secret.encode()):
        yield tuple(_forms(_base64, character) for character in text)


@cache
def _any_of(forms: Forms) -> bytes:
    """A pattern of all forms, the longest first, in which no two branches begin alike: so it fails fast."""
    branches: dict[bytes, list[bytes]] = {}
    for form in forms:
        branches.setdefault(form[:1], []).append(form[1:])
    texts = []
    for first, rests in branches.items():
        longer = [rest for rest in rests if rest]
        more = _any_of(tuple(longer)) + b"?" * (len(longer) < len(rests)) if longer else b""
        texts.append(re.escape(first) + more)
    return b"(?:" + b"|".join(texts) + b")"


def _beginnings(writing: Writing) -> bytes:
    """A pattern of a first character before a second, each branch of which begins with a literal (a fast search)."""
    second = b"[" + b"".join(sorted({re.escape(form[:1]) for form in writing[1]})) + b"]"
    return b"|".join(re.escape(form) + b"(?=" + second + b")" for form in writing[0])


def _beginning(writing: Writing) -> bytes:
    """A pattern of as many characters of a writing as there are."""
    return b"".join(b"(?:" + _any_of(forms) for forms in writing) + b")?" * len(writing)


def _parts(writing: Writing) -> list[Writing]:
    """The parts of a writing of which one holds no line's end: lines of base64 are longer than a head."""
    if not writing[0][0].endswith(_LINE_ENDS):
        return [writing]
    return [writing[: len(writing) // 2], writing[len(writing) // 2 :]]


def _plainest(writing: Writing) -> tuple[int, int]:
    """The longest part of a writing without punctuation, which would often be escaped; the first character at least."""
    plain = bytes(forms[-1][0] if len(forms[-1]) == 1 else 0 for forms in writing)
    runs = [match.span() for match in re.finditer(rb"[0-9a-z]+", plain)]
    begin, end = max(runs, key=lambda span: span[1] - span[0], default=(0, 1))
    return begin, min(end, begin + _ANCHOR_MAX)


class Needles:
    """What a stream is searched for. Made once for some secrets; Redactors share it."""

    def __init__(self, secrets: Iterable[str]) -> None:
        wanted = sorted(set(secrets), key=len, reverse=True)
        written = {writing: None for secret in wanted for writing in _writings(secret)}
        self.writings = tuple(writing for writing in written if len(writing) >= _SHORTEST)
        self._anchors, escaped = self._choose_anchors()
        self._escaped = re.compile(_any_of(tuple(escaped))) if escaped else None
        self._begins = re.compile(b"|".join(_beginnings(writing) for writing in self.writings))
        self._longest = max((sum(len(forms[0]) for forms in w[:_HEAD]) for w in self.writings), default=0)
        self._edge = max((len(w[0][0]) for w in self.writings), default=0) + 1
        self._by_first: dict[int, list[tuple[re.Pattern[bytes], int, Writing]]] = {}
        """By first byte: a pattern of a head's beginning, how many bytes the head has at least, and the head."""
        for head in [writing[:_HEAD] for writing in self.writings]:
            beginning, least = re.compile(_beginning(head)), sum(len(forms[-1]) for forms in head)
            for first in {form[0] for form in head[0]}:
                self._by_first.setdefault(first, []).append((beginning, least, head))

    def _choose_anchors(self) -> tuple[set[bytes], set[bytes]]:
        """What has to be in a text for a secret to be there: a part of it as it is, or an escaped character of that."""
        anchors, escaped = set[bytes](), set[bytes]()
        for writing in self.writings:
            for part in _parts(writing[:_HEAD]):
                begin, end = _plainest(part)
                anchors.add(bytes(forms[-1][0] for forms in part[begin:end]))
                forms = {form for forms in part[begin:end] for form in forms}
                escaped.update(form for form in forms if len(form) > 1 and not form.endswith(_LINE_ENDS))
        return anchors, escaped

    def may_be_in(self, low: bytes) -> bool:
        """Whether it is worth looking for a secret."""
        return any(anchor in low for anchor in self._anchors) or (
            self._escaped is not None and self._escaped.search(low) is not None
        )

    def find(self, low: bytes, begin: int) -> int:
        """Where the next secret's head begins, -1 where none does."""
        while (match := self._begins.search(low, begin)) is not None:
            if any(follow(low, match.start(), head, 0)[1] == len(head) for head in self._near(low, match.start())):
                return match.start()
            begin = match.start() + 1
        return -1

    def held_from(self, low: bytes, begin: int) -> int:
        """From where on a text in lower case may be the beginning of a secret's head; its length if nothing may."""
        size, at = len(low), max(begin, len(low) - self._longest)
        edge = max(at, size - self._edge)
        while (match := self._begins.search(low, at, size)) is not None and match.start() < edge:
            if self._ends_inside(low, match.start()):
                return match.start()
            at = match.start() + 1
        return next((at for at in range(edge, size) if self._ends_inside(low, at)), size)

    def _ends_inside(self, low: bytes, at: int) -> bool:
        return any(follow(low, at, head, 0)[2] for head in self._near(low, at))

    def _near(self, low: bytes, at: int) -> Iterator[Writing]:
        """The heads that a text follows to their end from a place on, or to its own."""
        for beginning, least, head in self._by_first.get(low[at], ()):
            read = beginning.match(low, at)
            if read is not None and (read.end() - at >= least or len(low) - read.end() < _FORM_MAX):
                yield head


def follow(low: bytes, at: int, writing: Writing, index: int, *, final: bool = False) -> tuple[int, int, bool]:
    """Read on in a writing: (where the text departs from it, at which character, whether only because it ends).

    A character that may be longer than what there is of it is left for what follows; not so where the text is final,
    nor at the writing's end: a line's end behind that is no secret.
    """
    while index < len(writing):
        form = next((form for form in writing[index] if low.startswith(form, at)), None)
        rest = low[at : at + _FORM_MAX]
        if form is None:
            return at, index, any(form.startswith(rest) for form in writing[index])
        if (
            rest == form
            and not final
            and index + 1 < len(writing)
            and any(len(longer) > len(form) and longer.startswith(form) for longer in writing[index])
        ):
            return at, index, True
        at, index = at + len(form), index + 1
    return at, index, False


class Redactor:
    """Replaces secrets by stars, as many as they have bytes. What may begin one is held back until that is clear."""

    def __init__(self, needles: Needles) -> None:
        self._needles = needles
        self._held = b""
        self._inside: list[tuple[Writing, int]] = []
        """The writings of a long secret whose head has gone by, and at which character each is."""
        self.found = 0

    def feed(self, data: bytes) -> bytes:
        """Take the next piece; returns what can be passed on."""
        if not self._needles.writings:
            return data
        text = self._held + data
        passed, end = self._stars(text)
        if not self._inside:
            end = self._needles.held_from(text.lower(), end)
        self._held = text[end:]
        return bytes(passed[:end])

    def flush(self) -> bytes:
        """End the stream; returns the rest."""
        rest, self._held = self._held, b""
        passed = bytearray(rest)
        if self._inside:
            self._read_on(rest.lower(), 0, passed, final=True)
        self._inside = []
        return bytes(passed)

    def all(self, data: bytes) -> bytes:
        """Redact a piece that stands for itself."""
        passed, _ = self._stars(data, final=True) if self._needles.writings else (data, 0)
        self._inside = []
        return bytes(passed)

    def _stars(self, text: bytes, *, final: bool = False) -> tuple[bytearray, int]:
        """The text with its secrets replaced, and up to where it is decided."""
        passed, low, at = bytearray(text), text.lower(), 0
        if self._inside:
            at = self._read_on(low, 0, passed, final=final)
            if self._inside:
                return passed, at
        if self._needles.may_be_in(low):
            while (begin := self._needles.find(low, at)) >= 0:
                self.found += 1
                self._inside = [(writing, 0) for writing in self._needles.writings]
                at = self._read_on(low, begin, passed, final=final)
                if self._inside:
                    break
        return passed, at

    def _read_on(self, low: bytes, begin: int, passed: bytearray, *, final: bool) -> int:
        """Replace what goes on in any writing; returns where the longest ends. Writings that may go on are kept."""
        ends = [(*follow(low, begin, writing, index, final=final), writing) for writing, index in self._inside]
        end = max(at for at, *_ in ends)
        self._inside = [
            (writing, index) for at, index, undecided, writing in ends if undecided and at == end and index >= _HEAD - 1
        ]
        passed[begin:end] = b"*" * (end - begin)
        return end
