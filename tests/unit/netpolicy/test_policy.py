from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.errors import PolicyInvalid
from netpolicy.policy import CLOSED, HostRule, document, in_ports, joined, parse

PORT = st.integers(1, 65535)
RANGE = st.tuples(PORT, PORT).map(lambda pair: f"{min(pair)}-{max(pair)}")
PORTS = st.lists(PORT | RANGE, max_size=4)
HOST = st.sampled_from(["a.example.com", "*.example.org", "b.test", "xn--bcher-kva.example"])
CIDR = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda pair: (
        f"{'.'.join(str((pair[0] >> (32 - pair[1]) << (32 - pair[1])) >> s & 255) for s in (24, 16, 8, 0))}/{pair[1]}"
    )
)
RULE = st.fixed_dictionaries({"host": HOST, "ports": PORTS}) | st.fixed_dictionaries(
    {"cidr": CIDR, "ports": PORTS}, optional={"proto": st.sampled_from(["tcp", "udp"])}
)
COUNT = st.integers(1, 1 << 40)
INJECTION = st.fixed_dictionaries({"host": st.just("b.test"), "secret": st.just("s"), "header": st.just("X-Key")})
DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "default": st.sampled_from(["allow", "deny"]),
        "allow": st.lists(RULE, max_size=5),
        "deny": st.lists(RULE, max_size=5),
        "inject": st.lists(INJECTION, max_size=2),
        "limits": st.fixed_dictionaries({}, optional={"tx_bytes": COUNT, "connections": COUNT, "dns_per_s": COUNT}),
    },
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["allow", "host", "cidr", "ports", "x"]), inner)
    ),
    max_leaves=10,
)


@given(DOCUMENT)
def test_a_policy_says_what_its_document_says(found: dict[str, Any]) -> None:
    policy = parse(found)
    assert parse(document(policy)) == policy
    assert document(parse(document(policy))) == document(policy)


@given(JUNK, st.sampled_from(["", "allow", "deny", "inject", "limits", "default"]))
def test_whatever_comes_is_a_policy_or_refused(junk: Any, place: str) -> None:
    try:
        parse({place: junk} if place else junk)
    except PolicyInvalid as error:
        assert error.detail


@given(st.lists(st.tuples(PORT, PORT).map(sorted).map(tuple), max_size=4), PORT)
def test_ports_are_ranges_or_all(ranges: list[tuple[int, int]], port: int) -> None:
    expected = not ranges or any(low <= port <= high for low, high in ranges)
    assert in_ports(tuple(ranges), port) is expected


def test_defaults() -> None:
    policy = parse({"allow": [{"host": "a.test"}], "deny": [{"host": "b.test"}, {"cidr": "1.0.0.0/8"}]})
    assert policy.default == "deny"
    assert isinstance(policy.allow[0], HostRule)
    assert policy.allow[0].ports == ((80, 80), (443, 443))
    assert policy.deny[0].ports == ()
    assert policy.deny[1].protos == ("tcp", "udp")  # type: ignore[union-attr]
    assert parse({}) == CLOSED
    assert CLOSED.closed


def test_two_policies_together() -> None:
    first = parse({"allow": [{"host": "a.test"}], "limits": {"connections": 5, "tx_bytes": 9}})
    second = parse({"deny": [{"host": "b.test"}], "limits": {"connections": 7}})
    both = joined(first, second)
    assert (both.allow, both.deny) == (first.allow, second.deny)
    assert (both.limits.connections, both.limits.tx_bytes) == (7, 9)
    key = {"host": "a.test", "env": "KEY", "secret": "s"}
    with pytest.raises(PolicyInvalid):
        joined(parse({"inject": [key]}), parse({"inject": [key]}))
