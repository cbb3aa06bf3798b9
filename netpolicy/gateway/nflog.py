"""What the kernel tells of packets that its rules refused or let begin (NFLOG). Parsing does no I/O.

Sources: linux/netfilter/nfnetlink_log.h, ip(7).
"""

import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from netpolicy import netlink
from netpolicy.errors import NetworkUnavailable

_NFNL_SUBSYS_ULOG: Final = 4
_PACKET: Final = _NFNL_SUBSYS_ULOG << 8
_CONFIG: Final = _NFNL_SUBSYS_ULOG << 8 | 1
_ATTR_INDEV, _ATTR_PAYLOAD, _ATTR_PREFIX = 4, 9, 10
_CFG_CMD, _CFG_MODE, _CFG_THRESHOLD = 1, 2, 5
_CMD_BIND: Final = 1
_COPY_PACKET: Final = 2
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


def parse(datagram: bytes) -> list[Logged]:
    """The packets that a datagram of the kernel's tells of; what is no IPv4 packet is left out."""
    found = (_logged(netlink.attributes(body[4:])) for kind, body in netlink.messages(datagram) if kind == _PACKET)
    return [each for each in found if each is not None]


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
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETFILTER)
    try:
        listener.bind((0, 0))
        listener.setsockopt(socket.SOL_SOCKET, netlink.SO_RCVBUFFORCE, 4 << 20)
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


def groups() -> set[int]:
    """The groups that somebody on this machine listens to already; none where the kernel does not tell."""
    try:
        lines = Path("/proc/net/netfilter/nfnetlink_log").read_text().splitlines()
    except OSError:
        return set()
    return {int(line.split()[0]) for line in lines if line.split()}


def _configure(listener: socket.socket, group: int, attribute: int, value: bytes) -> None:
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(group)) + netlink.attribute(attribute, value)
    listener.send(netlink.message(_CONFIG, netlink.REQUEST | netlink.ACK, body))
    for kind, answer in netlink.messages(listener.recv(4096)):
        if kind == netlink.ERROR and (code := netlink.refusal(answer)):
            raise OSError(code, os.strerror(code))
