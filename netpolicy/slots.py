"""Slots: ready links for sandboxes, made in the background, leased one at a time, made like new before the next tenant.

A slot is a veth pair whose guest's end lies in a namespace of its own, with no address and nothing else in it. The
sentry gets an AF_PACKET socket bound to that end: even one that was taken over finds no other link there to send on.
Making a slot takes some milliseconds and happens ahead of time; a lease opens a socket.

All kernel work is done in two threads: one here, one that goes from namespace to namespace (setns(2) is per thread).
"""

import asyncio
import contextlib
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from pyroute2 import IPRoute, NetlinkError

from common import owners
from common.owners import Claim, Owner
from netpolicy import namespaces, nft
from netpolicy.errors import NetworkUnavailable
from netpolicy.gateway import nflog
from netpolicy.nftables import Nftables
from netpolicy.plan import GATEWAY_MAC, GUEST_MAC, MTU, PEER, Place, choose_tag, shares, tag_of

_log = structlog.get_logger(__name__)
T = TypeVar("T")
_KEPT_MAX: Final = 32
"""Slots that were given back and wait for another sandbox: made once, not again for each."""

_ETH_P_ALL: Final = 3
_SOCKET_BUFFER: Final = 4 << 20
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_LOOPBACK: Final = 1
_ROOT: Final = 0xFFFFFFFF  # TC_H_ROOT
_SHAPER: Final = 0x00010000
_BURST_MIN: Final = 256 << 10  # a packet of a sentry's has up to 64 KiB


@dataclass(frozen=True, slots=True)
class Slot:
    """A link: its number, the address by which the host knows it, and the index of the host's end."""

    number: int
    address: IPv4Address
    device: int


