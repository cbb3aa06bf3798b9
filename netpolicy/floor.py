"""Addresses that no policy can open: private, local, multicast, metadata. Only the operator makes a hole. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

FLOOR: Final = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's metadata service on a public address
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/3",
    )
)


BLOCK: Final = IPv4Network("198.19.0.0/16")
"""Where slots' addresses come from: made for tests of networks (RFC 2544), so nobody's on the internet."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The floor with the operator's holes; `block` is where the sandboxes' own addresses come from: never a hole."""

    holes: tuple[IPv4Network, ...] = ()
    block: IPv4Network = BLOCK

    def holds(self, address: IPv4Address) -> bool:
        """Whether nothing may go there. Addresses of the host itself are looked at where packets are."""
        if address in self.block:
            return True
        return any(address in each for each in FLOOR) and not self.pierced(address)

    def pierced(self, address: IPv4Address) -> bool:
        """Whether the operator made a hole there."""
        return address not in self.block and any(address in each for each in self.holes)


def networks(texts: Sequence[str]) -> tuple[IPv4Network, ...]:
    """Networks as the operator writes them; ValueError."""
    return tuple(IPv4Network(each) for each in texts)
