"""The kernel's rules, as nftables reads them. No I/O: text in one transaction each (`nftables.py` applies it).

Per slot N four chains: `p_N` decides (floor, operator, tenant, allow, default), `o_N` holds what is allowed to its
limits and lets it pass, `no_N` writes a refusal to the log group and answers it, `in_N`/`out_N` rewrite addresses on
the link. Every packet of a guest's meets `p_N`, those of established connections too: what a rule no longer allows
stops at once. Refused TCP is reset, so that the program learns of it (and no SYN is retried into a checkpoint); the
rest is dropped.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Final

from common import addresses
from netpolicy.floor import FLOOR, Floor
from netpolicy.match import BYPASSES, Rules
from netpolicy.plan import (
    BEYOND,
    DNS_PORT,
    FORWARD,
    PROXY,
    PROXY_PORT,
    Place,
)
from netpolicy.policy import DNS_PER_S, CidrRule, Limits, Ports, Proto, merged

OPENED: Final = "isobox open"
REFUSED: Final = "isobox refused"
LIMITED: Final = "isobox limit "
SPOOFED: Final = "isobox spoof"
OWNED: Final = "isobox owner "
_SNAP: Final = 64
_LOGGED_PER_S: Final = 200
_AFTER_SRCNAT: Final = 300
"""What still has an inner address here was not translated, and must not leave the machine."""
_QUESTION_MAX: Final = 1240
"""Bytes of a question with its UDP header: longer ones would fill the resolver's queue for all."""
_QUESTIONS_MORE: Final = 100
_STREAMS_PER_S: Final = 50


def base(place: Place, floor: Floor, resolvers: Sequence[IPv4Address]) -> str:
    """The tables with what all slots share; whatever was in them is gone."""
    t, gateway, ours = place.table, place.gateway, f'"{place.devices}"'
    whose = f' comment "{OWNED}{place.owner}"' if place.owner else ""
    holes = _elements(floor.holes)
    resolving = _elements(IPv4Network(each) for each in resolvers)
    return f"""\
table ip {t} {{}}
delete table ip {t}
table netdev {t} {{}}
delete table netdev {t}
table netdev {t} {{
}}
table ip {t} {{
  set floor {{
    type ipv4_addr; flags interval
    elements = {_elements(FLOOR)}
  }}
  set holes {{
    type ipv4_addr; flags interval
    {f"elements = {holes}" if holes else ""}
  }}
  set resolvers {{
    type ipv4_addr; flags interval
    {f"elements = {resolving}" if resolving else ""}
  }}
  map slots {{
    type ipv4_addr : verdict
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    drop
  }}
  chain prerouting {{
    type filter hook prerouting priority mangle; policy accept
    iifname {ours} ip saddr vmap @slots
    iifname {ours} drop
  }}
  chain to_gateway {{
    type nat hook prerouting priority dstnat; policy accept
    iifname {ours} meta mark {PROXY:#x} meta l4proto tcp dnat to {gateway}:{PROXY_PORT}{whose}
  }}
  chain inbound {{
    type filter hook input priority filter; policy accept
    iifname != {ours} return
    ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport {DNS_PORT} accept
    meta mark {PROXY:#x} ct status dnat accept
    meta mark {FORWARD:#x} ip daddr @holes accept
    drop
  }}
  chain through {{
    type filter hook forward priority filter; policy accept
    iifname {ours} oifname {ours} drop
    iifname {ours} meta mark != {FORWARD:#x} drop
    oifname {ours} ct direction original drop
    oifname {ours} ct state {{ invalid, untracked }} drop
    iifname {ours} tcp flags syn tcp option maxseg size set rt mtu
    oifname {ours} tcp flags syn tcp option maxseg size set rt mtu
  }}
  chain outbound {{
    type filter hook output priority filter; policy accept
    oifname {ours} ct direction original drop
    meta skuid {place.gateway_uid} ct direction original jump from_gateway
  }}
  chain from_gateway {{
    ip daddr @resolvers th dport {DNS_PORT} accept
    ip daddr @holes accept
    ip daddr @floor reject
    fib daddr type local reject
  }}
  chain outward {{
    type nat hook postrouting priority srcnat; policy accept
    ip saddr {place.share} ip saddr != {gateway} oifname != {ours} masquerade
  }}
  chain outermost {{
    type filter hook postrouting priority {_AFTER_SRCNAT}; policy accept
    ip saddr {place.share} oifname != {ours} oifname != "lo" drop
  }}
}}
"""


