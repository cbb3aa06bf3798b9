"""Answers the questions of sandboxes: denied names at once, allowed ones by asking upstream."""

import asyncio
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Final

from common.tasks import TaskOwner
from netpolicy.gateway import dns
from netpolicy.gateway.dns import Code, Question, Resolved
from netpolicy.gateway.journal import Journal
from netpolicy.gateway.turns import Turns
from netpolicy.gateway.ward import Ward
from netpolicy.match import Verdict
from netpolicy.names import from_wire

_UPSTREAM_TIMEOUT_S: Final = 2.0
_ATTEMPTS: Final = 2
_ASKING_MAX: Final = 64
"""Questions of one sandbox that are on at a time; more get SERVFAIL at once."""
_UPSTREAM_MAX: Final = 128
"""Questions of all sandboxes that are upstream at a time (dnsmasq, a common resolver, takes 150)."""
_STREAMS_MAX: Final = 8
_TCP_IDLE_S: Final = 10.0
_UNANSWERED: Final = Verdict(False, "upstream", "the resolver of this machine did not answer")

Upstream = tuple[str, int]


class Resolver:
    """See the module. `ward` finds a sandbox by its address."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        ward: Callable[[IPv4Address], Ward | None],
        journal: Journal,
        tasks: TaskOwner,
    ) -> None:
        self._upstreams = upstreams
        self._ward = ward
        self._journal = journal
        self._tasks = tasks
        self._turns = Turns(_UPSTREAM_MAX)

    # ---- the ways in

    def serve_datagrams(self, listener: socket.socket) -> None:
        """Answer what comes to a socket, from now on."""
        asyncio.get_running_loop().add_reader(listener.fileno(), self._datagrams, listener)

    def _datagrams(self, listener: socket.socket) -> None:
        for _ in range(64):
            try:
                message, peer = listener.recvfrom(dns.MESSAGE_MAX + 1)
            except OSError:
                return
            ward = self._ward(IPv4Address(peer[0]))
            if ward is None:
                continue
            self._tasks.spawn(self._answer_datagram(listener, ward, message, peer), name="dns")

    async def _answer_datagram(
        self, listener: socket.socket, ward: Ward, message: bytes, peer: tuple[str, int]
    ) -> None:
        if (answer := await self.answer(ward, message, most=dns.UDP_MAX)) is not None:
            try:
                listener.sendto(answer, peer)
            except OSError:
                return  # the sandbox has ended, or its queue is full: it asks again

    async def serve_stream(self, stream: socket.socket, address: IPv4Address) -> None:
        """Answer the questions of one TCP connection until it ends or falls silent."""
        loop = asyncio.get_running_loop()
        ward = self._ward(address)
        if ward is None or ward.streams >= _STREAMS_MAX:
            return
        ward.streams += 1
        try:
            while True:
                async with asyncio.timeout(_TCP_IDLE_S):
                    size = struct.unpack(">H", await _exactly(stream, 2))[0]
                    message = await _exactly(stream, size)
                if (answer := await self.answer(ward, message, most=dns.MESSAGE_MAX)) is None:
                    return
                await loop.sock_sendall(stream, struct.pack(">H", len(answer)) + answer)
        except (EOFError, OSError, TimeoutError):
            return
        finally:
            ward.streams -= 1

    # ---- one question

    async def answer(self, ward: Ward, message: bytes, *, most: int) -> bytes | None:
        """The answer to a message, None where there is none to give."""
        try:
            question = dns.parse_query(message)
        except dns.Malformed:
            return dns.refusal(message, Code.FORMAT)
        now = time.monotonic()
        if not ward.may_ask(now):
            return dns.answer(question, Code.REFUSED)
        if self._journal.full(ward.sandbox) or ward.asking >= _ASKING_MAX:
            return dns.answer(question, Code.FAILED)
        ward.asking += 1
        try:
            code, found = await self._decide(ward, question, now)
        finally:
            ward.asking -= 1
        return dns.answer(question, code, found.addresses, found.ttl, most=most)

    async def _decide(self, ward: Ward, question: Question, now: float) -> tuple[Code, Resolved]:
        nothing = Resolved((), 0)
        name = from_wire(question.labels)
        if name is None or question.class_ != 1:
            verdict = Verdict(False, "default", "it is no name of a host")
            self._journal.add(ward.record("dns", verdict, name=question.name[:255]))
            return Code.NO_NAME, nothing
        verdict = ward.ask(name, now)
        if not verdict.allowed:
            if question.type not in dns.NO_DATA:  # asked beside A: one attempt is one record
                self._journal.add(ward.record("dns", verdict, name=name))
            return (Code.REFUSED if verdict.rule.startswith("limit") else Code.NO_NAME), nothing
        if question.type in dns.NO_DATA:
            return Code.OK, nothing
        if question.type != dns.Type.A:
            refusal = Verdict(False, "type", f"only addresses are looked up, not records of type {question.type}")
            self._journal.add(ward.record("dns", refusal, name=name))
            return Code.REFUSED, nothing
        if (known := ward.pins.answer(name, now)) is not None:
            return Code.OK, Resolved(*known)
        generation = ward.generation
        async with self._turns.place(ward.sandbox):
            found = await self._resolve(name)
        if isinstance(found, Code):
            refusal = _UNANSWERED if found == Code.FAILED else Verdict(True, verdict.rule, "there is no such name")
            self._journal.add(ward.record("dns", refusal, name=name))
            return found, nothing
        if generation != ward.generation and not (verdict := ward.rules.name(name)).allowed:
            return Code.NO_NAME, nothing
        if (voided := _void(ward, found)) is not None:
            self._journal.add(ward.record("dns", voided, name=name, destination=str(found.addresses[0])))
            return Code.NO_NAME, nothing
        if found.addresses and not ward.pins.add(name, found.addresses, found.ttl, now):
            refusal = Verdict(False, "limit names", "too many names are in use at once")
            self._journal.add(ward.record("dns", refusal, name=name))
            return Code.REFUSED, nothing
        shown = ", ".join(map(str, found.addresses[:8]))
        self._journal.add(ward.record("dns", verdict, name=name, destination=shown or None))
        return Code.OK, found

    # ---- upstream

    async def _resolve(self, name: str) -> Resolved | Code:
        for attempt in range(_ATTEMPTS):
            for upstream in self._upstreams:
                try:
                    async with asyncio.timeout(_UPSTREAM_TIMEOUT_S * (attempt + 1)):
                        return await _ask(upstream, name)
                except (OSError, TimeoutError, EOFError, dns.Malformed):
                    continue
        return Code.FAILED


def _void(ward: Ward, found: Resolved) -> Verdict | None:
    """Refuse an answer that leads to what is denied: through a denied name, or to an address of the floor.

    A name must not lead to such an address by turns, so one of them voids the whole answer.
    """
    for name in found.aliased:
        if (denied := ward.rules.denied_name(name)) is not None:
            return Verdict(False, denied.rule, f"it is an alias of {name[:255]}, which a rule denies")
    for address in found.addresses:
        if ward.rules.floor.holds(address) or (is_local(address) and not ward.rules.floor.pierced(address)):
            return Verdict(False, "floor", f"it leads to {address}, which is never reachable from a sandbox")
    return None


def is_local(address: IPv4Address) -> bool:
    """Whether an address is one of this machine's own: a packet to it would come from it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == str(address))


async def _ask(upstream: Upstream, name: str) -> Resolved | Code:
    loop = asyncio.get_running_loop()
    id_ = secrets.randbits(16)
    message = dns.query(id_, name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        await loop.sock_connect(asking, upstream)  # connected: nobody else's datagram is taken
        await loop.sock_sendall(asking, message)
        while True:
            answer = await loop.sock_recv(asking, dns.MESSAGE_MAX)
            try:
                found = dns.parse_answer(answer, id_, name)
            except dns.Malformed:
                continue  # somebody guesses; the time limit is the caller's
            if not dns.is_cut(answer):
                return found
            break
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
        await loop.sock_connect(asking, upstream)
        await loop.sock_sendall(asking, struct.pack(">H", len(message)) + message)
        size = struct.unpack(">H", await _exactly(asking, 2))[0]
        return dns.parse_answer(await _exactly(asking, size), id_, name)


async def _exactly(stream: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    found = b""
    while len(found) < size:
        if not (piece := await loop.sock_recv(stream, size - len(found))):
            raise EOFError
        found += piece
    return found
