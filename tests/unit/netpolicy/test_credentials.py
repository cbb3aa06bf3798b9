import base64
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.gateway.credentials import BudgetSpent, placeholder, strays, with_credentials
from netpolicy.gateway.http import Head, RequestRefused
from netpolicy.gateway.redact import Redactor, encodings
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


@pytest.mark.parametrize("target", ["/v1/../x", "/v1/%2e%2e/x", "/v1%2fx", "//v1", "/v1/./x", "/v1\\x", "/v1/.."])
def test_a_path_that_can_be_read_in_two_ways_gets_nothing(target: str) -> None:
    with pytest.raises(RequestRefused):
        with_credentials(ward(HEADER | {"path_prefix": "/v1"}), head(target))


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


@given(SECRET, st.binary(max_size=80), st.binary(max_size=80), st.lists(st.integers(0, 400), max_size=5), st.data())
def test_no_cut_lets_a_secret_through(
    secret: str, before: bytes, after: bytes, cuts: list[int], data: st.DataObject
) -> None:
    written = data.draw(st.sampled_from(sorted(encodings(secret))))
    text, redactor, seen, begin = before + written + after, Redactor([secret]), b"", 0
    for end in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        seen += redactor.feed(text[begin:end])
        begin = end
    seen += redactor.flush()
    assert written not in seen
    assert len(seen) == len(text)
    assert redactor.found


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_what_holds_no_secret_passes_as_it_is(text: bytes, cuts: list[int]) -> None:
    redactor, seen, begin = Redactor(["a-secret-that-nobody-writes"]), b"", 0
    for end in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        seen += redactor.feed(text[begin:end])
        begin = end
    assert seen + redactor.flush() == text


def test_nothing_is_held_back_without_need() -> None:
    redactor = Redactor(["sk-abcdefghijkl"])
    assert redactor.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert redactor.feed(b"data: sk-ab") == b"data: "
    assert redactor.feed(b"out\n") == b"sk-about\n"


@given(SECRET, st.binary(max_size=5), st.binary(max_size=5))
def test_base64_is_found_at_any_place(secret: str, before: bytes, after: bytes) -> None:
    redactor = Redactor([secret])
    redactor.all(base64.b64encode(before + secret.encode() + after))
    assert redactor.found
