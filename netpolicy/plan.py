"""Where things lie on the machine: names, addresses and marks of one server's network. No I/O.

    guest 10.200.0.2 ──▶ AF_PACKET on guest ══ veth ══ ibTAGxN ──▶ prerouting ─┬─▶ gateway (names)
          inside, everywhere    namespace isobox-TAG-N   host      unique N    └─▶ forward, masquerade (addresses)

Inside, every sandbox has the same address and MAC, so that a checkpoint opens anywhere; a stateless rewrite on the
host's end gives each its own one, below conntrack and all other rules.
"""

import hashlib
from collections.abc import Container, Iterable, Iterator
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

PROBE_TAG: Final = "d0c7"
"""What `isobox doctor` tries the kernel with: no server's."""
_TAGS_TRIED: Final = 1024

PROXY_PORT: Final = 4443
DNS_PORT: Final = 53
_UIDS: Final = range(61184, 65520)
"""Where services get users of the moment (systemd.exec(5), DynamicUser): nobody's own."""


@dataclass(frozen=True, slots=True)
class Place:
    """One server's part of the machine: its tag, and the share of the block that its slots' addresses come from."""

    tag: str
    share: IPv4Network
    owner: str = ""
    """The full id of whose it is, told by the rules as well (common/owners.py)."""

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
        return _gateway_uid(self.tag)

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
        return log_group(self.tag)

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
    """Four hexadecimal digits that tell one state directory's things from another's; the first of its `tags`."""
    return next(tags(state))


def tags(state: Path) -> Iterator[str]:
    """The tags that a state directory may have, best first: another's may be the same."""
    yield hashlib.sha256(str(state).encode()).hexdigest()[:4]
    for number in range(1, _TAGS_TRIED):
        yield hashlib.sha256(f"{state}\0{number}".encode()).hexdigest()[:4]


def choose_tag(state: Path, taken: Iterable[str], groups: Container[int] = ()) -> str | None:
    """The first of a state directory's tags that shares nothing with those taken, nor with a log group in use."""
    others = {*taken, PROBE_TAG}
    uids, logs = {_gateway_uid(tag) for tag in others}, {log_group(tag) for tag in others}
    return next(
        (
            tag
            for tag in tags(state)
            if tag not in others
            and _gateway_uid(tag) not in uids
            and log_group(tag) not in logs
            and log_group(tag) not in groups
        ),
        None,
    )


def _gateway_uid(tag: str) -> int:
    return _UIDS[int(tag, 16) % len(_UIDS)]


def log_group(tag: str) -> int:
    """The NFLOG group of a tag's rules."""
    return 1 + int(tag, 16) % 65000


def shares(block: IPv4Network) -> list[IPv4Network]:
    """The shares of a block, in the order in which servers take them."""
    return list(block.subnets(new_prefix=SHARE_PREFIX)) if block.prefixlen < SHARE_PREFIX else [block]
