"""The kernel's table of connections: which a sandbox has, and the end of those that it must not have any more."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Final

from pyroute2 import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from netpolicy.policy import Proto

_NAMES: Final[dict[int, Proto]] = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
_TCP_LIVES: Final = frozenset(range(1, 5))
"""SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT (linux/netfilter/nf_conntrack_tcp.h)."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as the sandbox sees it: where it went."""

    proto: Proto
    source_port: int
    destination: IPv4Address
    port: int
    lives: bool
    """Whether it is TCP that has not ended."""


def connections(source: IPv4Address) -> list[Connection]:
    """Those that come from an address. Blocks for as long as it takes to read the table."""
    with NFCTSocket() as table:
        return [each for each, _ in _of(table, source)]


def cut(source: IPv4Address, allowed: Callable[[Connection], bool]) -> int:
    """Forget the connections of an address that are not allowed: no packet finds its way any more. Returns how many."""
    count = 0
    with NFCTSocket() as table:
        for each, tuple_ in list(_of(table, source)):
            if not allowed(each):
                with contextlib.suppress(NetlinkError):  # it has ended meanwhile
                    table.entry("del", tuple_orig=tuple_)
                    count += 1
    return count


def _of(table: NFCTSocket, source: IPv4Address) -> Iterator[tuple[Connection, NFCTAttrTuple]]:
    wanted = str(source)
    for message in table.dump():
        attributes = dict(message["attrs"])
        if (found := _tuple(attributes.get("CTA_TUPLE_ORIG"))) is None or found[0] != wanted:
            continue
        _, destination, proto, source_port, port = found
        info: Any = attributes.get("CTA_PROTOINFO")
        state = _tcp_state(info)
        connection = Connection(_NAMES[proto], source_port, IPv4Address(destination), port, state in _TCP_LIVES)
        yield (
            connection,
            NFCTAttrTuple(saddr=wanted, daddr=destination, proto=proto, sport=source_port, dport=port),
        )


def _tuple(found: Any) -> tuple[str, str, int, int, int] | None:
    if found is None:
        return None
    parts = dict(found["attrs"])
    addresses = dict(parts["CTA_TUPLE_IP"]["attrs"]) if "CTA_TUPLE_IP" in parts else {}
    ports = dict(parts["CTA_TUPLE_PROTO"]["attrs"]) if "CTA_TUPLE_PROTO" in parts else {}
    proto = ports.get("CTA_PROTO_NUM")
    if "CTA_IP_V4_SRC" not in addresses or proto not in _NAMES:
        return None
    return (
        str(addresses["CTA_IP_V4_SRC"]),
        str(addresses["CTA_IP_V4_DST"]),
        int(proto),
        int(ports["CTA_PROTO_SRC_PORT"]),
        int(ports["CTA_PROTO_DST_PORT"]),
    )


def _tcp_state(info: Any) -> int:
    if info is None:
        return 0
    tcp = dict(info["attrs"]).get("CTA_PROTOINFO_TCP")
    return int(dict(tcp["attrs"]).get("CTA_PROTOINFO_TCP_STATE", 0)) if tcp is not None else 0
