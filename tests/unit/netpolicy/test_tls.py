import pytest
from hellos import hello, names, with_extensions
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.gateway import tls
from netpolicy.gateway.tls import HELLO_MAX, NotTls, server_name


def in_records(data: bytes, size: int) -> bytes:
    """The same handshake in records of so many bytes."""
    body = data[5:]
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in pieces)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_host_of_a_real_hello_cut_at_every_byte(legacy: bool) -> None:
    whole = hello("api.example.com", legacy=legacy)
    assert tls.looks_like(whole)
    for size in range(len(whole)):
        assert server_name(whole[:size]) == b"", size
    assert server_name(whole) == "api.example.com"
    assert server_name(whole + b"more") == "api.example.com"


@given(st.integers(1, 600))
def test_a_hello_in_many_records(size: int) -> None:
    assert server_name(in_records(hello("a.test"), size)) == "a.test"


def test_a_hello_that_names_nobody() -> None:
    assert server_name(hello(None)) is None


@given(st.binary(max_size=400))
def test_any_bytes_are_a_hello_or_not(data: bytes) -> None:
    try:
        found = server_name(data)
    except NotTls:
        return
    assert found is None or found == b"" or isinstance(found, str)


@given(st.data())
def test_a_damaged_hello_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(hello("api.example.com"))
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = server_name(bytes(whole))
    except NotTls:
        return
    assert found is None or found == b"" or isinstance(found, str)


def test_one_that_never_ends_is_refused() -> None:
    endless = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xf8" + b"\0" * HELLO_MAX
    with pytest.raises(NotTls):
        server_name(endless[:HELLO_MAX])
    with pytest.raises(NotTls):
        server_name(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x16\x02\x01\0\5", b"\x16\x03\x01\0\0", b"SSH-2.0-x\r\n"])
def test_what_is_no_tls(data: bytes) -> None:
    with pytest.raises(NotTls):
        server_name(data)


TWO = with_extensions((0, names(b"a.test")))


@pytest.mark.parametrize(
    "data",
    [
        with_extensions((0, names(b"a.test")), (0, names(b"b.test"))),
        with_extensions((0, names(b"a.test")), (23, b""), (0, names(b"a.test"))),
        with_extensions((0, names(b"a.test", b"b.test"))),
        with_extensions((0, names(b"b.test", kind=1))),
        with_extensions((0, names())),
        with_extensions((0, b"")),
        with_extensions((0, names(b"a.test", more=b"b.test"))),
        with_extensions((0, names(b"a.test")), more=b"\0\0\0\0"),
        with_extensions((0, names(b"a.test")), after=TWO[5:]),
        in_records(TWO, 20)[:25] + b"\x14\x03\x03\0\x01\x01" + in_records(TWO, 20)[25:],
    ],
)
def test_a_hello_that_two_readers_could_read_differently_is_refused(data: bytes) -> None:
    with pytest.raises(NotTls):
        server_name(data)


@given(st.integers(1, 60))
def test_a_hello_of_our_own_names_its_host_however_it_is_split(size: int) -> None:
    assert server_name(in_records(TWO, size)) == "a.test"


@pytest.mark.parametrize("kind", [0xFE0D, 0xFFCE])
def test_a_hello_that_carries_another_one_says_so(kind: int) -> None:
    assert tls.hides_name(with_extensions((0, names(b"a.test")), (kind, b"\0" * 9)))
    assert not tls.hides_name(TWO)
    assert not tls.hides_name(hello("a.test"))


@given(st.binary(max_size=120))
def test_any_bytes_of_a_server_ask_again_or_do_not(data: bytes) -> None:
    assert tls.asks_again(data) in (True, False, None)
    assert tls.asks_again(b"\x16\x03\x03\0\x04" + data) in (True, False, None)
    assert data.endswith(tls.second_hello(data))
