from hypothesis import given
from hypothesis import strategies as st

from isolation.connections import Listener, listening
from sandbox_api.proxy.headers import request_headers, response_headers, subprotocols

PREFIX = "/v1/sandboxes/sbx1/ports/8000"


def passed_in(*headers: tuple[bytes, bytes]) -> dict[bytes, bytes]:
    return dict(request_headers([*headers], port=8000, prefix=PREFIX, scheme="http", client="10.0.0.9"))


def passed_out(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return response_headers([*headers], port=8000, prefix=PREFIX)


def test_the_key_never_goes_in() -> None:
    seen = passed_in(
        (b"authorization", b"Bearer isobox_secret"),
        (b"x-isobox-forward-authorization", b"Basic own"),
        (b"host", b"api.example"),
        (b"x-forwarded-for", b"forged"),
        (b"accept", b"*/*"),
    )
    assert seen == {
        b"host": b"localhost:8000",
        b"accept": b"*/*",
        b"authorization": b"Basic own",
        b"x-forwarded-for": b"10.0.0.9",
        b"x-forwarded-host": b"api.example",
        b"x-forwarded-proto": b"http",
        b"x-forwarded-prefix": PREFIX.encode(),
    }
    assert subprotocols(["isobox.key.isobox_secret", "chat"], key_prefix="isobox.key.") == ["chat"]


def test_what_is_for_the_next_hop_stays_there() -> None:
    hop = [
        (b"connection", b"close, X-Private"),
        (b"x-private", b"1"),
        (b"te", b"trailers"),
        (b"upgrade", b"h2c"),
        (b"keep-alive", b"5"),
    ]
    assert not {name for name, _ in hop} & set(passed_in(*hop))
    assert not {name for name, _ in hop} & {name for name, _ in passed_out(*hop)}


def test_a_page_gets_an_origin_of_its_own() -> None:
    policies = [
        value
        for name, value in passed_out((b"content-security-policy", b"default-src 'self'"))
        if name == b"content-security-policy"
    ]
    assert policies[0].startswith(b"sandbox ")
    assert b"allow-same-origin" not in policies[0]
    assert policies[1] == b"default-src 'self'"
    assert {
        name
        for name, _ in passed_out(
            (b"strict-transport-security", b"x"), (b"clear-site-data", b"*"), (b"service-worker-allowed", b"/")
        )
    } == {
        b"content-security-policy",
        b"x-content-type-options",
    }


def test_cookies_and_redirects_stay_within_the_port() -> None:
    def cookie(value: bytes) -> bytes:
        return dict(passed_out((b"set-cookie", value)))[b"set-cookie"]

    assert (
        cookie(b"a=b; Domain=example.com; Path=/app; HttpOnly") == b"a=b; HttpOnly; Path=" + PREFIX.encode() + b"/app"
    )
    assert cookie(b"a=b") == b"a=b; Path=" + PREFIX.encode() + b"/"

    def location(value: bytes) -> bytes:
        return dict(passed_out((b"location", value)))[b"location"]

    assert location(b"/login") == PREFIX.encode() + b"/login"
    assert location(b"http://localhost:8000/x") == PREFIX.encode() + b"/x"
    assert location(b"next") == b"next"
    assert location(b"https://elsewhere.example/") == b"https://elsewhere.example/"
    assert location(b"//elsewhere.example/") == b"//elsewhere.example/"


names = st.sampled_from(
    [
        b"Authorization",
        b"AUTHORIZATION",
        b"Connection",
        b"Content-Security-Policy",
        b"X-Any",
        b"Set-Cookie",
        b"Location",
    ]
)


@given(st.lists(st.tuples(names, st.binary(max_size=20)), max_size=8))
def test_whatever_the_headers_the_key_stays_and_the_page_is_sandboxed(headers: list[tuple[bytes, bytes]]) -> None:
    inward = request_headers(headers, port=1, prefix="/p", scheme="http", client="")
    assert not [name for name, _ in inward if name.lower() in (b"authorization", b"connection")]
    outward = response_headers(headers, port=1, prefix="/p")
    assert outward.count((b"content-security-policy", outward[-2][1])) or True
    assert any(name == b"content-security-policy" and value.startswith(b"sandbox ") for name, value in outward)


PROC = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 7 1 0 0 0 0 0 0
   1: 0100007F:1F40 0100007F:C000 01 00000000:00000000 00:00000000 00000000  1000        0 8 1 0 0 0 0 0 0
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9 1 0 0 0 0 0 0
   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:0 0 0 0 9
"""


def test_listeners_are_read() -> None:
    assert listening(PROC) == [Listener(22, "0.0.0.0"), Listener(80, "::1"), Listener(8000, "127.0.0.1")]


@given(st.text())
def test_noise_is_no_listener(text: str) -> None:
    assert all(0 <= each.port <= 65535 for each in listening(text))
