"""A page of a bucket's listing (S3's ListObjectsV2), taken apart while it comes. Pure.

It is a stranger's word: whatever has more bytes, elements, depth, text or names than a page of at most 1,000 names can
have is `PageInvalid`, and so is one with a document type. Nothing of it is kept but names and what is known of each.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import unquote_plus
from xml.parsers import expat

NAMES_MAX: Final = 1000
_BYTES_MAX: Final = 8 << 20
_ELEMENTS_MAX: Final = 24_000
_DEPTH_MAX: Final = 8
_TEXT_MAX: Final = 8 << 10
_TOKEN_MAX: Final = 64 << 10
"""Bytes of one piece of markup, which the parser holds until its end: a tag with its attributes, a comment."""

_STEP: Final = 16 << 10
_SIZE_DIGITS: Final = 18
_ETAG_MAX: Final = 256
_LATEST_S: Final = 1 << 40


class PageInvalid(ValueError):
    """What no bucket answers that means well."""


@dataclass(frozen=True, slots=True)
class Facts:
    """An object: bytes, moment of its last change in seconds since the epoch, and what tells its contents apart."""

    size: int
    mtime_s: int
    etag: str


@dataclass(slots=True)
class Page:
    """Objects by key and folders' keys, which end with a slash; `more` asks for the next page, "" after the last."""

    objects: list[tuple[str, Facts]]
    folders: list[str]
    more: str = ""


def facts(size: int, mtime_s: float, etag: str) -> Facts:
    """What is known of an object; PageInvalid for what no object has."""
    if not 0 <= size < 10**_SIZE_DIGITS:
        raise PageInvalid(f"an object of {size} bytes")
    if len(etag) > _ETAG_MAX:
        raise PageInvalid(f"an etag of {len(etag)} characters")
    return Facts(size, int(min(max(0.0, mtime_s), _LATEST_S)), etag)


class PageParser:
    """Takes the answer to one request apart, however it is cut."""

    def __init__(self) -> None:
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.StartDoctypeDeclHandler = _refuse_doctype
        self._fed = 0
        self._elements = 0
        self._path: list[str] = []
        self._words: list[str] = []
        self._length = 0
        self._fields: dict[str, str] = {}
        self._objects: list[dict[str, str]] = []
        self._folders: list[str] = []
        self._head: dict[str, str] = {}

    def feed(self, data: bytes) -> None:
        """Take in some more; PageInvalid."""
        for begin in range(0, len(data), _STEP):
            self._feed(data[begin : begin + _STEP], last=False)

    def _feed(self, data: bytes, *, last: bool) -> None:
        self._fed += len(data)
        if self._fed > _BYTES_MAX:
            raise PageInvalid(f"a page of more than {_BYTES_MAX >> 20} MiB")
        try:
            self._parser.Parse(data, last)
        except (expat.ExpatError, LookupError) as error:
            raise PageInvalid(f"no XML: {error}") from error
        if self._fed - max(0, self._parser.CurrentByteIndex) > _TOKEN_MAX + _STEP:
            raise PageInvalid("a tag without an end")

    def page(self) -> Page:
        """All of it was fed: what it says; PageInvalid."""
        self._feed(b"", last=True)
        coded = self._head.get("EncodingType") == "url"
        more = self._head.get("NextContinuationToken", "") if self._head.get("IsTruncated") == "true" else ""
        if self._head.get("IsTruncated") == "true" and not more:
            raise PageInvalid("a listing that goes on nowhere")
        return Page(
            [(_key(fields.get("Key"), coded), _facts(fields)) for fields in self._objects],
            [_key(prefix, coded) for prefix in self._folders],
            more,
        )

    # ---- the parser's handlers

    def _begin(self, tag: str, _attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > _ELEMENTS_MAX:
            raise PageInvalid(f"more than {_ELEMENTS_MAX} elements")
        self._path.append(tag.rpartition(":")[2])
        if len(self._path) > _DEPTH_MAX:
            raise PageInvalid(f"elements more than {_DEPTH_MAX} deep")
        self._words, self._length = [], 0
        if self._path[1:] in (["Contents"], ["CommonPrefixes"]):
            self._fields = {}

    def _text(self, words: str) -> None:
        self._length += len(words)
        if self._length > _TEXT_MAX:
            raise PageInvalid(f"a text of more than {_TEXT_MAX} characters")
        self._words.append(words)

    def _end(self, _tag: str) -> None:
        match self._path[1:]:
            case ["Contents"]:
                self._objects.append(self._fields)
            case ["CommonPrefixes"]:
                self._folders.append(self._fields.get("Prefix", ""))
            case ["Contents", "Key" | "Size" | "LastModified" | "ETag" as name] | ["CommonPrefixes", "Prefix" as name]:
                self._fields[name] = "".join(self._words)
            case ["EncodingType" | "IsTruncated" | "NextContinuationToken" as name]:
                self._head[name] = "".join(self._words)
        if len(self._objects) + len(self._folders) > NAMES_MAX:
            raise PageInvalid(f"more than {NAMES_MAX} names")
        self._path.pop()
        self._words, self._length = [], 0


def _refuse_doctype(*_: object) -> None:
    raise PageInvalid("a document type")


def _key(text: str | None, coded: bool) -> str:
    if not text:
        raise PageInvalid("a name that is none")
    return unquote_plus(text) if coded else text


def _facts(fields: dict[str, str]) -> Facts:
    size = fields.get("Size", "")
    if not (size.isascii() and size.isdecimal() and len(size) <= _SIZE_DIGITS):
        raise PageInvalid(f"an object of {size[:40]!r} bytes")
    return facts(int(size), _moment(fields.get("LastModified", "")), fields.get("ETag", ""))


def _moment(text: str) -> float:
    """Seconds since the epoch; 0 for a moment that cannot be read."""
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = read(text)
            return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return 0.0
