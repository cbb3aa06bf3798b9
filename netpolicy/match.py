"""Decisions: what a policy says of a name, of a name's port, of an address. No I/O.

Order: the floor, then the operator's deny, then the tenant's deny, then allow, then the default.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from netpolicy.floor import Floor
from netpolicy.names import matches
from netpolicy.policy import WEB_TLS, CidrRule, HostRule, Policy, Ports, Proto, in_ports, merged


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, and by which rule: "allow[2] host *.example.org", "deny[0] …", "floor", "default"."""

    allowed: bool
    rule: str
    reason: str = ""
    """Of a refusal: why, in words."""


@dataclass(frozen=True, slots=True)
class Rules:
    """All that a decision is made by."""

    policy: Policy
    floor: Floor = field(default_factory=Floor)
    operator_deny: tuple[HostRule | CidrRule, ...] = ()

    # ---- names

    def name(self, name: str) -> Verdict:
        """Whether a name may be resolved: whether any port of it may be reached."""
        if (denied := self._denied_host(name, None)) is not None:
            return denied
        for n, rule in enumerate(self.policy.allow):
            if isinstance(rule, HostRule) and matches(rule.host, name):
                return Verdict(True, f"allow[{n}] {rule.text()}")
        return self._default(f"no rule allows the name {name}")

    def host(self, name: str, port: int) -> Verdict:
        """Whether a port of a host may be reached by its name."""
        if (denied := self._denied_host(name, port)) is not None:
            return denied
        ports: list[str] = []
        for n, rule in enumerate(self.policy.allow):
            if isinstance(rule, HostRule) and matches(rule.host, name):
                if in_ports(rule.ports, port):
                    return Verdict(True, f"allow[{n}] {rule.text()}")
                ports.append(rule.text())
        if ports and self.policy.default == "deny":
            return Verdict(False, "default", f"{name} is allowed on other ports only ({'; '.join(ports)[:200]})")
        return self._default(f"no rule allows {name} port {port}")

    def denied_name(self, name: str) -> Verdict | None:
        """The refusal of a name that is denied on every port, whatever allows it."""
        return self._denied_host(name, None)

    def _denied_host(self, name: str, port: int | None) -> Verdict | None:
        for whose, rules in (("operator", self.operator_deny), ("deny", self.policy.deny)):
            for n, rule in enumerate(rules):
                if isinstance(rule, HostRule) and matches(rule.host, name):
                    wide = not rule.ports if port is None else in_ports(rule.ports, port)
                    if wide:
                        return Verdict(False, _rule_name(whose, n, rule), f"a rule denies {name}")
        return None

    # ---- addresses

    def address(self, address: IPv4Address, proto: Proto, port: int) -> Verdict:
        """Whether an address may be reached as an address: by a cidr rule, or by default."""
        if self.floor.holds(address):
            return Verdict(False, "floor", f"{address} is never reachable from a sandbox")
        for whose, rules in (("operator", self.operator_deny), ("deny", self.policy.deny)):
            for n, rule in enumerate(rules):
                if isinstance(rule, CidrRule) and _covers(rule, address, proto, port):
                    return Verdict(False, _rule_name(whose, n, rule), f"a rule denies {address}")
        for n, rule in enumerate(self.policy.allow):
            if isinstance(rule, CidrRule) and _covers(rule, address, proto, port):
                return Verdict(True, f"allow[{n}] {rule.text()}")
        if self.policy.default == "allow" and port in BYPASSES:
            return Verdict(False, "bypass", "other resolvers are not reachable: names are resolved by the gateway")
        return self._default(f"no rule allows {address} {proto} port {port}")

    def denied_address(self, address: IPv4Address, proto: Proto, port: int) -> Verdict | None:
        """The refusal of an address that a name resolved to, if it is refused as an address."""
        verdict = self.address(address, proto, port)
        return None if verdict.allowed or verdict.rule in ("default", "bypass") else verdict

    def _default(self, reason: str) -> Verdict:
        if self.policy.default == "allow":
            return Verdict(True, "default")
        return Verdict(False, "default", reason)

    @property
    def proxied(self) -> Ports | None:
        """The TCP ports that the gateway judges, by name; empty: every port, None: none."""
        if self.policy.default == "allow":
            return () if self.denies_names else WEB_TLS if self.policy.inject else None
        return merged(*(each.ports for each in self.policy.allow if isinstance(each, HostRule)))

    @property
    def denies_names(self) -> bool:
        """Whether somebody is denied by name: then even what is allowed by default has to show its name."""
        return any(isinstance(each, HostRule) for each in (*self.policy.deny, *self.operator_deny))


BYPASSES: Final = frozenset({53, 853})
"""Ports of other resolvers: open by default they would go round every rule for names."""


HINTS: Final = {
    "protocol": "by name, TLS goes to 443 and HTTP to 80; another protocol needs a rule that names its port",
    "ech": "turn Encrypted Client Hello off: --disable-features=EncryptedClientHello in Chromium, "
    "security.tls.ech.grease_probability 0 and network.dns.echconfig.enabled false in Firefox",
    "spoof": "send from the sandbox's own address",
    "type": "look up addresses (A)",
    "upstream": "try again",
    "inject": "send a credential's placeholder to its own host alone, by a plain path",
    "answer": "answers that may hold a credential have to be readable: see docs/policies.md, Credentials",
    "budget": "ask for a larger budget",
    "bypass": "use the sandbox's own resolver, or allow this address by a cidr rule",
}


def _rule_name(whose: str, n: int, rule: HostRule | CidrRule) -> str:
    return "operator" if whose == "operator" else f"{whose}[{n}] {rule.text()}"


def _covers(rule: CidrRule, address: IPv4Address, proto: Proto, port: int) -> bool:
    return proto in rule.protos and in_ports(rule.ports, port) and address in rule.network


def hint(destination: str, port: int | None, *, named: bool, verdict: Verdict) -> str:
    """What to ask for, to be allowed what was refused."""
    if verdict.rule == "floor":
        return "private and local addresses are closed; the operator can open one (ISOBOX_EGRESS_FLOOR_HOLES)"
    if verdict.rule == "pin":
        return "connect to the host by its name: names are resolved, and tied to their addresses, by the gateway"
    if verdict.rule in HINTS:
        return HINTS[verdict.rule]
    if verdict.rule == "operator":
        return "the operator of this server denies it"
    if verdict.rule.startswith("deny["):
        return f"take {verdict.rule.split()[0]} out of the sandbox's network policy"
    ports = "" if port is None else f', "ports": [{port}]'
    form = f'{{"host": "{destination}"{ports}}}' if named else f'{{"cidr": "{destination}/32"{ports}}}'
    return f"to allow it add {form} to `allow` of the sandbox's network policy"
