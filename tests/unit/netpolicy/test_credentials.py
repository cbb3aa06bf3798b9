import base64
import html
import json
import random
import unicodedata
from ipaddress import IPv4Address
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpolicy.gateway.credentials import BudgetSpent, placeholder, strays, with_credentials
from netpolicy.gateway.http import Head, RequestRefused
from netpolicy.gateway.redact import Needles, Redactor
from netpolicy.gateway.ward import Credentials, Ward
from netpolicy.match import Rules
from netpolicy.policy import parse

SECRET = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=12, max_size=60)


def ward(*inject: dict[str, object], secret: str = "the-secret-value", mark: str = "PLACEHOLDER-1234") -> Ward:
    found = Ward("sbx", IPv4Address("198.19.0.2"), 1)
    policy = parse({"allow": [{"host": "a.test"}], "inject": list(inject)})
    found.guard(Rules(policy), Credentials({"s": secret}, {"KEY": mark}), 1)
    return found


def head(target: str = "/v1/x", method: str = "GET", **headers: str) -> Head:
    names = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Head(method, target, "a.test", [(b"host", b"a.test"), *names])


HEADER = {"host": "a.test", "header": "X-Api-Key", "format": "key {secret}", "secret": "s"}


def test_a_header_replaces_the_clients_own() -> None:
    headers, used = with_credentials(ward(HEADER), head(x_api_key="mine"))
    assert headers == [(b"host", b"a.test"), (b"x-api-key", b"key the-secret-value")]
    assert used == ["s"]


@pytest.mark.parametrize(
    ("target", "method", "given_"),
    [
        ("/v1", "GET", True),
        ("/v1/x?y=/", "GET", True),
        ("/v10", "GET", False),
        ("/", "GET", False),
        ("/v1/x", "POST", False),
    ],
)
def test_by_method_and_path(target: str, method: str, given_: bool) -> None:
    headers, used = with_credentials(ward(HEADER | {"methods": ["get"], "path_prefix": "/v1"}), head(target, method))
    assert bool(used) is given_
    assert (b"x-api-key" in dict(headers)) is given_


@pytest.mark.parametrize("target", [
        "/v1/../x", "/v1/%2e%2e/x", "/v1%2fx", "//v1", "/v1/./x", "/v1\\x", "/v1/..",
        "/v1/..;/x", "/v1/..;a=b/x", "/v1/.;/x", "/v1/;/x", "/v1/%2e%2e%3b/x", "/v1/..%3bx/y",
        "/v1/%252e%252e/x", "/v1/%25252e./x", "/v1/%25%32%65./x", "/v1/%5c..%5cx",
        "/v1/%c0%ae%c0%ae/x", "/v1/..%c0%af../x", "/v1/%e0%80%ae./x", "/v1/%f0%80%80%af", "/v1/%fe%80",
        "/v1/\uff0e\uff0e/x", "/v1/%ef%bc%8e%ef%bc%8e/x", "/v1/..%ef%bc%8fx", "/v1/%e2%80%a5/x", "/v1/%ef%bc%852e",
        "/v1/%00", "/v1/x%00/..", "/v1/%09../x", "/v1/%0d%0a", "/v1/%7f", "/v1/\t../x", "/v1/#/../x", "/v1/%zz", "/v1/%2",
    ],
)  # fmt: skip
def test_a_path_that_can_be_read_in_two_ways_gets_nothing(target: str) -> None:
    with pytest.raises(RequestRefused):
        with_credentials(ward(HEADER | {"path_prefix": "/v1"}), head(target))


@pytest.mark.parametrize(
    "target", ["/v1/a;b=c/d", "/v1/caf%C3%A9", "/v1/a%20b", "/v1/x/?../y=%2e", "/v1/%E2%82%AC", "/v1/~a.b..c/"]
)
def test_a_path_that_can_be_read_in_one_way_gets_the_credential(target: str) -> None:
    _, used = with_credentials(ward(HEADER | {"path_prefix": "/v1"}), head(target))
    assert used == ["s"]


def reading(path: str) -> str:
    """As the most forgiving server reads a path: decodes it again and again, drops parameters, and goes up."""
    for _ in range(4):
        path = unquote_to_bytes(path).replace(b"\xc0\xae", b".").replace(b"\xc0\xaf", b"/").decode("utf-8", "replace")
        path = unicodedata.normalize("NFKC", path)
    path = path.replace("\\", "/").partition("\0")[0]
    up: list[str] = []
    for segment in (segment.partition(";")[0].strip("\t ") for segment in path.split("/")):
        if segment == "..":
            up = up[:-1]
        elif segment not in ("", "."):
            up.append(segment)
    return "/" + "/".join(up)


