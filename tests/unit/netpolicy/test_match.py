from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.floor import FLOOR, Floor
from netpolicy.match import Rules, hint
from netpolicy.policy import parse

OPEN = parse({"default": "allow", "allow": [{"cidr": "0.0.0.0/0"}, {"cidr": "0.0.0.0/0", "proto": "udp"}]})
ADDRESS = st.integers(0, 2**32 - 1).map(IPv4Address)
PORT = st.integers(1, 65535)


@given(st.sampled_from(FLOOR), st.integers(0, 2**32 - 1), PORT, st.sampled_from(["tcp", "udp"]))
def test_no_policy_opens_the_floor(network: IPv4Network, offset: int, port: int, proto: str) -> None:
    address = network[offset % network.num_addresses]
    assert Rules(OPEN).address(address, proto, port).rule == "floor"  # type: ignore[arg-type]


def test_a_hole_is_the_operators_and_never_the_sandboxes_own_block() -> None:
    floor = Floor(holes=(IPv4Network("198.18.0.0/15"),), block=IPv4Network("198.19.0.0/16"))
    assert Rules(OPEN, floor).address(IPv4Address("198.18.1.1"), "tcp", 80).allowed
    assert Rules(OPEN, floor).address(IPv4Address("198.19.1.1"), "tcp", 80).rule == "floor"
    assert not Rules(parse({}), floor).address(IPv4Address("198.18.1.1"), "tcp", 80).allowed


@given(ADDRESS, PORT)
def test_the_operators_deny_comes_before_all_but_the_floor(address: IPv4Address, port: int) -> None:
    operator = parse({"deny": [{"cidr": "0.0.0.0/0"}, {"host": "a.test"}]}).deny
    rules = Rules(OPEN, Floor(), operator)
    assert rules.address(address, "tcp", port).rule in ("floor", "operator")
    assert rules.host("a.test", port).rule == "operator"


@given(ADDRESS, PORT)
def test_deny_comes_before_allow(address: IPv4Address, port: int) -> None:
    policy = parse(
        {"allow": [{"cidr": "0.0.0.0/0"}, {"host": "a.test"}], "deny": [{"cidr": f"{address}/32"}, {"host": "a.test"}]}
    )
    rules = Rules(policy)
    assert not rules.address(address, "tcp", port).allowed
    assert not rules.host("a.test", port).allowed
    assert not rules.name("a.test").allowed


def test_a_name_resolves_if_any_port_of_it_may_be_reached() -> None:
    rules = Rules(
        parse(
            {
                "allow": [{"host": "a.test", "ports": [5432]}, {"host": "*.wild.example"}],
                "deny": [{"host": "b.wild.example", "ports": [80]}],
            }
        )
    )
    assert rules.name("a.test").allowed
    assert not rules.host("a.test", 443).allowed
    assert "other ports" in rules.host("a.test", 443).reason
    assert rules.name("b.wild.example").allowed
    assert not rules.host("b.wild.example", 80).allowed
    assert rules.host("b.wild.example", 443).allowed
    assert not rules.name("wild.example").allowed


@pytest.mark.parametrize("port", [53, 853])
def test_open_by_default_has_no_other_resolvers(port: int) -> None:
    rules = Rules(parse({"default": "allow"}))
    assert rules.address(IPv4Address("8.8.8.8"), "tcp", port).rule == "bypass"
    assert rules.address(IPv4Address("8.8.8.8"), "tcp", 443).allowed
    explicit = Rules(parse({"default": "allow", "allow": [{"cidr": "8.8.8.8", "ports": [port]}]}))
    assert explicit.address(IPv4Address("8.8.8.8"), "tcp", port).allowed


def test_a_refusal_says_what_to_ask_for() -> None:
    verdict = Rules(parse({})).host("a.test", 8443)
    assert hint("a.test", 8443, named=True, verdict=verdict).count('{"host": "a.test", "ports": [8443]}') == 1
    verdict = Rules(parse({})).address(IPv4Address("1.2.3.4"), "tcp", 22)
    assert '{"cidr": "1.2.3.4/32", "ports": [22]}' in hint("1.2.3.4", 22, named=False, verdict=verdict)
