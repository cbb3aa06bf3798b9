from ipaddress import IPv4Network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy import nft, presets
from netpolicy.errors import PolicyInvalid
from netpolicy.floor import Floor
from netpolicy.match import Rules
from netpolicy.network import host_resolvers
from netpolicy.plan import PROBE_TAG, Place, choose_tag, shares, tag_of
from netpolicy.policy import in_ports, merged, parse

RANGES = st.lists(
    st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(sorted).map(tuple), min_size=1, max_size=8
)
PLACE = Place("ab12", IPv4Network("198.19.4.0/22"))


@given(RANGES, RANGES, st.integers(1, 65535))
def test_ports_of_several_rules_are_their_union(
    first: list[tuple[int, int]], second: list[tuple[int, int]], port: int
) -> None:
    both = merged(tuple(first), tuple(second))
    assert both is not None
    assert in_ports(both, port) == (in_ports(tuple(first), port) or in_ports(tuple(second), port))
    assert all(high + 1 < low for (_, high), (low, _) in pairwise(both)), "apart, so that a set takes them"


def test_every_port_is_every_port() -> None:
    assert merged(((80, 80),), ()) == ()
    assert merged() is None


def test_names_fit_into_what_the_kernel_allows() -> None:
    assert len(PLACE.device(PLACE.capacity - 1)) <= 15
    assert PLACE.address(PLACE.capacity - 1) in PLACE.share
    assert PLACE.gateway not in {PLACE.address(n) for n in range(PLACE.capacity)}
    assert PLACE.nowhere not in {PLACE.address(n) for n in range(PLACE.capacity)} | {PLACE.gateway}
    assert len({tag_of(Path(f"/var/lib/{n}")) for n in range(20)}) > 18
    assert len(shares(IPv4Network("198.19.0.0/16"))) == 64
    assert shares(IPv4Network("198.19.0.0/24")) == [IPv4Network("198.19.0.0/24")]


@given(st.sets(st.from_regex(r"[0-9a-f]{4}", fullmatch=True), max_size=40), st.sets(st.integers(1, 65000), max_size=40))
def test_a_tag_shares_nothing_with_another(taken: set[str], groups: set[int]) -> None:
    first = tag_of(Path("/var/lib/isobox"))
    taken |= {first}  # one in 65,536: another directory has the same
    tag = choose_tag(Path("/var/lib/isobox"), taken, groups)
    assert tag is not None
    mine = Place(tag, PLACE.share)
    for other in (Place(each, PLACE.share) for each in (*taken, PROBE_TAG)):
        assert mine.table != other.table
        assert mine.gateway_uid != other.gateway_uid, "rules tell gateways apart by it"
        assert mine.log_group != other.log_group
    assert mine.log_group not in groups
    assert choose_tag(Path("/var/lib/isobox"), ()) == first


def test_the_rules_tell_whose_they_are() -> None:
    owner = "own" + "a2" * 13
    assert f'comment "{nft.OWNED}{owner}"' in nft.base(Place("ab12", PLACE.share, owner), Floor(), [])
    assert nft.OWNED not in nft.base(PLACE, Floor(), [])


def test_nothing_of_a_policy_reaches_the_rules_but_numbers() -> None:
    policy = parse(
        {"allow": [{"host": "secret.example.com", "ports": [8443]}, {"cidr": "203.0.113.0/24", "ports": [5432]}]}
    )
    text = nft.policy(PLACE, 3, Rules(policy), had_quota=False)
    assert "secret" not in text
    assert "8443" in text
    assert "203.0.113.0/24" in text


def test_a_closed_policy_lets_questions_through_and_nothing_else() -> None:
    text = nft.policy(PLACE, 3, Rules(parse({})), had_quota=False)
    assert [line for line in text.splitlines() if "accept" in line or "goto o_" in line] == [
        "add rule ip isobox_ab12 p_3 ip daddr 198.19.4.1 meta l4proto { tcp, udp } th dport 53 accept"
    ]


def test_what_is_refused_is_logged_at_a_bounded_rate() -> None:
    limits = {"connections": 9, "new_connections_per_s": 5, "tx_bytes": 1 << 20}
    rules = Rules(parse({"allow": [{"cidr": "203.0.113.0/24"}], "limits": limits}))
    text = nft.slot(PLACE, 3) + nft.policy(PLACE, 3, rules, had_quota=False)
    logs = [line for line in text.splitlines() if " log prefix " in line and nft.OPENED not in line]
    assert len(logs) == 5
    assert all(" limit " in line for line in logs)


def test_a_floods_questions_end_in_the_kernel() -> None:
    for policy in ({}, {"allow": [{"cidr": "203.0.113.0/24"}]}):
        text = nft.policy(PLACE, 3, Rules(parse(policy | {"limits": {"dns_per_s": 7}})), had_quota=False)
        rules = [line.partition(" p_3 ")[2] for line in text.splitlines() if "dport 53" in line]
        assert rules[1] == "ip daddr 198.19.4.1 udp dport 53 limit rate over 114/second burst 114 packets drop"
        assert rules[-1].endswith("th dport 53 accept"), "and then the rest is let through"


def test_resolvers_of_the_host() -> None:
    text = "# x\nnameserver 192.0.2.53\nnameserver ::1\n  nameserver 192.0.2.54 \nsearch a.test\n"
    assert host_resolvers(text) == (("192.0.2.53", 53), ("192.0.2.54", 53))


def test_indexes_of_pip() -> None:
    files = [
        "[global]\nindex-url = https://one.test/simple\nextra-index-url = https://two.test:8443/x\n  file:///srv\n",
        "no ini",
    ]
    found = presets.pip_indexes(files, {"PIP_INDEX_URL": "http://three.test/simple"})
    policy = presets.from_urls(found)
    assert policy == parse(
        {
            "allow": [
                {"host": "one.test", "ports": [443]},
                {"host": "three.test", "ports": [80]},
                {"host": "two.test", "ports": [8443]},
            ]
        }
    )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"none": {}}', '{"x": {"allow": [{"host": "*"}]}}'])
def test_presets_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "presets.json").write_text(text)
    with pytest.raises(PolicyInvalid, match=r"preset"):
        presets.load(tmp_path / "presets.json")


def test_presets_of_an_operator(tmp_path: Path) -> None:
    (tmp_path / "presets.json").write_text('{"models": {"allow": [{"host": "api.test"}]}}')
    assert presets.load(tmp_path / "presets.json") == {"models": parse({"allow": [{"host": "api.test"}]})}