@settings(max_examples=500)
@given(
    st.lists(
        st.sampled_from(
            ["..", ".", "/", ";", "%2e", "%2F", "%25", "2e", "%c0%ae", "%ef%bc%8e", "\\", "%5c", "%00", "%3b", "a"]
        ),
        max_size=10,
    ).map("".join)
)
def test_no_path_with_a_credential_leads_elsewhere(rest: str) -> None:
    try:
        _, used = with_credentials(ward(HEADER | {"path_prefix": "/v1"}), head("/v1/" + rest))
    except RequestRefused:
        return
    assert used
    assert reading("/v1/" + rest).startswith("/v1")


@pytest.mark.parametrize("name", ["X_HTTP_Method_Override", "x_method_override", "X-HTTP-Method"])
def test_no_header_asks_for_another_method_than_the_one_that_was_checked(name: str) -> None:
    request = head("/v1", "GET", **{name.replace("-", "_").lower(): "DELETE"})
    with pytest.raises(RequestRefused, match="another method"):
        with_credentials(ward(HEADER | {"methods": ["GET"]}), request)
    assert with_credentials(ward(HEADER), request)[1] == ["s"], "where methods do not count"
    underscored = Head("GET", "/v1", "a.test", [(b"host", b"a.test"), (b"x_rewrite_url", b"/admin")])
    with pytest.raises(RequestRefused, match="another path"):
        with_credentials(ward(HEADER | {"path_prefix": "/v1"}), underscored)


def test_a_placeholder_becomes_the_secret_in_any_header() -> None:
    mine = ward({"host": "a.test", "env": "KEY", "secret": "s"})
    basic = base64.b64encode(b"me:PLACEHOLDER-1234").decode()
    headers, used = with_credentials(mine, head(authorization=f"Basic {basic}", x_key="PLACEHOLDER-1234"))
    assert base64.b64decode(dict(headers)[b"authorization"][6:]) == b"me:the-secret-value"
    assert dict(headers)[b"x-key"] == b"the-secret-value"
    assert used == ["s"]
    assert with_credentials(mine, head(authorization="Bearer other")) == (
        head(authorization="Bearer other").headers,
        [],
    )
    assert strays(["PLACEHOLDER-1234"], head(authorization=f"Basic {basic}"))
    assert not strays(["PLACEHOLDER-1234"], head(authorization="Basic ???"))


def test_a_budget_is_spent_request_by_request() -> None:
    mine = ward(HEADER | {"budget": 2})
    for _ in range(2):
        with_credentials(mine, head())
    with pytest.raises(BudgetSpent):
        with_credentials(mine, head())


@given(SECRET)
def test_a_placeholder_looks_like_the_secret_and_is_not_it(secret: str) -> None:
    mark = placeholder(secret)
    assert mark != secret
    assert len(mark) >= min(len(secret), 16)
    assert mark.isprintable()


def test_a_placeholder_has_the_prefix_that_programs_look_for() -> None:
    assert placeholder("sk-proj-" + "x" * 40).startswith("sk-proj-")
    assert placeholder("ghp_" + "x" * 36).startswith("ghp_")
    assert len(placeholder("ghp_" + "x" * 36)) == 40


def json_text(text: str, draw: Any) -> str:
    """In a JSON string, each character that may be escaped escaped or not."""
    short = {'"': '\\"', "\\": "\\\\", "/": "\\/"}
    forms = (
        [f"\\u{ord(c):04x}", f"\\u{ord(c):04X}", *([short[c]] if c in short else []), *([] if c in '"\\' else [c])]
        for c in text
    )
    return "".join(draw(st.sampled_from(form)) for form in forms)


def percent_text(text: str, draw: Any) -> str:
    forms = ([f"%{ord(c):02x}", f"%{ord(c):02X}", *([] if c == "%" else [c])] for c in text)
    return "".join(draw(st.sampled_from(form)) for form in forms)


def html_text(text: str, draw: Any) -> str:
    named = {
        name: f"&{entity};" for entity, name in (("lt", "<"), ("gt", ">"), ("amp", "&"), ("quot", '"'), ("apos", "'"))
    }
    forms = (
        [f"&#{ord(c)};", f"&#{ord(c):03};", f"&#x{ord(c):x};", f"&#X{ord(c):04X};"]
        + ([named[c]] if c in named else [])
        + ([] if c == "&" else [c])
        for c in text
    )
    return "".join(draw(st.sampled_from(form)) for form in forms)


def base64_text(text: str, draw: Any) -> str:
    """In base64 beside whatever stands before and behind it, in one line or in lines."""
    encode = draw(st.sampled_from([base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes]))
    raw = text.encode()
    before = b"\xa5" * draw(st.integers(0, 70))
    encoded = encode(before + raw + b"\xa5" * draw(st.integers(0, 5))).decode()
    style = draw(st.sampled_from(["", "/", "%"]))
    encoded = encoded.replace("/", "\\/") if style == "/" else encoded
    return encoded.replace("+", "%2B").replace("/", "%2f") if style == "%" else encoded


