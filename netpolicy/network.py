"""The network of one machine's sandboxes: a slot each, the kernel's rules, the gateway; joined, in the right order.

lease ──▶ apply (again and again) ──▶ release
closed       first the kernel's rules, then the gateway's pins and flows, then connections that lost their right
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

import structlog

from common.owners import Claim
from common.tasks import TaskOwner
from netpolicy import conntrack, nft
from netpolicy.errors import NetworkUnavailable
from netpolicy.floor import BLOCK, Floor
from netpolicy.gateway.ward import Credentials
from netpolicy.gateway.wire import Guarded
from netpolicy.match import Rules
from netpolicy.nftables import Nftables
from netpolicy.policy import CLOSED, CidrRule, HostRule, Policy, in_ports
from netpolicy.slots import Slot, Slots, open_slots
from netpolicy.supervisor import OnRecords, Supervisor, supervised

_log = structlog.get_logger(__name__)
_FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")
_COUNTING: Final = Path("/proc/sys/net/netfilter/nf_conntrack_acct")
_WAS_OFF: Final = Path("/run/isobox-forwarding")


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """The operator's: where slots' addresses come from, who resolves names, what of the floor may be named."""

    block: IPv4Network = BLOCK
    resolvers: tuple[tuple[str, int], ...] = ()
    holes: tuple[IPv4Network, ...] = ()
    deny: tuple[HostRule | CidrRule, ...] = ()
    ready: int = 4
    """Slots that are kept ready; one more takes some milliseconds."""
    trust: Path | None = None
    """Certificates by which hosts are verified that credentials go to; None: the system's."""


@dataclass(frozen=True, slots=True)
class Egress:
    """What one sandbox may do outside: its policy, the credentials for it, and a number that grows with each change."""

    policy: Policy = CLOSED
    credentials: Credentials = field(default_factory=Credentials)
    generation: int = 0


@dataclass(slots=True)
class _Leased:
    slot: Slot
    rules: Rules
    quota: bool = False
    shaped: bool = False
    used: bool = False
    """Whether it was ever open: then it has to be made like new."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One change at a time."""
    before: tuple[int, int] = (0, 0)
    """Bytes that went through the slot before this sandbox had it."""


class Network:
    """See the module. Made by `open_network`; `begin` comes first."""

    def __init__(self, settings: NetworkSettings, slots: Slots, supervisor: Supervisor, tasks: TaskOwner) -> None:
        self._tasks = tasks
        self._settings = settings
        self._slots = slots
        self._supervisor = supervisor
        self._floor = Floor(settings.holes, settings.block)
        self._leased: dict[str, _Leased] = {}

    def _rules(self, policy: Policy) -> Rules:
        return Rules(policy, self._floor, self._settings.deny)

    async def begin(self, kept: Mapping[str, tuple[int, Egress]]) -> None:
        """Take over the slots of sandboxes that live, (slot, egress) each; whatever else there was is gone."""
        place = self._slots.place
        found = await self._slots.begin([number for number, _ in kept.values()])
        resolvers = [IPv4Address(host) for host, _ in self._settings.resolvers]
        used = await asyncio.to_thread(self._quotas)
        script = [nft.base(place, self._floor, resolvers)]
        for sandbox, (number, egress) in kept.items():
            if (slot := found.get(number)) is None:
                continue  # its link is gone, and it has no network any more
            rules, quota = self._rules(egress.policy), egress.policy.limits.tx_bytes is not None
            script.append(nft.slot(place, number))
            script.append(nft.policy(place, number, rules, had_quota=False, used=used.get(number, 0)))
            shaped = egress.policy.limits.tx_bytes_per_s is not None
            self._leased[sandbox] = _Leased(slot, rules, quota=quota, shaped=shaped, used=True)
        await asyncio.to_thread(self._slots.nftables.run, "".join(script))
        for sandbox, (_, egress) in kept.items():
            if sandbox in self._leased:
                self._supervisor.know(self._guarded(sandbox, egress))
        self._tasks.spawn(self._supervisor.run(), name="gateway")
        self._tasks.spawn(self._slots.refill(), name="slots")

    def _quotas(self) -> dict[int, int]:
        """Bytes spent, by slot, as the kernel has them."""
        try:
            listed = self._slots.nftables.run(f"list quotas table ip {self._slots.place.table}")
        except NetworkUnavailable:  # there is no such table yet
            return {}
        pattern = r"quota q_(\d+) \{\s+over \d+ \w+(?: used (\d+) (\w+))?"
        units = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20, "": 1}
        return {int(n): int(used or 0) * units[unit] for n, used, unit in re.findall(pattern, listed)}

    # ---- a sandbox's way

    async def lease(self, sandbox: str) -> tuple[int, int]:
        """A closed slot for a sandbox: (its number, a packet socket for the sentry, which the caller closes)."""
        slot = await self._slots.lease()
        try:
            fd = await self._slots.open_socket(slot)
        except BaseException:
            await self._slots.release(slot)
            raise
        self._leased[sandbox] = _Leased(slot, self._rules(CLOSED), before=self._slots.traffic(slot))
        return slot.number, fd

    def rename(self, sandbox: str, name: str) -> None:
        """What was leased to one is the other's; before the first `apply`, when nobody else knows its name."""
        self._leased[name] = self._leased.pop(sandbox)

    async def apply(self, sandbox: str, egress: Egress) -> None:
        """These are its rules from now on: when this returns nothing that they refuse gets another byte through."""
        if (leased := self._leased.get(sandbox)) is None:
            raise _without(sandbox)
        async with leased.turn:
            if self._leased.get(sandbox) is not leased:
                raise _without(sandbox)
            before, after = leased.rules, self._rules(egress.policy)
            await self._limit(leased, after)
            leased.rules = after
            await self._supervisor.guard(self._guarded(sandbox, egress))
            if not before.policy.closed:
                await asyncio.to_thread(self._cut, leased)

    async def _limit(self, leased: _Leased, rules: Rules) -> None:
        policy, slot = rules.policy, leased.slot
        if policy.closed and leased.rules.policy.closed and not leased.quota:
            return
        if _forwards(policy):
            await asyncio.to_thread(_enable_forwarding)
        used = 0
        if leased.quota:
            used = (await asyncio.to_thread(self._quotas)).get(slot.number, 0)
        script = nft.policy(self._slots.place, slot.number, rules, had_quota=leased.quota, used=used)
        await asyncio.to_thread(self._slots.nftables.run, script)
        leased.used = True
        leased.quota = policy.limits.tx_bytes is not None
        rate = policy.limits.tx_bytes_per_s
        if rate is not None or leased.shaped:
            await self._slots.shape(slot, rate)
            leased.shaped = rate is not None

    def _guarded(self, sandbox: str, egress: Egress) -> Guarded:
        leased = self._leased[sandbox]
        slot = leased.slot
        return Guarded(sandbox, slot.address, slot.device, egress.generation, leased.rules, egress.credentials)

    def _cut(self, leased: _Leased) -> None:
        def allowed(each: conntrack.Connection) -> bool:
            if each.destination == self._slots.place.gateway:
                return True  # a question to the resolver
            if leased.rules.address(each.destination, each.proto, each.port).allowed:
                return True
            ports = leased.rules.proxied  # there the gateway has cut what had to be
            return each.proto == "tcp" and ports is not None and in_ports(ports, each.port)

        conntrack.cut(leased.slot.address, allowed)

    async def release(self, sandbox: str) -> None:
        """Its sandbox has ended: the slot is made like new for the next one. No error if there is none."""
        leased = self._leased.pop(sandbox, None)
        if leased is None:
            return
        async with leased.turn:
            doubtful = False
            if leased.used:
                try:
                    await self._limit(leased, self._rules(CLOSED))
                    await asyncio.to_thread(conntrack.cut, leased.slot.address, lambda _: False)
                except (NetworkUnavailable, OSError) as error:
                    doubtful = True
                    _log.warning("slot thrown away", slot=leased.slot.number, error=str(error))
            await self._supervisor.forget(sandbox)
            await self._slots.release(leased.slot, doubtful=doubtful)

    # ---- looking

    def slot(self, sandbox: str) -> int | None:
        """Its slot's number."""
        leased = self._leased.get(sandbox)
        return None if leased is None else leased.slot.number

    def traffic(self, sandbox: str) -> tuple[int, int]:
        """Bytes that it has sent and received through its slot."""
        leased = self._leased.get(sandbox)
        if leased is None:
            return 0, 0
        sent, received = self._slots.traffic(leased.slot)
        return sent - leased.before[0], received - leased.before[1]

    async def connections(self, sandbox: str) -> int:
        """Connections to the outside that it has open."""
        leased = self._leased.get(sandbox)
        if leased is None or leased.rules.policy.closed:
            return 0
        found = await asyncio.to_thread(conntrack.connections, leased.slot.address)
        return sum(each.lives and each.destination != self._slots.place.gateway for each in found)

    @property
    def gateway_starts(self) -> int:
        """How often the gateway had to be started."""
        return self._supervisor.starts

    @property
    def problem(self) -> str | None:
        """Why no sandbox can be given a network now; None where one can."""
        return self._supervisor.problem or self._slots.problem


