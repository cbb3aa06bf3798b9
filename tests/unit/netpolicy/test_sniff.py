import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.gateway.sniff import LINE_MAX, Protocol, sniff

OTHER, UNDECIDED, HTTP, TLS = Protocol.OTHER, Protocol.UNDECIDED, Protocol.HTTP, Protocol.TLS
CASES = {
    b"G": UNDECIDED,
    b"GET": UNDECIDED,
    b"GET x HT": UNDECIDED,
    b"\r\n \r\n": UNDECIDED,
    b"a": UNDECIDED,
    b"\x80\x2e": UNDECIDED,
    b"GET / HTTP/1.1\r\n": HTTP,
    b"GET /x HT": HTTP,
    b"GET /\r\n": HTTP,  # HTTP/0.9
    b"get /\n": HTTP,
    b"GET\t/ http/1.1\n": HTTP,
    b"\r\nGET / HTTP/1.1\r\n": HTTP,
    b"\n\n  post x HTTP/1.0": HTTP,
    b"brew pot HTTP/9.9\r\n": HTTP,
    b"GET x\rHTTP/1.1": HTTP,
    b"GET\xa0/\x85HTTP/1.1": HTTP,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": HTTP,
    b"CONNECT a.test:443 HTTP/1.1\r\n": HTTP,
    b"GET http://a.test/": HTTP,
    b"x" * (LINE_MAX + 1): HTTP,
    b"\x16": TLS,
    b"\x16\x03\x01": TLS,
    b"\x80\x2e\x01\x03\x01": TLS,  # a hello in the form of SSL 2
    b"\x16\x02\x01": OTHER,
    b"\x80\x2e\x02": OTHER,
    b"hello\n": OTHER,
    b"get key\r\n": OTHER,
    b"EHLO me\r\n": OTHER,
    b"SSH-2.0-x\r\n": OTHER,
    b"*1\r\n$4\r\nPING\r\n": OTHER,
    b"\0\0\0\x08\x04\xd2\x16\x2f": OTHER,
    b"{": OTHER,
}


@pytest.mark.parametrize(("data", "protocol"), CASES.items())
def test_first_bytes(data: bytes, protocol: Protocol) -> None:
    assert sniff(data) is protocol


PARTS = st.sampled_from(
    [
        b"GET",
        b"get",
        b"x",
        b" ",
        b"\t",
        b"\r",
        b"\n",
        b"\r\n",
        b"/",
        b"*",
        b"HTTP/1.1",
        b"http/",
        b"\0",
        b"\x16\x03",
        b":",
    ]
)


@given(st.lists(PARTS, max_size=12).map(b"".join) | st.binary(max_size=60), st.binary(max_size=20))
def test_what_is_decided_stays_so_whatever_follows(data: bytes, more: bytes) -> None:
    if (protocol := sniff(data)) is not UNDECIDED:
        assert sniff(data + more) is protocol


@given(st.lists(PARTS, max_size=12).map(b"".join) | st.binary(max_size=60))
def test_a_server_cannot_act_on_what_is_undecided(data: bytes) -> None:
    """A lenient server skips blank lines and takes a line of two words and more, split at any white space."""
    if sniff(data) is UNDECIDED:
        assert b"\n" not in data.lstrip(b"\r\n\t\v\f \x1c\x1d\x1e\x1f\x85\xa0")
        assert b"http/" not in data.lower() or len(data.decode("latin-1").split()) < 2


@given(
    st.sampled_from([b"", b"\r\n", b"\n", b" ", b"\r\n\r\n"]),
    st.text(st.sampled_from("GETgetPOSTpostXYx-_!"), min_size=1).map(str.encode),
    st.sampled_from([b" ", b"\t", b"  ", b"\x0b"]),
    st.binary(max_size=30).filter(lambda target: b"\n" not in target),
    st.sampled_from([b" HTTP/1.1\r\n", b" http/1.0\n", b"\tHTTP/2\r\n", b" HTTP/"]),
)
def test_any_line_with_a_version_is_http(before: bytes, verb: bytes, space: bytes, target: bytes, end: bytes) -> None:
    assert sniff(before + verb + space + target + end) is HTTP
