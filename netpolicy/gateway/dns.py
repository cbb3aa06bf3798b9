"""DNS messages (RFC 1035), as little of them as a gateway needs: questions taken apart, answers put together. No I/O.

Whatever comes in is hostile: lengths are checked, compression pointers go backwards only, nothing is kept that was not
asked for.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Final

MESSAGE_MAX: Final = 4096
UDP_MAX: Final = 1232
"""Bytes of an answer that a datagram carries; a longer one is marked as cut (and asked for again over TCP)."""

_HEADER: Final = struct.Struct(">HHHHHH")
_QR, _AA, _TC, _RD, _RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_OPCODE: Final = 0x7800
_NAME_MAX: Final = 255
_POINTERS_MAX: Final = 64
_RECORDS_MAX: Final = 512


class Type(IntEnum):
    """Types of records that are told apart."""

    A = 1
    CNAME = 5
    AAAA = 28
    SVCB = 64
    HTTPS = 65


class Code(IntEnum):
    """Answers' codes."""

    OK = 0
    FORMAT = 1
    FAILED = 2
    NO_NAME = 3
    NOT_IMPLEMENTED = 4
    REFUSED = 5


NO_DATA: Final = frozenset({Type.AAAA, Type.SVCB, Type.HTTPS})
"""Asked by every program beside A: answered with nothing, so that it goes on with A."""


class Malformed(ValueError):
    """No DNS message."""


@dataclass(frozen=True, slots=True)
class Question:
    """A query: its id, the labels of the name as they came, and the question's own bytes, to be repeated."""

    id: int
    labels: tuple[bytes, ...]
    type: int
    class_: int
    recursion: bool
    raw: bytes

    @property
    def name(self) -> str:
        """For the audit: what was asked, whatever it was."""
        return b".".join(self.labels).decode("ascii", errors="backslashreplace") or "."


@dataclass(frozen=True, slots=True)
class Resolved:
    """What an upstream answered: the addresses of a name, for how many seconds, and what it is an alias of."""

    addresses: tuple[IPv4Address, ...]
    ttl: int
    aliased: tuple[str, ...] = ()


def _name(message: bytes, offset: int) -> tuple[tuple[bytes, ...], int]:
    """The labels of the name at offset, and where what follows it begins."""
    labels: list[bytes] = []
    size, end, jumps = 0, -1, 0
    while True:
        if offset >= len(message):
            raise Malformed("a name goes beyond the message")
        length = message[offset]
        if length & 0xC0 == 0xC0:
            if offset + 1 >= len(message):
                raise Malformed("a pointer goes beyond the message")
            target = (length & 0x3F) << 8 | message[offset + 1]
            end = offset + 2 if end < 0 else end
            jumps += 1
            if target >= offset or jumps > _POINTERS_MAX:
                raise Malformed("a pointer that does not go backwards")
            offset = target
            continue
        if length & 0xC0:
            raise Malformed("an unknown kind of label")
        offset += 1
        if not length:
            return tuple(labels), offset if end < 0 else end
        size += length + 1
        if offset + length > len(message) or size > _NAME_MAX:
            raise Malformed("a name is too long")
        labels.append(message[offset : offset + length])
        offset += length


def parse_query(message: bytes) -> Question:
    """The one question of a query; Malformed if it is anything else."""
    if len(message) < _HEADER.size or len(message) > MESSAGE_MAX:
        raise Malformed("no query")
    id_, flags, questions, answers, authorities, _ = _HEADER.unpack_from(message)
    if flags & (_QR | _OPCODE) or questions != 1 or answers or authorities:
        raise Malformed("not one plain question")
    labels, offset = _name(message, _HEADER.size)
    if offset + 4 > len(message):
        raise Malformed("a question without type")
    type_, class_ = struct.unpack_from(">HH", message, offset)
    return Question(id_, labels, type_, class_, bool(flags & _RD), message[_HEADER.size : offset + 4])