@st.composite
def writings(draw: Any, secret: str) -> bytes:
    """Ways in which honest servers write a secret (docs/policies.md names them)."""
    style = draw(st.sampled_from(["raw", "json", "json2", "percent", "percent2", "html", "html2", "hex", "base64"]))
    text = {
        "raw": lambda: draw(st.sampled_from([secret, secret.upper(), secret.lower()])),
        "json": lambda: json_text(secret, draw),
        "json2": lambda: json.dumps(json_text(secret, draw))[1:-1],
        "percent": lambda: percent_text(secret, draw),
        "percent2": lambda: percent_text(secret, draw).replace("%", "%25"),
        "html": lambda: html_text(secret, draw),
        "html2": lambda: html.escape(html_text(secret, draw), quote=False).replace("&lt;", "<").replace("&gt;", ">"),
        "hex": lambda: draw(st.sampled_from([secret.encode().hex(), secret.encode().hex().upper()])),
        "base64": lambda: base64_text(secret, draw),
    }[style]()
    return text.encode()


@settings(deadline=None)  # patterns are made of each secret
@given(SECRET, st.binary(max_size=80), st.binary(max_size=80), st.lists(st.integers(0, 400), max_size=5), st.data())
def test_no_cut_lets_a_secret_through(
    secret: str, before: bytes, after: bytes, cuts: list[int], data: st.DataObject
) -> None:
    written = data.draw(writings(secret))
    text, redactor, seen, begin = before + written + after, Redactor(Needles([secret])), b"", 0
    for end in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        seen += redactor.feed(text[begin:end])
        begin = end
    seen += redactor.flush()
    assert written.lower() not in seen.lower()
    assert len(seen) == len(text)
    assert redactor.found


@settings(deadline=None)  # patterns are made of each secret
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_what_holds_no_secret_passes_as_it_is(text: bytes, cuts: list[int]) -> None:
    redactor, seen, begin = Redactor(Needles(["a-secret-that-nobody-writes"])), b"", 0
    for end in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        seen += redactor.feed(text[begin:end])
        begin = end
    assert seen + redactor.flush() == text


def test_nothing_is_held_back_without_need() -> None:
    redactor = Redactor(Needles(["sk-abcdefghijkl"]))
    assert redactor.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert redactor.feed(b"data: sk-ab") == b"data: "
    assert redactor.feed(b"out\n") == b"sk-about\n"


@settings(deadline=None)  # patterns are made of each secret
@given(SECRET, st.binary(max_size=5), st.binary(max_size=5))
def test_base64_is_found_at_any_place(secret: str, before: bytes, after: bytes) -> None:
    redactor = Redactor(Needles([secret]))
    redactor.all(base64.b64encode(before + secret.encode() + after))
    assert redactor.found


@settings(deadline=None)
@given(st.integers(49, 400), st.data())
def test_a_long_secret_is_found_to_its_end(size: int, data: st.DataObject) -> None:
    secret = "".join(random.Random(size).choices('abcXYZ019-_./+=<&%"\\', k=size))
    text = b"before " + data.draw(writings(secret)) + b" behind"
    redactor, seen, begin = Redactor(Needles([secret, secret[:60] + "other"])), b"", 0
    for end in [*sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9))), len(text)]:
        seen += redactor.feed(text[begin:end])
        begin = end
    seen += redactor.flush()
    assert redactor.found == 1
    assert len(seen) == len(text)
    assert seen.count(b"*") >= size, "in base64 it is longer"


@pytest.mark.parametrize("end", ["", " behind"])
def test_a_cut_in_front_of_a_lines_end_loses_nothing(end: str) -> None:
    secret = "".join(random.Random(59).choices("abcXYZ019-_./+=<&%", k=120))
    text = base64.encodebytes(b"\xa5" * 69 + secret.encode() + b"\xa5" * 2) + end.encode()
    whole = Redactor(Needles([secret])).all(text)
    assert whole.count(b"*") >= 160 - 4, "its first and last character hold bits of what is beside it"
    for cut in range(len(text)):
        redactor = Redactor(Needles([secret]))
        assert redactor.feed(text[:cut]) + redactor.feed(text[cut:]) + redactor.flush() == whole, cut


def test_of_two_secrets_that_begin_alike_each_is_found_whole() -> None:
    first, second = "k" * 60 + "-first-end", "k" * 60 + "-other-end"
    for secret in (first, second):
        assert Redactor(Needles([first, second])).all(f"<{secret}>".encode()) == b"<" + b"*" * len(secret) + b">"
