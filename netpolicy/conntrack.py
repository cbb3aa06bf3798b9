"""The kernel's table of connections: which a sandbox has, and the end of those that it must not have any more.

The kernel filters by source, so that a machine with many connections costs no more than one with few. Parsing does no
I/O. Source: linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from netpolicy import netlink
from netpolicy.errors import NetworkUnavailable
from netpolicy.policy import Proto

_GET, _DELETE, _NEW = 0x0101, 0x0102, 0x0100
_TUPLE_ORIG, _TUPLE_REPLY, _PROTOINFO, _COUNTERS_ORIG, _COUNTERS_REPLY, _FILTER = 1, 2, 4, 9, 10, 25
_COUNTER_BYTES: Final = 2
_DESTROYED: Final = 1 << 2  # NFNLGRP_CONNTRACK_DESTROY, as bind(2) takes groups
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SRC, _IP_DST = 1, 2
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG, _FILTER_BY_SRC = 1, 1
_TIMEOUT_S: Final = 5.0
_PROTOS: Final[dict[int, Proto]] = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
_TCP_LIVES: Final = frozenset(range(1, 5))
"""SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT (linux/netfilter/nf_conntrack_tcp.h)."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as the sandbox sees it: where it went."""

    proto: Proto
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    port: int
    lives: bool
    """Whether it is TCP that has not ended."""
    tuple_: bytes = b""
    """The kernel's own name for it."""


def parse(body: bytes) -> Connection | None:
    """The connection of a message; None for what is neither TCP nor UDP over IPv4."""
    attributes = netlink.attributes(body[4:])
    whole = attributes.get(_TUPLE_ORIG, b"")
    parts = netlink.attributes(whole)
    addresses = netlink.attributes(parts.get(_TUPLE_IP, b""))
    protocol = netlink.attributes(parts.get(_TUPLE_PROTO, b""))
    source, destination = addresses.get(_IP_SRC, b""), addresses.get(_IP_DST, b"")
    proto = _PROTOS.get(int.from_bytes(protocol.get(_PROTO_NUM, b"")[:1]))
    if proto is None or len(source) != 4 or len(destination) != 4:
        return None
    tcp = netlink.attributes(netlink.attributes(attributes.get(_PROTOINFO, b"")).get(1, b""))
    return Connection(
        proto,
        IPv4Address(source),
        int.from_bytes(protocol.get(_PROTO_SRC_PORT, b"")[:2]),
        IPv4Address(destination),
        int.from_bytes(protocol.get(_PROTO_DST_PORT, b"")[:2]),
        int.from_bytes(tcp.get(1, b"")[:1]) in _TCP_LIVES,
        whole,
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection that the kernel has forgotten; bytes as the network carried them, 0 where it does not count."""

    connection: Connection
    forwarded: bool
    """Whether it went where it wanted to go, and not to the gateway."""
    tx_bytes: int
    rx_bytes: int


def ends(datagram: bytes) -> list[Ended]:
    """The connections that a datagram to `subscribe`'s socket tells the end of."""
    found = []
    for kind, body in netlink.messages(datagram):
        if kind == _DELETE and (each := parse(body)) is not None:
            attributes = netlink.attributes(body[4:])
            reply = netlink.attributes(netlink.attributes(attributes.get(_TUPLE_REPLY, b"")).get(_TUPLE_IP, b""))
            sent, received = (
                int.from_bytes(netlink.attributes(attributes.get(kind_, b"")).get(_COUNTER_BYTES, b"")[:8])
                for kind_ in (_COUNTERS_ORIG, _COUNTERS_REPLY)
            )
            found.append(Ended(each, reply.get(_IP_SRC) == each.destination.packed, sent, received))
    return found


def subscribe() -> socket.socket:
    """A socket that hears of ends; needs CAP_NET_ADMIN now, and no more afterwards. NetworkUnavailable."""
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETFILTER)
    try:
        listener.bind((0, _DESTROYED))
        listener.setsockopt(socket.SOL_SOCKET, netlink.SO_RCVBUFFORCE, 4 << 20)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise NetworkUnavailable(
            f"the ends of connections cannot be heard of: {error.strerror}",
            hint="the kernel needs CONFIG_NF_CONNTRACK_EVENTS (module nf_conntrack_netlink)",
        ) from error
    return listener


class _Table:
    """A socket to the kernel's table; calls block for as long as the kernel takes."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETFILTER)
        self._socket.bind((0, 0))
        self._socket.settimeout(_TIMEOUT_S)

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.send(netlink.message(kind, flags, struct.pack("=BBH", socket.AF_INET, 0, 0) + body))

    def of(self, source: IPv4Address) -> list[Connection]:
        """Those that come from an address."""
        address = netlink.attribute(_TUPLE_IP | netlink.NESTED, netlink.attribute(_IP_SRC, source.packed))
        wanted = netlink.attribute(_TUPLE_ORIG | netlink.NESTED, address)
        flags = netlink.attribute(_FILTER_ORIG, struct.pack("=I", _FILTER_BY_SRC))
        self._send(_GET, netlink.REQUEST | netlink.DUMP, wanted + netlink.attribute(_FILTER | netlink.NESTED, flags))
        found: list[Connection] = []
        while True:
            for kind, body in netlink.messages(self._socket.recv(1 << 18)):
                if kind == netlink.DONE:
                    return found
                if kind == netlink.ERROR:
                    raise _refused(body)
                if kind == _NEW and (each := parse(body)) is not None and each.source == source:
                    found.append(each)

    def forget(self, each: Connection) -> bool:
        """Delete one; False if it was gone."""
        self._send(_DELETE, netlink.REQUEST | netlink.ACK, netlink.attribute(_TUPLE_ORIG | netlink.NESTED, each.tuple_))
        for kind, body in netlink.messages(self._socket.recv(1 << 16)):
            if kind == netlink.ERROR and (code := netlink.refusal(body)):
                if code == errno.ENOENT:
                    return False
                raise _refused(body)
        return True


def _refused(body: bytes) -> NetworkUnavailable:
    code = netlink.refusal(body)
    return NetworkUnavailable(
        f"the kernel's table of connections cannot be used: {errno.errorcode.get(code, code)}",
        hint="the kernel needs CONFIG_NF_CT_NETLINK (module nf_conntrack_netlink)",
    )


def connections(source: IPv4Address) -> list[Connection]:
    """Those that come from an address."""
    with _Table() as table:
        return table.of(source)


def cut(source: IPv4Address, allowed: Callable[[Connection], bool]) -> int:
    """Forget the connections of an address that are not allowed: no packet finds its way any more. Returns how many."""
    with _Table() as table:
        return sum(table.forget(each) for each in table.of(source) if not allowed(each))