def refusal(message: bytes, code: Code) -> bytes | None:
    """An answer to what could not be parsed, if it was a query at all."""
    if len(message) < _HEADER.size:
        return None
    id_, flags, *_ = _HEADER.unpack_from(message)
    return None if flags & _QR else _HEADER.pack(id_, _QR | _RA | (flags & (_OPCODE | _RD)) | code, 0, 0, 0, 0)


def answer(
    question: Question, code: Code, addresses: Sequence[IPv4Address] = (), ttl: int = 0, *, most: int = MESSAGE_MAX
) -> bytes:
    """An answer to a question; its addresses as A records, or none and the sign that it was cut, beyond most bytes."""
    flags = _QR | _RA | (_RD if question.recursion else 0) | code
    record = struct.Struct(">HHHIH4s")
    size = _HEADER.size + len(question.raw) + record.size * len(addresses)
    if size > most:
        flags, addresses = flags | _TC, ()
    head = _HEADER.pack(question.id, flags, 1, len(addresses), 0, 0)
    records = (record.pack(0xC000 | _HEADER.size, Type.A, 1, ttl, 4, each.packed) for each in addresses)
    return head + question.raw + b"".join(records)


def query(id_: int, name: str) -> bytes:
    """A question for the addresses of a canonical name."""
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    return _HEADER.pack(id_, _RD, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", Type.A, 1)


def is_cut(message: bytes) -> bool:
    """Whether an answer says that it is not whole."""
    return len(message) >= _HEADER.size and bool(_HEADER.unpack_from(message)[1] & _TC)


def parse_answer(message: bytes, id_: int, name: str) -> Resolved | Code:
    """What an upstream answered to `query(id_, name)`, or the code of its refusal; Malformed: no answer to that."""
    if len(message) < _HEADER.size:
        raise Malformed("no answer")
    got, flags, questions, answers, *_ = _HEADER.unpack_from(message)
    if got != id_ or not flags & _QR or flags & _OPCODE or questions != 1 or answers > _RECORDS_MAX:
        raise Malformed("not the answer to this question")
    labels, offset = _name(message, _HEADER.size)
    if _text(labels) != name or message[offset : offset + 4] != struct.pack(">HH", Type.A, 1):
        raise Malformed("the answer to another question")
    offset += 4
    if code := flags & 0xF:
        return Code(code) if code in set(Code) else Code.FAILED
    addresses: dict[str, list[tuple[IPv4Address, int]]] = {}
    aliases: dict[str, tuple[str, int]] = {}
    for _ in range(answers):
        owner, offset = _name(message, offset)
        if offset + 10 > len(message):
            raise Malformed("a record goes beyond the message")
        type_, class_, ttl, size = struct.unpack_from(">HHIH", message, offset)
        offset += 10
        if offset + size > len(message):
            raise Malformed("a record goes beyond the message")
        if class_ == 1 and type_ == Type.A and size == 4:
            addresses.setdefault(_text(owner), []).append((IPv4Address(message[offset : offset + 4]), ttl))
        elif class_ == 1 and type_ == Type.CNAME:
            aliases[_text(owner)] = _text(_name(message, offset)[0]), ttl
        offset += size
    return _follow(name, addresses, aliases)


def _follow(
    name: str, addresses: dict[str, list[tuple[IPv4Address, int]]], aliases: dict[str, tuple[str, int]]
) -> Resolved:
    ttls: list[int] = []
    aliased: list[str] = []
    for _ in range(len(aliases) + 1):
        if found := addresses.get(name):
            ttls += [ttl for _, ttl in found]
            return Resolved(tuple(dict.fromkeys(address for address, _ in found)), min(ttls), tuple(aliased))
        if name not in aliases:
            break
        name, ttl = aliases[name]
        ttls.append(ttl)
        aliased.append(name)
    return Resolved((), min(ttls, default=0))


def _text(labels: tuple[bytes, ...]) -> str:
    return b".".join(labels).decode("latin-1").lower()
