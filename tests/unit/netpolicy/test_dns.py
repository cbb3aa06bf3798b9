import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.gateway import dns
from netpolicy.gateway.dns import Code, Malformed, Resolved

ADDRESSES = st.lists(st.integers(0, 2**32 - 1).map(IPv4Address), max_size=20, unique=True)
NAME = st.lists(st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True), min_size=1, max_size=5).map(".".join)


@given(NAME, st.integers(0, 65535), ADDRESSES, st.integers(0, 2**31))
def test_what_is_asked_and_answered_comes_back(name: str, id_: int, addresses: list[IPv4Address], ttl: int) -> None:
    question = dns.parse_query(dns.query(id_, name))
    assert (question.id, question.name, question.type, question.class_) == (id_, name, dns.Type.A, 1)
    found = dns.parse_answer(dns.answer(question, Code.OK, addresses, ttl), id_, name)
    assert isinstance(found, Resolved)
    assert found.addresses == tuple(addresses)
    assert found.ttl == (ttl if addresses else 0)
    assert dns.parse_answer(dns.answer(question, Code.NO_NAME), id_, name) is Code.NO_NAME


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for parse in (dns.parse_query, lambda raw: dns.parse_answer(raw, 7, "a.test")):
        try:
            parse(data)
        except Malformed:
            continue
    refusal = dns.refusal(data, Code.FORMAT)
    assert refusal is None or len(refusal) == 12


@given(NAME, ADDRESSES, st.data())
def test_a_damaged_answer_is_an_answer_or_malformed(
    name: str, addresses: list[IPv4Address], data: st.DataObject
) -> None:
    whole = bytearray(dns.answer(dns.parse_query(dns.query(7, name)), Code.OK, addresses, 60))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        found = dns.parse_answer(cut, 7, name)
    except Malformed:
        return
    assert isinstance(found, Resolved | Code)


def test_an_answer_that_is_too_long_says_so() -> None:
    question = dns.parse_query(dns.query(7, "a.test"))
    answer = dns.answer(question, Code.OK, [IPv4Address(n) for n in range(200)], 60, most=dns.UDP_MAX)
    assert dns.is_cut(answer)
    assert len(answer) <= dns.UDP_MAX


def _message(*records: bytes, answers: int) -> bytes:
    return struct.pack(">HHHHHH", 7, 0x8180, 1, answers, 0, 0) + b"\x01a\x04test\x00\0\1\0\1" + b"".join(records)


def _record(owner: bytes, type_: int, data: bytes, ttl: int = 60) -> bytes:
    return owner + struct.pack(">HHIH", type_, 1, ttl, len(data)) + data


def test_canonical_names_are_followed_and_nothing_else_is_taken() -> None:
    alias = _record(b"\xc0\x0c", 5, b"\x01b\x04test\x00", ttl=9)
    of_b = _record(b"\x01b\x04test\x00", 1, bytes((1, 2, 3, 4)))
    of_c = _record(b"\x01c\x04test\x00", 1, bytes((6, 6, 6, 6)))
    assert dns.parse_answer(_message(of_c, alias, of_b, answers=3), 7, "a.test") == Resolved(
        (IPv4Address("1.2.3.4"),), 9, ("b.test",)
    )
    circle = _record(b"\xc0\x0c", 5, b"\xc0\x0c")
    assert dns.parse_answer(_message(circle, answers=1), 7, "a.test") == Resolved((), 60)


@pytest.mark.parametrize(
    ("message", "id_", "name"),
    [
        (_message(answers=0), 8, "a.test"),
        (_message(answers=0), 7, "b.test"),
        (_message(answers=3), 7, "a.test"),
        (b"", 7, "a.test"),
    ],
)
def test_what_is_no_answer_to_the_question(message: bytes, id_: int, name: str) -> None:
    with pytest.raises(Malformed):
        dns.parse_answer(message, id_, name)


@pytest.mark.parametrize(
    "tail", [b"\xc0\x0c\0\1\0\1", b"\xff\0\0\1\0\1", b"\x40a\0\0\1\0\1", b"\x3fshort", b"\x01a\0\0\1"]
)
def test_names_that_go_round_or_beyond(tail: bytes) -> None:
    with pytest.raises(Malformed):
        dns.parse_query(struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + tail)
