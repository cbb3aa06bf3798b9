"""The model of a policy, and its parser: from a document to frozen values, each checked once. No I/O.

    {"default": "deny" | "allow", "allow": [rule], "deny": [rule], "inject": [injection], "limits": {…}}

    rule        {"host": NAME | "*.NAME", "ports"?} or {"cidr": NETWORK, "ports"?, "proto"?: "tcp" | "udp"}
    injection   {"host", "methods"?, "path_prefix"?, "header", "format"?, "secret", "budget"?}
                {"host", "env", "secret", "budget"?}     a placeholder stands in the environment

A host rule without ports is for 80 and 443 where it allows, for every port where it denies. A cidr rule without ports
is for all of them; without proto it allows tcp, and denies both.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Final, Literal

from netpolicy.errors import PolicyInvalid
from netpolicy.names import NameInvalid, canonical, pattern

Proto = Literal["tcp", "udp"]
Ports = tuple[tuple[int, int], ...]
"""Ranges, both ends included; empty for every port."""

WEB: Final[Ports] = ((80, 80), (443, 443))
WEB_TLS: Final[Ports] = ((443, 443),)
RULES_MAX: Final = 2000
DNS_PER_S: Final = 100
"""Questions a second where a policy sets no limit of its own."""
_INJECTIONS_MAX: Final = 64
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_SECRET_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_UNTOUCHABLE: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect", "keep-alive"}
)


@dataclass(frozen=True, slots=True)
class HostRule:
    """Hosts by name; ports empty: every port."""

    host: str
    ports: Ports

    def text(self) -> str:
        """As a person reads it."""
        return f"host {self.host}{_ports_text(self.ports)}"


@dataclass(frozen=True, slots=True)
class CidrRule:
    """Addresses; ports empty: every port; protos: which protocols."""

    network: IPv4Network
    ports: Ports
    protos: tuple[Proto, ...]

    def text(self) -> str:
        """As a person reads it."""
        return f"cidr {self.network}{_ports_text(self.ports)} {'/'.join(self.protos)}"


Rule = HostRule | CidrRule


@dataclass(frozen=True, slots=True)
class Injection:
    """A credential for one host: set as `header` by `format`, or standing in for the placeholder in `env`."""

    host: str
    secret: str
    header: str | None = None
    format: str = "{secret}"
    env: str | None = None
    methods: tuple[str, ...] = ()
    path_prefix: str = "/"
    budget: int | None = None
    """So many requests may carry it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one sandbox; None: no bound. Sizes in bytes as the network carries them, headers included."""

    connections: int | None = None
    new_connections_per_s: int | None = None
    tx_bytes: int | None = None
    tx_bytes_per_s: int | None = None
    dns_per_s: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What may leave; by default nothing."""

    default: Literal["deny", "allow"] = "deny"
    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    inject: tuple[Injection, ...] = ()
    limits: Limits = Limits()

    @property
    def closed(self) -> bool:
        """Whether nothing at all is allowed."""
        return self.default == "deny" and not self.allow

    def secrets(self) -> set[str]:
        """Names of the secrets that it needs."""
        return {each.secret for each in self.inject}


CLOSED: Final = Policy()


def in_ports(ports: Ports, port: int) -> bool:
    """Whether a port is among them; no ranges: every port is."""
    return not ports or any(low <= port <= high for low, high in ports)


def merged(*several: Ports) -> Ports | None:
    """The union of ports, its ranges apart; empty for every port, None where there is nothing to join."""
    if not several:
        return None
    if any(not ports for ports in several):
        return ()
    found: list[tuple[int, int]] = []
    for low, high in sorted(each for ports in several for each in ports):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


def _ports_text(ports: Ports) -> str:
    return f" port {', '.join(_range_text(each) for each in ports)}" if ports else ""


def _range_text(ports: tuple[int, int]) -> str:
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


# ---- parsing


