"""What the kernel tells of packets that its rules refused or let begin (NFLOG). Parsing does no I/O.

Sources: linux/netfilter/nfnetlink_log.h, netlink(7), ip(7).
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from netpolicy.errors import NetworkUnavailable

_NFNL_SUBSYS_ULOG: Final = 4
_PACKET: Final = _NFNL_SUBSYS_ULOG << 8
_CONFIG: Final = _NFNL_SUBSYS_ULOG << 8 | 1
_ATTR_INDEV, _ATTR_PAYLOAD, _ATTR_PREFIX = 4, 9, 10
_CFG_CMD, _CFG_MODE, _CFG_THRESHOLD = 1, 2, 5
_CMD_BIND: Final = 1
_COPY_PACKET: Final = 2
_REQUEST_ACK: Final = 1 | 4
_NETLINK_NETFILTER: Final = 12
_SO_RCVBUFFORCE: Final = 33
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp"}


@dataclass(frozen=True, slots=True)
class Logged:
    """A packet: which rule logged it, the host's index of the link it came by, and where it wanted to go."""

    prefix: str
    device: int
    source: IPv4Address
    destination: IPv4Address
    protocol: str
    port: int | None


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4 or offset + size > len(data):
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def parse(datagram: bytes) -> list[Logged]:
    """The packets that a datagram of the kernel's tells of; what is no IPv4 packet is left out."""
    found = []
    offset = 0
    while offset + 20 <= len(datagram):
        size, kind, *_ = struct.unpack_from("=IHHII", datagram, offset)
        if size < 20 or offset + size > len(datagram):
            break
        if kind == _PACKET:
            attributes = dict(_attributes(datagram[offset + 20 : offset + size]))
            if (logged := _logged(attributes)) is not None:
                found.append(logged)
        offset += (size + 3) & ~3
    return found


def _logged(attributes: dict[int, bytes]) -> Logged | None:
    packet = attributes.get(_ATTR_PAYLOAD, b"")
    device = attributes.get(_ATTR_INDEV, b"")
    prefix = attributes.get(_ATTR_PREFIX, b"").rstrip(b"\0").decode("ascii", errors="replace")
    if packet[:1] and packet[0] >> 4 != 4:
        packet = packet[14:]  # from the link's own chain: with its Ethernet header
    if len(packet) < 20 or packet[0] >> 4 != 4 or len(device) != 4:
        return None
    header = (packet[0] & 0xF) * 4
    protocol = packet[9]
    port = None
    if protocol in (6, 17) and len(packet) >= header + 4:
        port = int.from_bytes(packet[header + 2 : header + 4])
    return Logged(
        prefix,
        int.from_bytes(device),
        IPv4Address(packet[12:16]),
        IPv4Address(packet[16:20]),
        _PROTOCOLS.get(protocol, str(protocol)),
        port,
    )


def subscribe(group: int) -> socket.socket:
    """A socket that hears of a group's packets; needs CAP_NET_ADMIN now, and no more afterwards. NetworkUnavailable."""
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        listener.bind((0, 0))
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
        _configure(listener, group, _CFG_CMD, struct.pack("=B", _CMD_BIND))
        _configure(listener, group, _CFG_MODE, struct.pack(">IBB", 96, _COPY_PACKET, 0))
        _configure(listener, group, _CFG_THRESHOLD, struct.pack(">I", 1))  # each at once, not a second later
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise NetworkUnavailable(
            f"the kernel's log of refused packets cannot be read: {error.strerror}",
            hint="the kernel needs CONFIG_NETFILTER_NETLINK_LOG (module nfnetlink_log)",
        ) from error
    return listener


def _configure(listener: socket.socket, group: int, attribute: int, value: bytes) -> None:
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(group))
    body += struct.pack("=HH", 4 + len(value), attribute) + value + b"\0" * (-len(value) % 4)
    listener.send(struct.pack("=IHHII", 16 + len(body), _CONFIG, _REQUEST_ACK, 1, 0) + body)
    answer = listener.recv(4096)
    if (code := -struct.unpack_from("=i", answer, 16)[0]) != 0:
        raise OSError(code, f"NFLOG group {group}: error {code}")