def removed(place: Place) -> str:
    """Nothing is left of the tables."""
    return "".join(
        f"table {family} {place.table} {{}}\ndelete table {family} {place.table}\n" for family in ("ip", "netdev")
    )


def slot(place: Place, number: int) -> str:
    """A slot's chains, closed: its link exists by now."""
    t, own, device, group = place.table, place.address(number), place.device(number), place.log_group
    guest, gateway, decide = f"ip saddr {addresses.GUEST}", addresses.GATEWAY, f"p_{number}"
    rate, log = f"{_LOGGED_PER_S}/second", f"group {group} snaplen {_SNAP}"
    return f"""\
add limit ip {t} l_{number} {{ rate {rate} burst {_LOGGED_PER_S} packets ; }}
add chain ip {t} no_{number}
add rule ip {t} no_{number} limit name "l_{number}" log prefix "{REFUSED}" {log}
add rule ip {t} no_{number} meta l4proto tcp reject with tcp reset
add rule ip {t} no_{number} drop
add chain ip {t} o_{number}
add chain ip {t} {decide}
{_rules(t, decide, _closed(place, number))}\
add element ip {t} slots {{ {own} : goto {decide} }}
add chain netdev {t} in_{number} {{ type filter hook ingress device "{device}" priority -500; policy drop; }}
add rule netdev {t} in_{number} {guest} ip daddr {gateway} ip daddr set {place.gateway} ip saddr set {own} accept
add rule netdev {t} in_{number} {guest} ip daddr {place.gateway} ip daddr set {place.nowhere} ip saddr set {own} accept
add rule netdev {t} in_{number} {guest} ip saddr set {own} accept
add rule netdev {t} in_{number} ether type ip limit rate {rate} log prefix "{SPOOFED}" {log}
add chain netdev {t} out_{number} {{ type filter hook egress device "{device}" priority -500; policy accept; }}
add rule netdev {t} out_{number} ether type != ip drop
add rule netdev {t} out_{number} ip saddr {place.gateway} ip saddr set {gateway} ip daddr set {addresses.GUEST} accept
add rule netdev {t} out_{number} ip saddr {place.nowhere} ip saddr set {place.gateway}
add rule netdev {t} out_{number} ip daddr set {addresses.GUEST}
"""


def slot_removed(place: Place, number: int) -> str:
    """The reverse of `slot`; the link may be gone already."""
    t = place.table
    found = [f"delete element ip {t} slots {{ {place.address(number)} }}"]
    found += [f"flush chain ip {t} {each}_{number}" for each in ("p", "o", "no")]
    found += [f"delete chain ip {t} {each}_{number}" for each in ("p", "o", "no")]
    found += [f"delete limit ip {t} l_{number}"]
    return "\n".join(found) + "\n"


def policy(place: Place, number: int, rules: Rules, *, had_quota: bool, used: int = 0) -> str:
    """A slot's rules under a policy, in place of those that it had; used: bytes of its quota that are spent."""
    t, limits = place.table, rules.policy.limits
    lines = [f"flush chain ip {t} p_{number}", f"flush chain ip {t} o_{number}"]
    if had_quota:
        lines.append(f"delete quota ip {t} q_{number}")
    if limits.tx_bytes is not None:
        lines.append(f"add quota ip {t} q_{number} {{ over {limits.tx_bytes} bytes used {used} bytes ; }}")
    decide = _closed(place, number, limits.dns_per_s) if rules.policy.closed else _decide(place, number, rules)
    text = _rules(t, f"p_{number}", decide)
    if not rules.policy.closed:
        text += _rules(t, f"o_{number}", _open(place, number, limits))
    return "\n".join(lines) + "\n" + text


def _rules(table: str, chain: str, rules: Iterable[str]) -> str:
    return "".join(f"add rule ip {table} {chain} {rule}\n" for rule in rules)


def _closed(place: Place, number: int, dns_per_s: int | None = None) -> list[str]:
    """Questions to the resolver, and nothing else.

    All sandboxes share the resolver's queue, so a flood ends here. The gateway refuses in words what is beyond
    `dns_per_s`, therefore more than those reach it.
    """
    to = f"ip daddr {place.gateway}"
    return [
        f"{to} udp dport {DNS_PORT} udp length > {_QUESTION_MAX} drop",
        f"{to} udp dport {DNS_PORT} {_over(_QUESTIONS_MORE + 2 * (dns_per_s or DNS_PER_S))} drop",
        f"{to} tcp dport {DNS_PORT} ct state new {_over(_STREAMS_PER_S)} drop",
        f"{to} meta l4proto {{ tcp, udp }} th dport {DNS_PORT} accept",
        f"goto no_{number}",
    ]