def parse(document: object) -> Policy:
    """The policy of a document; PolicyInvalid names the place."""
    whole = _object(document, "the policy", {"default", "allow", "deny", "inject", "limits"})
    default = whole.get("default", "deny")
    if default not in ("deny", "allow"):
        raise _invalid("default", f"{default!r} is neither 'deny' nor 'allow'")
    allow = tuple(_rule(each, f"allow[{n}]", allows=True) for n, each in enumerate(_list(whole, "allow", RULES_MAX)))
    deny = tuple(_rule(each, f"deny[{n}]", allows=False) for n, each in enumerate(_list(whole, "deny", RULES_MAX)))
    injections = _list(whole, "inject", _INJECTIONS_MAX)
    inject = tuple(_injection(each, f"inject[{n}]") for n, each in enumerate(injections))
    _check_injections(inject)
    return Policy(default, allow, deny, inject, _limits(whole.get("limits")))


def _check_injections(inject: Sequence[Injection]) -> None:
    variables = [each.env for each in inject if each.env is not None]
    if len(variables) != len(set(variables)):
        raise _invalid("inject", "two injections use one environment variable", "give each a variable of its own")


def _invalid(place: str, why: str, hint: str = "see docs/policies.md for the forms of a rule") -> PolicyInvalid:
    return PolicyInvalid(f"{place}: {why}", hint=hint)


def _object(value: object, place: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(place, "is no object")
    if unknown := sorted(set(map(str, value)) - known):
        raise _invalid(place, f"has no field {unknown[0]!r}", f"known are: {', '.join(sorted(known))}")
    return {name: each for name, each in value.items() if each is not None}


def _list(whole: Mapping[str, Any], name: str, most: int) -> Sequence[object]:
    value = whole.get(name, [])
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _invalid(name, "is no list")
    if len(value) > most:
        raise _invalid(name, f"has {len(value)} entries; {most} are the most", "use wildcards or networks")
    return value


def _text(value: object, place: str, most: int = 1024) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise _invalid(place, f"is no text of 1 to {most} characters")
    return value


def _rule(value: object, place: str, *, allows: bool) -> Rule:
    fields = _object(value, place, {"host", "cidr", "ports", "proto"})
    ports = _ports(fields.get("ports", []), place)
    if ("host" in fields) == ("cidr" in fields):
        raise _invalid(place, "needs either `host` or `cidr`")
    if "host" in fields:
        if fields.get("proto", "tcp") != "tcp":
            raise _invalid(place, "a host rule is for tcp", "use a cidr rule for udp")
        try:
            host = pattern(_text(fields["host"], place))
        except NameInvalid as error:
            raise _invalid(place, str(error)) from None
        return HostRule(host, ports or (WEB if allows else ()))
    proto = fields.get("proto")
    if proto not in (None, "tcp", "udp"):
        raise _invalid(place, f"{proto!r} is neither 'tcp' nor 'udp'")
    protos: tuple[Proto, ...] = (proto,) if proto else ("tcp",) if allows else ("tcp", "udp")
    try:
        network = IPv4Network(_text(fields["cidr"], place))
    except ValueError as error:
        raise _invalid(place, f"no IPv4 network: {error}", "write it as 203.0.113.0/24") from None
    return CidrRule(network, ports, protos)


def _ports(value: object, place: str) -> Ports:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) > 64:
        raise _invalid(place, "`ports` is no list of at most 64 ports")
    return tuple(sorted({_range(each, place) for each in value}))


def _range(value: object, place: str) -> tuple[int, int]:
    low, dash, high = (str(value), "", "") if isinstance(value, int) else str(value).partition("-")
    if isinstance(value, bool) or not (low.isascii() and low.isdecimal()) or (dash and not high.isdecimal()):
        raise _invalid(place, f"{value!r} is no port", 'ports are whole numbers, or ranges as "8000-8100"')
    first, last = int(low), int(high or low)
    if not 1 <= first <= last <= 65535:
        raise _invalid(place, f"{value!r} is no port", "ports go from 1 to 65535")
    return first, last


