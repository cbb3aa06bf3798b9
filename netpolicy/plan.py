"""Where things lie on the machine: names, addresses and marks of one server's network. No I/O.

    guest 10.200.0.2 ──▶ AF_PACKET on guest ══ veth ══ ibTAGxN ──▶ prerouting ─┬─▶ gateway (names)
          inside, everywhere    namespace isobox-TAG-N   host      unique N    └─▶ forward, masquerade (addresses)

Inside, every sandbox has the same address and MAC, so that a checkpoint opens anywhere; a stateless rewrite on the
host's end gives each its own one, below conntrack and all other rules.
"""

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

GUEST_MAC: Final = "02:69:62:00:00:02"
GATEWAY_MAC: Final = "02:69:62:00:00:01"
MTU: Final = 65000
SHARE_PREFIX: Final = 22
"""Each server takes a share of this size out of the block."""

FORWARD: Final = 0x69620001
PROXY: Final = 0x69620002
BEYOND: Final = 0x69620003
PEER: Final = "guest"
"""The name of a guest's end, in its namespace."""

PROXY_PORT: Final = 4443
DNS_PORT: Final = 53
_UIDS: Final = range(61184, 65520)
"""Where services get users of the moment (systemd.exec(5), DynamicUser): nobody's own."""


@dataclass(frozen=True, slots=True)
class Place:
    """One server's part of the machine: its tag, and the share of the block that its slots' addresses come from."""

    tag: str
    share: IPv4Network

    @property
    def gateway(self) -> IPv4Address:
        """Where the gateway listens."""
        return self.share[1]

    @property
    def nowhere(self) -> IPv4Address:
        """What stands for the gateway's address where a guest names it as such: nobody has this one."""
        return self.share[0]

    @property
    def gateway_uid(self) -> int:
        """Who the gateway is: another one for each server, since rules tell them apart by it."""
        return _UIDS[int(self.tag, 16) % len(_UIDS)]

    @property
    def capacity(self) -> int:
        """How many slots there can be."""
        return self.share.num_addresses - 4

    @property
    def table(self) -> str:
        """The name of its nftables tables."""
        return f"isobox_{self.tag}"

    @property
    def namespaces(self) -> str:
        """How the names of its namespaces begin."""
        return f"isobox-{self.tag}-"

    def namespace(self, slot: int) -> str:
        """The network namespace where a guest's end lies, alone."""
        return f"{self.namespaces}{slot}"

    @property
    def log_group(self) -> int:
        """The NFLOG group of its rules."""
        return 1 + int(self.tag, 16) % 65000

    def address(self, slot: int) -> IPv4Address:
        """A slot's own address, as the host sees it."""
        return self.share[slot + 2]

    def device(self, slot: int) -> str:
        """The host's end of a slot's link."""
        return f"ib{self.tag}x{slot}"

    @property
    def devices(self) -> str:
        """All of the host's ends, as nftables matches names."""
        return f"ib{self.tag}x*"


def tag_of(state: Path) -> str:
    """Four hexadecimal digits that tell one state directory's things from another's."""
    return hashlib.sha256(str(state).encode()).hexdigest()[:4]


def shares(block: IPv4Network) -> list[IPv4Network]:
    """The shares of a block, in the order in which servers take them."""
    return list(block.subnets(new_prefix=SHARE_PREFIX)) if block.prefixlen < SHARE_PREFIX else [block]
