import pytest

from sandbox_api.proxy.headers import response_headers

PREFIX = "/v1/sandboxes/sbx1/ports/8000"
ALWAYS = {b"content-security-policy", b"x-content-type-options"}


def passed(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return response_headers([*headers], port=8000, prefix=PREFIX, host=b"api.example", path=b"/")


@pytest.mark.parametrize(
    "name",
    [
        b"Strict-Transport-Security", b"Public-Key-Pins", b"Public-Key-Pins-Report-Only", b"Clear-Site-Data", b"Service-Worker-Allowed", b"Alt-Svc",
        b"Alternate-Protocol", b"Expect-CT", b"NEL", b"Report-To", b"Reporting-Endpoints", b"Accept-CH", b"Critical-CH", b"Origin-Agent-Cluster", b"Set-Cookie2",
        b"Set-Login", b"Shared-Storage-Write", b"Observe-Browsing-Topics", b"Activate-Storage-Access", b"Use-As-Dictionary", b"WWW-Authenticate",
        b"Attribution-Reporting-Register-Source", b"Ad-Auction-Result", b"Sec-Session-Registration", b"Secure-Session-Registration", b"Upgrade",
        b"X-Accel-Redirect", b"X-Accel-Expires", b"X-Sendfile", b"X-Lighttpd-Send-File", b"X-LiteSpeed-Location", b"X-Reproxy-URL", b"X-Request-Id",
    ],
)  # fmt: skip
def test_what_binds_the_origin_or_orders_a_server_stays_inside(name: bytes) -> None:
    for written in (name, name.upper(), name.lower()):
        assert {passed_name for passed_name, _ in passed((written, b"max-age=1"))} == ALWAYS


@pytest.mark.parametrize(
    "name",
    [
        b"access-control-allow-origin", b"cache-control", b"content-disposition", b"content-type", b"cross-origin-opener-policy", b"etag", b"link", b"permissions-policy",
        b"vary", b"x-accel-buffering", b"x-frame-options",
    ],
)  # fmt: skip
def test_what_acts_on_the_answer_alone_passes(name: bytes) -> None:
    assert (name, b"value") in passed((name, b"value"))


@pytest.mark.parametrize(
    "cookie",
    [
        b"a=b; Domain=example", b"a=b; domain = .example", b"a=b;DOMAIN\t=example", b"a=b; Path=/", b"a=b; Path =/; path=/x", b"a=b; Path=/; Domain=example; Path=/",
        b"a=b; Path", b"a=b; Path=", b"=b; ; ;Path=x",
    ],
)  # fmt: skip
def test_a_cookie_goes_to_its_port_alone(cookie: bytes) -> None:
    value = dict(passed((b"Set-Cookie", cookie)))[b"set-cookie"]
    attributes = [part.strip().partition(b"=")[0].strip().lower() for part in value.split(b";")[1:]]
    assert b"domain" not in attributes
    assert attributes.count(b"path") == 1
    assert value.rpartition(b"; Path=")[2].startswith(PREFIX.encode() + b"/")