def _injection(value: object, place: str) -> Injection:
    known = {"host", "secret", "header", "format", "env", "methods", "path_prefix", "budget"}
    fields = _object(value, place, known)
    try:
        host = canonical(_text(fields.get("host"), f"{place}.host"))
    except NameInvalid as error:
        raise _invalid(place, f"{error}", "an injection names one exact host") from None
    secret = _text(fields.get("secret"), f"{place}.secret")
    if not _SECRET_NAME.fullmatch(secret):
        raise _invalid(place, f"{secret!r} is no name of a secret", "letters, digits, '.', '_' and '-'")
    if ("header" in fields) == ("env" in fields):
        raise _invalid(place, "needs either `header` or `env`")
    budget = _count(fields.get("budget"), f"{place}.budget")
    if "env" in fields:
        if extra := sorted({"format", "methods", "path_prefix"} & set(fields)):
            raise _invalid(place, f"`{extra[0]}` goes with `header`, not with `env`")
        env = _text(fields["env"], f"{place}.env")
        if not _ENV.fullmatch(env):
            raise _invalid(place, f"{env!r} is no environment variable")
        return Injection(host, secret, env=env, budget=budget)
    header = _text(fields["header"], f"{place}.header")
    if not _TOKEN.fullmatch(header) or header.lower() in _UNTOUCHABLE:
        raise _invalid(place, f"{header!r} cannot be set", "use a header such as Authorization or X-Api-Key")
    format_ = _text(fields.get("format", "{secret}"), f"{place}.format")
    if format_.count("{secret}") != 1 or not format_.isprintable() or not format_.isascii():
        raise _invalid(place, "`format` is printable text with {secret} in it once", "for example 'Bearer {secret}'")
    path_prefix = _text(fields.get("path_prefix", "/"), f"{place}.path_prefix")
    if not path_prefix.startswith("/") or "?" in path_prefix or ".." in path_prefix:
        raise _invalid(place, "`path_prefix` begins with / and has neither ? nor ..")
    methods = tuple(str(each).upper() for each in _list(fields, "methods", 16))
    if bad := [each for each in methods if not _TOKEN.fullmatch(each)]:
        raise _invalid(place, f"{bad[0]!r} is no method")
    return Injection(host, secret, header, format_, None, methods, path_prefix, budget)


def _limits(value: object) -> Limits:
    if value is None:
        return Limits()
    names = ("connections", "new_connections_per_s", "tx_bytes", "tx_bytes_per_s", "dns_per_s")
    fields = _object(value, "limits", set(names))
    return Limits(**{name: _count(fields.get(name), f"limits.{name}") for name in names})


def _count(value: object, place: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 50:
        raise _invalid(place, "is no whole number above 0")
    return value


# ---- and back


def document(policy: Policy) -> dict[str, Any]:
    """The document of a policy, canonical: `parse` makes the same policy of it."""
    found: dict[str, Any] = {
        "default": policy.default,
        "allow": [_rule_document(each) for each in policy.allow],
        "deny": [_rule_document(each) for each in policy.deny],
        "inject": [_injection_document(each) for each in policy.inject],
    }
    limits = policy.limits
    names = ("connections", "new_connections_per_s", "tx_bytes", "tx_bytes_per_s", "dns_per_s")
    found["limits"] = {name: value for name in names if (value := getattr(limits, name)) is not None}
    return found


def _rule_document(rule: Rule) -> dict[str, Any]:
    ports = [low if low == high else f"{low}-{high}" for low, high in rule.ports]
    shown: dict[str, Any] = {"ports": ports} if ports else {}
    if isinstance(rule, HostRule):
        return {"host": rule.host} | shown
    proto = {"proto": rule.protos[0]} if len(rule.protos) == 1 else {}
    return {"cidr": str(rule.network)} | shown | proto


def _injection_document(each: Injection) -> dict[str, Any]:
    found: dict[str, Any] = {"host": each.host, "secret": each.secret}
    if each.env is not None:
        found["env"] = each.env
    else:
        found |= {"header": each.header, "format": each.format, "path_prefix": each.path_prefix}
        found |= {"methods": list(each.methods)} if each.methods else {}
    return found | ({"budget": each.budget} if each.budget is not None else {})


def joined(first: Policy, second: Policy) -> Policy:
    """Both: what either allows, less what either denies; the second's limits and default where it has them."""
    limits = Limits(
        **{
            name: getattr(second.limits, name)
            if getattr(second.limits, name) is not None
            else getattr(first.limits, name)
            for name in ("connections", "new_connections_per_s", "tx_bytes", "tx_bytes_per_s", "dns_per_s")
        }
    )
    default: Literal["deny", "allow"] = "allow" if "allow" in (first.default, second.default) else "deny"
    merged = Policy(default, first.allow + second.allow, first.deny + second.deny, first.inject + second.inject, limits)
    _check_injections(merged.inject)
    return merged
