import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.gateway import http
from netpolicy.gateway.http import Head, RequestRefused, Requests


def through(data: bytes, *cuts: int, port: int = 80) -> tuple[bytes, list[Head]]:
    heads: list[Head] = []

    def check(head: Head) -> http.Headers:
        heads.append(head)
        return head.headers

    parser, passed, begin = Requests(port, check), b"", 0
    for end in [*sorted(cuts), len(data)]:
        passed += parser.feed(data[begin:end]) if end > begin else b""
        begin = end
    return passed, heads


TWO = (
    b"POST /a?b HTTP/1.1\r\nHost: A.test\r\nContent-Length: 5\r\n\r\nhello"
    b"PUT /c HTTP/1.1\r\nhost: a.test:80\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    b"GET http://a.test/d HTTP/1.1\r\nHost: a.test\r\nX: y\r\n\r\n"
)


@given(st.lists(st.integers(0, len(TWO)), max_size=6))
def test_requests_mean_the_same_wherever_they_are_cut(cuts: list[int]) -> None:
    passed, heads = through(TWO, *cuts)
    assert [(head.method, head.target, head.host) for head in heads] == [
        ("POST", "/a?b", "a.test"),
        ("PUT", "/c", "a.test"),
        ("GET", "/d", "a.test"),
    ]
    again, same = through(passed)
    assert [(head.method, head.target, head.host) for head in same] == [(h.method, h.target, h.host) for h in heads]
    assert b"hello" in again


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test:81\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 1.2.3\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        b"GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET http://b.test@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a.test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\nX: " + b"x" * 20000 + b"\r\n\r\n",
        b"\x16\x03\x01\x00\x05\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\nGET / HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ],
)
def test_what_does_not_go_on(data: bytes) -> None:
    with pytest.raises(RequestRefused):
        through(data, 17000)


@given(st.binary(max_size=300))
def test_any_bytes_go_on_as_requests_or_not_at_all(data: bytes) -> None:
    try:
        passed, heads = through(data)
    except RequestRefused:
        return
    assert heads or not passed


def test_an_upgrade_keeps_what_follows_apart() -> None:
    parser = Requests(80, lambda head: head.headers)
    passed = parser.feed(
        b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00"
    )
    assert parser.upgrading
    assert passed.endswith(b"\r\n\r\n")
    assert parser.rest == b"\x81\x00"


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
        b"Connection: upgrade\r\nUpgrade: HTTP/2.0\r\n",
    ],
)
def test_nobody_asks_for_a_protocol_that_would_bring_unseen_requests(upgrade: bytes) -> None:
    two = b"GET /1 HTTP/1.1\r\nHost: a.test\r\n" + upgrade + b"\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n"
    passed, heads = through(two)
    assert [head.target for head in heads] == ["/1", "/2"], "it goes on as HTTP/1.1"
    assert b"upgrade" not in passed.lower()
    assert b"http2" not in passed.lower()


@pytest.mark.parametrize("method", [b"CONNECT", b"connect", b"Connect"])
def test_no_request_opens_a_tunnel(method: bytes) -> None:
    with pytest.raises(RequestRefused):
        through(method + b" a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", port=443)
