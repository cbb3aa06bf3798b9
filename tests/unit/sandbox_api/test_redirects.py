from urllib.parse import unquote, urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_api.proxy.redirects import refresh, relocated

PREFIX = b"/v1/sandboxes/sbx1/ports/8000"


def told(location: bytes, path: bytes = b"/a/b?q=/x") -> bytes:
    return relocated(location, port=8000, prefix=PREFIX, host=b"api.example:8700", path=path)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"/login", PREFIX + b"/login"),
        (b"/", PREFIX + b"/"),
        (b"http://localhost:8000/x?y#z", PREFIX + b"/x?y#z"),
        (b"http://127.0.0.1:8000", PREFIX + b"/"),
        (b"http://localhost:8000?y", PREFIX + b"/?y"),
        (b"next", b"next"),
        (b"?page=2", b"?page=2"),
        (b"#end", b"#end"),
        (b"", b""),
        (PREFIX + b"/login", PREFIX + b"/login"),  # it heeds X-Forwarded-Prefix
        (b"http://api.example:8700" + PREFIX + b"/x", PREFIX + b"/x"),  # and X-Forwarded-Host
        (b"https://elsewhere.example/", b"https://elsewhere.example/"),
        (b"//elsewhere.example/", b"//elsewhere.example/"),
        (b"mailto:a@example.com", b"mailto:a@example.com"),
        # towards the API:
        (b"http://api.example:8700/v1/sandboxes/sbx1", PREFIX + b"/v1/sandboxes/sbx1"),
        (b"HTTP://x@API.example:8700/v1", PREFIX + b"/v1"),
        (b"//api.example:8700/v1", PREFIX + b"/v1"),
        (b"http:/v1/secrets", PREFIX + b"/v1/secrets"),
        (b"http:v1/secrets", b"v1/secrets"),
        (b"\\v1\\secrets", PREFIX + b"/v1/secrets"),
        (b"\t/\tv1", PREFIX + b"/v1"),
        (b"../../../../../v1/secrets", PREFIX + b"/v1/secrets"),
        (b"..", PREFIX + b"/"),
        (b"./c", PREFIX + b"/a/c"),
        (b"%2e%2E/.%2e/secrets", PREFIX + b"/secrets"),
        (PREFIX + b"/../../../../secrets", PREFIX + b"/secrets"),
        (b"http:\\\\api.example:8700\\v1", PREFIX + b"/v1"),
        (b"///", PREFIX + b"/"),
        (b"http:///v1", b"http://v1"),  # as browsers read it
        (b"http://api.example:08700/v1", PREFIX + b"/v1"),
        (b"http://api%2eexample:8700/v1", PREFIX + b"/v1"),
        ("http://api。example:8700/v1".encode(), PREFIX + b"/v1"),
        (b"http://0x7f.1:8700/v1", PREFIX + b"/v1"),
        (b"http://elsewhere.example\\@api.example:8700/v1", b"http://elsewhere.example/@api.example:8700/v1"),
        (b"http://user@elsewhere.example:8080/x", b"http://user@elsewhere.example:8080/x"),
        (b"http://[2001:db8::1]:80/x", b"http://[2001:db8::1]:80/x"),
    ],
)
def test_a_redirect_within_the_origin_stays_within_the_port(location: bytes, expected: bytes) -> None:
    assert told(location) == expected


def test_the_api_s_address_is_known_however_it_is_written() -> None:
    for host, location in (
        (b"[::1]:8700", b"http://[0:0:0:0:0:0:0:1]:8700/v1"),
        (b"127.0.0.1:8700", b"http://127.0.0.1:8700/v1"),
        (b"api.example", b"https://api.example:443/v1"),
        (b"api.example:80", b"http://API.example/v1"),
    ):
        assert relocated(location, port=8000, prefix=PREFIX, host=host, path=b"/") == PREFIX + b"/v1"


def test_beside_the_prefix_is_another_port() -> None:
    assert told(b"9000/x", path=b"") == PREFIX + b"/9000/x"
    assert told(b"9000/x", path=b"/") == b"9000/x"


def test_a_refresh_is_a_redirect() -> None:
    def shown(value: bytes) -> bytes:
        return refresh(value, port=8000, prefix=PREFIX, host=b"api.example", path=b"/")

    assert shown(b"5; url=/x") == b"5; url=" + PREFIX + b"/x"
    assert shown(b"0;URL='/x'") == b"0;URL=" + PREFIX + b"/x"
    assert shown(b"5") == b"5"
    assert shown(b"5; url=https://elsewhere.example/") == b"5; url=https://elsewhere.example/"


def test_a_name_that_could_be_a_scheme_stays_a_name() -> None:
    assert told(b"http:http:/", b"/") == PREFIX + b"/http:/"
    assert told(b"https:javascript:alert(1)", b"/a/b") == PREFIX + b"/a/javascript:alert(1)"


parts = st.sampled_from(
    ["/", "\\", "..", ".", "%2e", "%2E.", "v1", "http:", "https:", "//", "api.example", ":8700", "localhost:8000", "@", "?", "#", " ", "\t", "\n", "é", PREFIX.decode()]
)  # fmt: skip


@given(st.lists(parts, max_size=8).map("".join), st.sampled_from(["/", "/a", "/a/b", "/a/b/", "/%2e%2e/x", "?q"]))
def test_whatever_the_location_a_client_does_not_come_to_the_api(location: str, path: str) -> None:
    shown = told(location.encode(), path.encode()).decode()
    # As a browser reads it: backslashes are slashes, escaped dots are dots, the scheme's slashes may be few or many.
    read = unquote(shown).replace("\\", "/")
    goes_to = urlsplit(urljoin(f"http://api.example:8700{PREFIX.decode()}{path}", read))
    if goes_to.hostname == "api.example" and goes_to.port == 8700 and "%" not in path:
        assert goes_to.path.startswith((PREFIX.decode() + "/", PREFIX.decode())), (shown, goes_to)