class Slots:
    """See the module. Made by `open_slots`."""

    def __init__(self, place: Place, nftables: Nftables, *, ready: int) -> None:
        self.place = place
        self.nftables = nftables
        self._ready_wanted = ready
        self._ready: list[Slot] = []
        self._leased: dict[int, Slot] = {}
        self._making = asyncio.Lock()
        self._short = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="slots")
        self._inside = ThreadPoolExecutor(1, thread_name_prefix="slots inside")
        self._routes: IPRoute | None = None
        self._failure: str | None = None

    @property
    def problem(self) -> str | None:
        """Why there is no slot for another sandbox; None where there is one, or can be."""
        if self._ready:
            return None
        if len(self._leased) >= self.place.capacity:
            return f"all {self.place.capacity} slots of the network are in use"
        return self._failure

    # ---- threads

    async def _here(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _within(self, slot: int, work: Callable[[], T]) -> T:
        """Work in a slot's namespace."""

        def there() -> T:
            namespaces.enter(self.place.namespace(slot))
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._inside, there)

    # ---- beginning and end

    async def begin(self, keep: Iterable[int]) -> dict[int, Slot]:
        """The gateway's address; of what was there, all but these slots goes. Returns those."""
        found = await self._here(lambda: self._begin(set(keep)))
        self._leased = dict(found)
        return found

    def _begin(self, keep: set[int]) -> dict[int, Slot]:
        place = self.place
        self._routes = routes = IPRoute()
        with contextlib.suppress(NetlinkError):  # it is there already
            routes.addr("add", index=_LOOPBACK, address=str(place.gateway), prefixlen=32)
        prefix, found = f"ib{place.tag}x", {}
        for link in routes.get_links():
            name = str(link.get("ifname"))
            if name.startswith(prefix):
                number = int(name.removeprefix(prefix))
                if number in keep:
                    found[number] = Slot(number, place.address(number), link["index"])
                else:
                    with contextlib.suppress(NetlinkError):
                        routes.link("del", index=link["index"])
        for name in set(namespaces.all_(place.namespaces)) - {place.namespace(number) for number in found}:
            namespaces.remove(name)
        return found

    async def end(self) -> bool:
        """Let go; with no slot in use nothing of it is left on the machine. Tells whether that is so."""
        nothing_left = not self._leased
        if self._routes is None:
            nothing_left = await self._here(self._never_begun)
        elif nothing_left:
            await self._here(self._remove_all)
        if self._routes is not None:
            await self._here(self._routes.close)
        self._thread.shutdown()
        self._inside.shutdown()
        return nothing_left

    def _never_begun(self) -> bool:
        """Only the address was claimed; if sandboxes of an earlier server live, it is theirs."""
        if namespaces.all_(self.place.namespaces):
            return False
        with IPRoute() as routes, contextlib.suppress(NetlinkError):
            routes.addr("del", index=_LOOPBACK, address=str(self.place.gateway), prefixlen=32)
        return True

    def _remove_all(self) -> None:
        place, routes = self.place, self._routes
        assert routes is not None
        for slot in self._ready:
            self._remove_link(slot.number, slot.device)
        self._ready.clear()
        self.nftables.run(nft.removed(place))
        with contextlib.suppress(NetlinkError):
            routes.addr("del", index=_LOOPBACK, address=str(place.gateway), prefixlen=32)

    # ---- leases

    async def lease(self) -> Slot:
        """Take a slot, closed: a ready one, else one that is made now; NetworkUnavailable where there are no more."""
        slot = self._ready.pop() if self._ready else await self._make()
        self._leased[slot.number] = slot
        self._short.set()
        return slot

    async def open_socket(self, slot: Slot) -> int:
        """A packet socket on the guest's end, for the sentry; whoever takes it closes it."""
        return await self._within(slot.number, self._open_socket)

    def _open_socket(self) -> int:
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
                packets.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
            packets.bind((PEER, _ETH_P_ALL))
        except BaseException:
            packets.close()
            raise
        return packets.detach()

    async def release(self, slot: Slot, *, doubtful: bool = False) -> None:
        """Give one back whose sandbox has ended and whose rules are closed again; what is doubtful is thrown away."""
        if self._leased.pop(slot.number, None) is None:
            return
        if len(self._ready) < max(self._ready_wanted, _KEPT_MAX) and not doubtful:
            self._ready.append(slot)
        else:
            await self._here(lambda: self._remove(slot))

    def _remove(self, slot: Slot) -> None:
        self._remove_link(slot.number, slot.device)
        self.nftables.run(nft.slot_removed(self.place, slot.number))

    async def refill(self) -> None:
        """Keep some ready, for ever."""
        while True:
            self._short.clear()
            while len(self._ready) < self._ready_wanted and len(self._leased) + len(self._ready) < self.place.capacity:
                try:
                    self._ready.append(await self._make())
                    self._failure = None
                except (NetworkUnavailable, OSError, NetlinkError) as error:
                    self._failure = f"no slot of the network can be made: {error}"
                    _log.warning("no slot made", error=str(error))
                    await asyncio.sleep(5.0)
            await self._short.wait()

    async def _make(self) -> Slot:
        async with self._making:
            taken = {each.number for each in (*self._ready, *self._leased.values())}
            number = next((n for n in range(self.place.capacity) if n not in taken), None)
            if number is None:
                raise NetworkUnavailable(
                    f"all {self.place.capacity} slots are in use", hint="give the server a larger ISOBOX_EGRESS_BLOCK"
                )
            loop, device = asyncio.get_running_loop(), -1
            try:
                await loop.run_in_executor(self._inside, namespaces.create, self.place.namespace(number))
                device = await self._here(lambda: self._make_link(number))
                await self._within(number, self._raise_peer)
                await self._here(lambda: self.nftables.run(nft.slot(self.place, number)))
            except BaseException:
                await asyncio.shield(self._here(lambda: self._remove_link(number, device)))
                raise
            return Slot(number, self.place.address(number), device)

    def _make_link(self, number: int) -> int:
        place, routes = self.place, self._routes
        assert routes is not None
        name = place.device(number)
        namespace = namespaces.open_(place.namespace(number))
        try:
            peer = {"ifname": PEER, "net_ns_fd": namespace, "mtu": MTU, "address": GUEST_MAC}
            routes.link("add", ifname=name, kind="veth", mtu=MTU, address=GATEWAY_MAC, peer=peer)
        finally:
            os.close(namespace)
        index = int(routes.link_lookup(ifname=name)[0])
        _without_ipv6(name)
        routes.link("set", index=index, state="up")
        routes.route("add", dst=f"{place.address(number)}/32", oif=index, prefsrc=str(place.gateway), scope="link")
        routes.neigh("add", dst=str(place.address(number)), lladdr=GUEST_MAC, ifindex=index, state="permanent")
        return index

    def _remove_link(self, number: int, device: int) -> None:
        assert self._routes is not None
        with contextlib.suppress(NetlinkError):
            if device >= 0:
                self._routes.link("del", index=device)
        namespaces.remove(self.place.namespace(number))  # and with it the link, if it never came up

    @staticmethod
    def _raise_peer() -> None:
        _without_ipv6(PEER)
        with IPRoute() as routes:
            routes.link("set", index=int(routes.link_lookup(ifname=PEER)[0]), state="up", arp=False)

    async def shape(self, slot: Slot, bytes_per_s: int | None) -> None:
        """Let a slot send so many bytes a second; None: as many as it can."""
        await self._within(slot.number, lambda: _shape(bytes_per_s))

    def traffic(self, slot: Slot) -> tuple[int, int]:
        """Bytes that the slot's sandbox has sent and received, since the slot was made."""
        folder = Path("/sys/class/net") / self.place.device(slot.number) / "statistics"
        try:
            return int((folder / "rx_bytes").read_text()), int((folder / "tx_bytes").read_text())
        except (OSError, ValueError):
            return 0, 0


