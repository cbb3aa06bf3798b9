"""One sandbox in the gateway's care: its rules, pins, flows, credentials and what it has used of its limits. No I/O."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from netpolicy.audit import Record
from netpolicy.gateway.pins import Pins
from netpolicy.gateway.redact import Needles
from netpolicy.match import Rules, Verdict, hint
from netpolicy.policy import CLOSED, DNS_PER_S, Injection

_NAMES_PER_HOUR: Final = 2000
_NAME_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Authority:
    """A tenant's certificate authority, both in PEM."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """Secrets by name, placeholders by the environment variable that holds them, and who signs our certificates."""

    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    placeholders: dict[str, str] = field(default_factory=dict)
    authority: Authority | None = field(default=None, repr=False)


@dataclass(eq=False, slots=True)
class Flow:
    """A connection that goes through; `end` cuts it off at once."""

    number: int
    name: str
    sni: str | None
    host: str | None
    destination: IPv4Address
    port: int
    end: Callable[[], None]
    began: float = field(default_factory=time.monotonic)
    tx_bytes: int = 0
    rx_bytes: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class Bucket:
    """So many a second, and as many at once."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._left = float(per_s)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more is within the limit at now seconds."""
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _is_address(text: str) -> bool:
    return text.replace(".", "").isdecimal()


class Ward:
    """See the module."""

    def __init__(self, sandbox: str, address: IPv4Address, device: int) -> None:
        self.sandbox = sandbox
        self.address = address
        self.device = device
        self.generation = 0
        self.rules = Rules(CLOSED)
        self.credentials = Credentials()
        self.pins = Pins()
        self.flows: set[Flow] = set()
        self.needles: dict[str, Needles] = {}
        """What answers of a host are searched for, by host; made when one is first asked."""
        self.spent: dict[Injection, int] = {}
        self.asking = self.streams = self.connecting = 0
        """Questions, streams of questions and connections that are on now: no sandbox takes the room of others."""
        self._questions = Bucket(DNS_PER_S)
        self._asked: deque[tuple[float, str]] = deque()
        self._distinct: set[str] = set()

    # ---- the policy

    def guard(self, rules: Rules, credentials: Credentials, generation: int) -> list[Flow]:
        """Its rules from now on; returns the flows that they no longer allow, their pins are gone already."""
        self.rules, self.credentials, self.generation = rules, credentials, generation
        self.needles = {}
        self._questions = Bucket(rules.policy.limits.dns_per_s or DNS_PER_S)
        self.pins.keep(name for name in self.pins.all() if rules.name(name).allowed)
        return [flow for flow in self.flows if not self._still_allowed(flow)]

    def _still_allowed(self, flow: Flow) -> bool:
        if self.rules.denied_address(flow.destination, "tcp", flow.port) is not None:
            return False
        if flow.name == str(flow.destination):
            return self.rules.address(flow.destination, "tcp", flow.port).allowed
        return self.rules.host(flow.name, flow.port).allowed

    def injections(self, host: str) -> list[Injection]:
        """The credentials for a host."""
        return [each for each in self.rules.policy.inject if each.host == host]

    def spend(self, injection: Injection) -> bool:
        """Count a request that carries a credential; False when its budget is spent."""
        spent = self.spent.get(injection, 0)
        if injection.budget is not None and spent >= injection.budget:
            return False
        self.spent[injection] = spent + 1
        return True

    # ---- names

    def ask(self, name: str, now: float) -> Verdict:
        """Whether a name may be resolved at now seconds, limits included."""
        verdict = self.rules.name(name)
        if not verdict.allowed:
            return verdict
        if len(name) > _NAME_MAX:
            return Verdict(False, "limit name_length", f"names of more than {_NAME_MAX} characters are not resolved")
        if not self._count_name(name, now):
            return Verdict(False, "limit names_per_hour", f"{_NAMES_PER_HOUR} different names in an hour are the most")
        return verdict

    def may_ask(self, now: float) -> bool:
        """Whether another question is within the rate."""
        return self._questions.take(now)

    def _count_name(self, name: str, now: float) -> bool:
        while self._asked and self._asked[0][0] < now - 3600:
            self._distinct.discard(self._asked.popleft()[1])
        if name in self._distinct:
            return True
        if len(self._asked) >= _NAMES_PER_HOUR:
            return False
        self._asked.append((now, name))
        self._distinct.add(name)
        return True

    def candidates(self, destination: IPv4Address, port: int, now: float) -> Iterator[tuple[str, Verdict]]:
        """The names pinned to a destination, each with what the rules say of it."""
        for name in self.pins.names(destination, now):
            yield name, self.rules.host(name, port)

    # ---- records

    def record(self, event: str, verdict: Verdict, **fields: object) -> Record:
        """A record of a decision; a refusal says what to ask for."""
        record = Record(
            event,  # type: ignore[arg-type]  # callers write it out
            self.sandbox,
            self.generation,
            "allow" if verdict.allowed else "refuse",
            verdict.rule,
            verdict.reason,
            **fields,  # type: ignore[arg-type]
        )
        if not verdict.allowed and not verdict.rule.startswith("limit"):
            named = record.sni or record.host or record.name
            to = named or record.destination or ""
            record.hint = hint(to, record.port, named=named is not None and not _is_address(to), verdict=verdict)
        elif not verdict.allowed:
            record.hint = "slow down, or ask for a larger limit in the sandbox's network policy"
        return record