def _decide(place: Place, number: int, rules: Rules) -> list[str]:
    *dns, refuse = _closed(place, number, rules.policy.limits.dns_per_s)
    allowed, proxied = f"meta mark set {FORWARD:#x} goto o_{number}", f"meta mark set {PROXY:#x} goto o_{number}"
    found = [
        *dns,
        f"ip daddr {place.gateway} {refuse}",
        f"ip daddr {rules.floor.block} {refuse}",
        f"ip daddr != @holes ip daddr @floor {refuse}",
        f"ip daddr != @holes fib daddr type {{ local, broadcast, multicast, anycast }} {refuse}",
    ]
    denied = [each for each in (*rules.operator_deny, *rules.policy.deny) if isinstance(each, CidrRule)]
    found += [f"{match} {refuse}" for match in _matches(denied)]
    # What belongs to no connection is not translated either: it would leave with the slot's own address.
    found += ["ct state { invalid, untracked } drop"]
    # The middle of a connection that this slot never had: one that was open when its sandbox was copied.
    found += ["ct state new tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset"]
    found += [f"{match} {allowed}" for match in _matches(e for e in rules.policy.allow if isinstance(e, CidrRule))]
    if rules.policy.default == "allow":
        found.append(f"meta l4proto {{ tcp, udp }} th dport {_set(str(each) for each in sorted(BYPASSES))} {refuse}")
    if (ports := rules.proxied) is not None:
        found.append(f"{f'tcp {_dport(ports)}' if ports else 'meta l4proto tcp'} {proxied}")
    if rules.policy.default == "allow":
        found += [f"udp dport {{ 80, 443 }} {refuse}"] if rules.denies_names else []  # QUIC hides names
        found.append(f"meta l4proto {{ tcp, udp }} {allowed}")
    return [*found, refuse]


def _open(place: Place, number: int, limits: Limits) -> list[str]:
    group, found = place.log_group, []
    if limits.connections is not None:
        found += _limited(number, group, "connections", f"ct state new ct count over {limits.connections}")
    if (per_s := limits.new_connections_per_s) is not None:
        found += _limited(number, group, "new_connections_per_s", f"ct state new {_over(per_s)}")
    if limits.tx_bytes is not None:
        found += _limited(number, group, "tx_bytes", f'quota name "q_{number}"')
    found.append(f'ct state new meta mark {FORWARD:#x} log prefix "{OPENED}" group {group} snaplen {_SNAP}')
    return [*found, "accept"]


def _limited(number: int, group: int, name: str, condition: str) -> list[str]:
    """Refuse what is beyond a limit. Not each such packet is logged, or a flood would keep the gateway busy.

    The condition counts, so it is asked once, and a mark tells what it said.
    """
    refused = f"meta mark {BEYOND:#x}"
    log = f'log prefix "{LIMITED}{name}" group {group} snaplen {_SNAP}'
    return [
        f"{condition} meta mark set {BEYOND:#x}",
        f'{refused} limit name "l_{number}" {log}',
        f"{refused} goto refuse",
    ]


def _over(per_s: int) -> str:
    return f"limit rate over {per_s}/second burst {per_s} packets"


def _matches(rules: Iterable[CidrRule]) -> list[str]:
    """Rules that differ in their networks alone become one, looked up in a set."""
    grouped: defaultdict[tuple[Proto, Ports], list[IPv4Network]] = defaultdict(list)
    for rule in rules:
        for proto in rule.protos:
            grouped[proto, rule.ports].append(rule.network)
    return [
        f"ip daddr {_elements(networks)} {f'{proto} {_dport(ports)}' if ports else f'meta l4proto {proto}'}"
        for (proto, ports), networks in grouped.items()
    ]


def _dport(ports: Ports) -> str:
    return f"dport {_set(str(low) if low == high else f'{low}-{high}' for low, high in merged(ports) or ())}"


def _elements(networks: Iterable[IPv4Network]) -> str:
    found = [str(each) for each in collapse_addresses(networks)]
    return _set(found) if found else ""


def _set(items: Iterable[str]) -> str:
    return f"{{ {', '.join(items)} }}"