def _shape(bytes_per_s: int | None) -> None:
    with IPRoute() as routes:
        index = int(routes.link_lookup(ifname=PEER)[0])
        with contextlib.suppress(NetlinkError):  # there was none
            routes.tc("del", index=index, parent=_ROOT)
        if bytes_per_s is not None:
            burst = max(_BURST_MIN, bytes_per_s // 100)
            routes.tc("add", "tbf", index, _SHAPER, rate=bytes_per_s, burst=burst, latency="100ms")


def _without_ipv6(device: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")


# ---- which share of the block


@asynccontextmanager
async def open_slots(
    state: Path, block: IPv4Network, nftables: Nftables, *, ready: int, claim: Claim | None = None
) -> AsyncIterator[Slots]:
    """The slots of a server with this state directory; `begin` comes next. NetworkUnavailable without a free share.

    Its tag and share are written into the claim, for others to see; without one, into one of its own.
    """
    held = claim if claim is not None else await asyncio.to_thread(owners.claim, state)
    slots = None
    try:
        place = await asyncio.to_thread(_place, state, block, nftables, held)
        slots = Slots(place, nftables, ready=ready)
        yield slots
    finally:
        nothing_left = slots is None or await slots.end()
        if claim is None:
            held.release(nothing_left=nothing_left)


def _place(state: Path, block: IPv4Network, nftables: Nftables, claim: Claim) -> Place:
    """This server's part: what it had, if that still fits, else the first that nothing on the machine uses."""
    record, own = state / "network.json", claim.owner.id
    with owners.machine_lock(), IPRoute() as routes:
        others = [owner for id_, (owner, _) in owners.owners().items() if id_ != own]
        before, mine = _recorded(record, state)
        if before in {owner.tag for owner in others}:
            before = mine = None  # the record was copied from another's directory
        tag = before or _choose_tag(state, routes, nftables, others)
        taken = _networks(routes, own=f"ib{tag}x") + [IPv4Network(owner.share) for owner in others if owner.share]
        used = [each for each in taken if mine is None or each != IPv4Network(f"{mine[1]}/32")]
        wanted = [mine] if mine is not None and mine.subnet_of(block) else []
        for share in [*wanted, *shares(block)]:
            if not any(share.overlaps(each) for each in used):
                record.write_text(json.dumps({"share": str(share), "tag": tag}))
                # Claimed before the lock is let go of: nobody else takes it.
                with contextlib.suppress(NetlinkError):
                    routes.addr("add", index=_LOOPBACK, address=str(share[1]), prefixlen=32)
                claim.note(tag=tag, share=str(share))
                return Place(tag, share, own)
    raise NetworkUnavailable(
        f"no part of {block} is free on this machine", hint="name a private block that is, with ISOBOX_EGRESS_BLOCK"
    )


def _recorded(record: Path, state: Path) -> tuple[str | None, IPv4Network | None]:
    """The tag and the share that the last server of this state directory had; servers of before wrote no tag."""
    try:
        found = json.loads(record.read_text())
        share, tag = IPv4Network(found["share"]), str(found.get("tag", tag_of(state)))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None, None
    return (tag, share) if re.fullmatch(r"[0-9a-f]{4}", tag) else (None, None)


def recorded_tag(state: Path) -> str | None:
    """The tag of a state directory's network; None where it had none yet."""
    return _recorded(state / "network.json", state)[0]


def _choose_tag(state: Path, routes: IPRoute, nftables: Nftables, others: Iterable[Owner]) -> str:
    """A tag that no record has and by which nothing on the machine goes, whoever made that."""
    names = [str(link.get("ifname")) for link in routes.get_links()]
    names += namespaces.all_("isobox-")
    names += re.findall(r"isobox_[0-9a-f]{4}\b", nftables.run("list tables"))
    found = {match[1] for name in names if (match := re.match(r"(?:ib|isobox[-_])([0-9a-f]{4})(?:[x-]|$)", name))}
    tag = choose_tag(state, found | {owner.tag for owner in others if owner.tag}, nflog.groups())
    if tag is None:
        raise NetworkUnavailable("no tag is free on this machine", hint="run `isobox doctor --sweep`")
    return tag


def _networks(routes: IPRoute, *, own: str) -> list[IPv4Network]:
    """Addresses and routes of the machine, but for the default route and our own links'."""
    mine = {link["index"] for link in routes.get_links() if str(link.get("ifname")).startswith(own)}
    found = []
    for address in routes.get_addr(family=socket.AF_INET):
        found.append(IPv4Network(f"{address.get('address')}/{address['prefixlen']}", strict=False))
    for route in routes.get_routes(family=socket.AF_INET, table=254):
        destination: Any = route.get("dst")
        if destination and route.get("oif") not in mine:
            found.append(IPv4Network(f"{destination}/{route['dst_len']}", strict=False))
    return found
