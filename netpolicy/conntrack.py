"""The kernel's table of connections: which a sandbox has, and the end of those that it must not have any more.

The kernel filters by source, so that a machine with many connections costs no more than one with few. Parsing does no
I/O. Sources: linux/netfilter/nfnetlink_conntrack.h, netlink(7).
"""

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from netpolicy.errors import NetworkUnavailable
from netpolicy.policy import Proto

_NETLINK_NETFILTER: Final = 12
_GET, _DELETE, _NEW = 0x0101, 0x0102, 0x0100
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_NESTED: Final = 0x8000
_TUPLE_ORIG, _TUPLE_REPLY, _PROTOINFO, _COUNTERS_ORIG, _COUNTERS_REPLY, _FILTER = 1, 2, 4, 9, 10, 25
_COUNTER_BYTES: Final = 2
_DESTROYED: Final = 1 << 2  # NFNLGRP_CONNTRACK_DESTROY, as bind(2) takes groups
_SO_RCVBUFFORCE: Final = 33
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


def _attributes(data: bytes) -> dict[int, bytes]:
    found, offset = {}, 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4 or offset + size > len(data):
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """The kind and body of each message in a datagram of the kernel's."""
    offset = 0
    while offset + 16 <= len(datagram):
        size, kind = struct.unpack_from("=IH", datagram, offset)
        if size < 16 or offset + size > len(datagram):
            return
        yield kind, datagram[offset + 16 : offset + size]
        offset += (size + 3) & ~3


def parse(body: bytes) -> Connection | None:
    """The connection of a message; None for what is neither TCP nor UDP over IPv4."""
    attributes = _attributes(body[4:])
    whole = attributes.get(_TUPLE_ORIG, b"")
    parts = _attributes(whole)
    addresses, protocol = _attributes(parts.get(_TUPLE_IP, b"")), _attributes(parts.get(_TUPLE_PROTO, b""))
    source, destination = addresses.get(_IP_SRC, b""), addresses.get(_IP_DST, b"")
    proto = _PROTOS.get(int.from_bytes(protocol.get(_PROTO_NUM, b"")[:1]))
    if proto is None or len(source) != 4 or len(destination) != 4:
        return None
    tcp = _attributes(_attributes(attributes.get(_PROTOINFO, b"")).get(1, b""))
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
    for kind, body in messages(datagram):
        if kind == _DELETE and (each := parse(body)) is not None:
            attributes = _attributes(body[4:])
            reply = _attributes(_attributes(attributes.get(_TUPLE_REPLY, b"")).get(_TUPLE_IP, b""))
            sent, received = (
                int.from_bytes(_attributes(attributes.get(kind_, b"")).get(_COUNTER_BYTES, b"")[:8])
                for kind_ in (_COUNTERS_ORIG, _COUNTERS_REPLY)
            )
            found.append(Ended(each, reply.get(_IP_SRC) == each.destination.packed, sent, received))
    return found


def subscribe() -> socket.socket:
    """A socket that hears of ends; needs CAP_NET_ADMIN now, and no more afterwards. NetworkUnavailable."""
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        listener.bind((0, _DESTROYED))
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
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
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.settimeout(_TIMEOUT_S)

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        head = struct.pack("=BBH", socket.AF_INET, 0, 0)
        self._socket.send(struct.pack("=IHHII", 20 + len(body), kind, flags, 1, 0) + head + body)

    def of(self, source: IPv4Address) -> list[Connection]:
        """Those that come from an address."""
        address = _attribute(_TUPLE_IP | _NESTED, _attribute(_IP_SRC, source.packed))
        wanted = _attribute(_TUPLE_ORIG | _NESTED, address)
        flags = _attribute(_FILTER_ORIG, struct.pack("=I", _FILTER_BY_SRC))
        self._send(_GET, _REQUEST | _DUMP, wanted + _attribute(_FILTER | _NESTED, flags))
        found: list[Connection] = []
        while True:
            for kind, body in messages(self._socket.recv(1 << 18)):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    raise _refused(body)
                if kind == _NEW and (each := parse(body)) is not None and each.source == source:
                    found.append(each)

    def forget(self, each: Connection) -> bool:
        """Delete one; False if it was gone."""
        self._send(_DELETE, _REQUEST | _ACK, _attribute(_TUPLE_ORIG | _NESTED, each.tuple_))
        for kind, body in messages(self._socket.recv(1 << 16)):
            if kind == _ERROR and (code := -struct.unpack_from("=i", body)[0]) != 0:
                if code == errno.ENOENT:
                    return False
                raise _refused(body)
        return True


def _refused(body: bytes) -> NetworkUnavailable:
    code = -struct.unpack_from("=i", body)[0]
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