def _without(sandbox: str) -> NetworkUnavailable:
    return NetworkUnavailable(f"{sandbox} has no network", hint="create another sandbox")


def _forwards(policy: Policy) -> bool:
    return policy.default == "allow" or any(isinstance(each, CidrRule) for each in policy.allow)


def _enable_forwarding() -> None:
    """Only once a policy needs it: it concerns the whole machine (docs/policies.md)."""
    if _COUNTING.exists():  # bytes of connections, for the audit
        _COUNTING.write_text("1")
    if _FORWARD.read_text().strip() != "1":
        _WAS_OFF.touch()  # first: who finds it knows that it was off
        _FORWARD.write_text("1")
        _log.warning("net.ipv4.ip_forward is on now: a sandbox's policy has cidr rules")


def disable_forwarding(nftables: Nftables) -> None:
    """As it was, if it was one of us; the last server to end does it."""
    if _WAS_OFF.exists() and "isobox_" not in nftables.run("list tables"):
        _FORWARD.write_text("0")
        _WAS_OFF.unlink()


def host_resolvers(text: str) -> tuple[tuple[str, int], ...]:
    """The IPv4 resolvers of a resolv.conf (resolv.conf(5)), in their order."""
    found: Sequence[str] = re.findall(r"^\s*nameserver\s+(\d+\.\d+\.\d+\.\d+)\s*$", text, re.MULTILINE)
    return tuple((each, 53) for each in found)


@asynccontextmanager
async def open_network(
    state: Path, settings: NetworkSettings, on_records: OnRecords, *, claim: Claim | None = None
) -> AsyncIterator[Network]:
    """The machine's network until the end of the block; what sandboxes that live on need stays."""
    async with AsyncExitStack() as stack:
        nftables = Nftables()
        stack.callback(nftables.close)
        stack.callback(disable_forwarding, nftables)
        slots = await stack.enter_async_context(
            open_slots(state, settings.block, nftables, ready=settings.ready, claim=claim)
        )
        supervisor = await stack.enter_async_context(
            supervised(state, slots.place, resolvers=settings.resolvers, on_records=on_records, trust=settings.trust)
        )
        tasks = await stack.enter_async_context(TaskOwner())
        yield Network(settings, slots, supervisor, tasks)
