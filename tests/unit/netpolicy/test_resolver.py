"""Questions of sandboxes through the resolver, to a server on a socket of the test's own."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from common.tasks import TaskOwner
from netpolicy.gateway import dns
from netpolicy.gateway.dns import Code
from netpolicy.gateway.journal import Journal
from netpolicy.gateway.resolver import Resolver
from netpolicy.gateway.turns import Turns
from netpolicy.gateway.ward import Credentials, Ward
from netpolicy.match import Rules
from netpolicy.policy import parse


@dataclass
class Upstream(asyncio.DatagramProtocol):
    """A resolver that answers what it is told to, and keeps the rest waiting."""

    addresses: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)
    ids: set[int] = field(default_factory=set)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: Any) -> None:
        question = dns.parse_query(data)
        self.asked.append(question.name)
        self.ports.add(peer[1])
        self.ids.add(question.id)
        if question.name not in self.addresses:
            return
        records, owner = b"", b"\xc0\x0c"
        if (target := self.aliases.get(question.name)) is not None:
            wire = b"".join(bytes([len(label)]) + label.encode() for label in target.split(".")) + b"\0"
            records, owner = owner + struct.pack(">HHIH", 5, 1, 30, len(wire)) + wire, wire
        for address in self.addresses[question.name]:
            records += owner + struct.pack(">HHIH", 1, 1, 30, 4) + IPv4Address(address).packed
        count = len(self.addresses[question.name]) + (target is not None)
        self.transport.sendto(data[:2] + struct.pack(">HHHHH", 0x8180, 1, count, 0, 0) + question.raw + records, peer)


def ward(sandbox: str, policy: dict[str, Any]) -> Ward:
    found = Ward(sandbox, IPv4Address("198.19.0.2"), 1)
    found.guard(Rules(parse(policy)), Credentials(), 1)
    return found


def resolving(work: Callable[[Resolver, Upstream, Journal], Awaitable[None]]) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        transport, upstream = await loop.create_datagram_endpoint(Upstream, ("127.0.0.1", 0))
        journal = Journal()
        async with TaskOwner() as tasks:
            at = transport.get_extra_info("sockname")
            await work(Resolver([at], lambda _: None, journal, tasks), upstream, journal)
        transport.close()

    asyncio.run(run())


async def code(resolver: Resolver, of: Ward, name: str) -> Code:
    answer = await resolver.answer(of, dns.query(1, name), most=dns.UDP_MAX)
    assert answer is not None
    return Code(answer[3] & 0xF)


def test_an_alias_of_a_denied_name_does_not_exist() -> None:
    async def work(resolver: Resolver, upstream: Upstream, journal: Journal) -> None:
        upstream.addresses = {"a.test": ["203.0.113.1"], "b.test": ["203.0.113.2"]}
        upstream.aliases = {"a.test": "Denied.test", "b.test": "other.test"}
        for policy in (
            {"default": "allow", "deny": [{"host": "denied.test"}]},
            {"allow": [{"host": "a.test"}, {"host": "b.test"}], "deny": [{"host": "denied.test"}]},
        ):
            mine = ward("sbx", policy)
            assert await code(resolver, mine, "a.test") is Code.NO_NAME
            assert mine.pins.all() == set()
            assert await code(resolver, mine, "b.test") is Code.OK, "what an allowed name is an alias of needs no rule"
        records = await journal.after(0, 9)
        assert records[0].rule == "deny[0] host denied.test"
        assert "alias of denied.test" in records[0].reason

    resolving(work)


def test_who_asks_too_much_at_once_is_told_so_and_a_neighbour_is_answered() -> None:
    async def work(resolver: Resolver, upstream: Upstream, journal: Journal) -> None:
        upstream.addresses = {"quiet.test": ["203.0.113.1"]}
        policy = {"allow": [{"host": "*.never.test"}, {"host": "quiet.test"}], "limits": {"dns_per_s": 1000}}
        noisy = [ward(f"noisy{n}", policy) for n in range(3)]
        flood = [
            asyncio.get_running_loop().create_task(code(resolver, each, f"n{n}.never.test"))
            for each in noisy
            for n in range(200)
        ]
        while len(upstream.asked) < 128:
            await asyncio.sleep(0)
        assert [each.asking for each in noisy] == [64, 64, 64]
        refused = [task.result() for task in flood if task.done()]
        assert refused == [Code.FAILED] * (600 - 3 * 64), "beyond what may be on at once"
        assert len(upstream.asked) == 128, "no more than that are upstream"
        neighbour = asyncio.get_running_loop().create_task(code(resolver, ward("quiet", policy), "quiet.test"))
        await asyncio.sleep(0)
        for task in [task for task in flood if not task.done()][:2]:  # the next place is another noisy one's at most
            task.cancel()
        assert await neighbour is Code.OK
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)

    resolving(work)


def test_nobody_can_guess_what_a_question_upstream_looks_like() -> None:
    async def work(resolver: Resolver, upstream: Upstream, journal: Journal) -> None:
        upstream.addresses = {f"n{n}.a.test": ["203.0.113.1"] for n in range(50)}
        mine = ward("sbx", {"allow": [{"host": "*.a.test"}]})
        for name in upstream.addresses:
            assert await code(resolver, mine, name) is Code.OK
        assert len(upstream.ids) > 40
        assert len(upstream.ports) > 25

    resolving(work)


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_places_are_bounded_and_given_in_turn(places: int, steps: list[tuple[str, bool]]) -> None:
    async def run() -> None:
        turns, holding, served = Turns(places), 0, list[str]()
        over = asyncio.Event()

        async def work(owner: str) -> None:
            nonlocal holding
            async with turns.place(owner):
                holding += 1
                served.append(owner)
                assert holding <= places
                await over.wait()
                holding -= 1

        tasks = [asyncio.get_running_loop().create_task(work("hog")) for _ in range(places + 20)]
        await asyncio.sleep(0)
        for owner, cancelled in steps:
            tasks.append(asyncio.get_running_loop().create_task(work(owner)))
            await asyncio.sleep(0)
            if cancelled:
                tasks[-1].cancel()
        waiting = {owner for owner, cancelled in steps if not cancelled}
        over.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        first = served[places : places + 1 + len(waiting)]
        assert waiting <= set(first), "each that waited had its turn before the hog had two"
        assert len(served) == places + 20 + sum(not cancelled for _, cancelled in steps)
        assert turns._free == places
        assert not turns._waiting

    asyncio.run(run())
