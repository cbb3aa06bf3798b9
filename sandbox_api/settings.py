"""The operator's settings: from the environment, checked once."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from common.errors import IsoboxError
from fs import authorities
from fs.guarded import Access
from netpolicy.errors import PolicyInvalid
from netpolicy.floor import BLOCK
from netpolicy.network import NetworkSettings, host_resolvers
from netpolicy.policy import CidrRule, HostRule, Policy, parse
from netpolicy.presets import load


class SettingsError(IsoboxError):
    """A setting that cannot be used."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things lie and how much is allowed. Sizes in MiB, durations in seconds."""

    state: Path = Path("/var/lib/isobox")
    cache: Path = Path("/var/cache/isobox")
    host: str = "127.0.0.1"
    port: int = 8700
    connections: int = 4096
    connections_per_address: int = 1024
    websockets: int = 2048
    websockets_per_key: int = 512
    head_timeout_s: float = 10.0
    runsc: str | None = None
    platform: str = "auto"
    allow_root: bool = True
    allow_namespaces: bool = True
    log_limit_mb: int = 256
    retain_s: float = 3600.0
    max_sandboxes: int = 200
    pool_image: str = "python"
    pool_floor: int = 2
    pool_ceiling: int = 8
    freeze_after_s: float = 2.0
    park_after_s: float = 600.0
    guest_silence_s: float = 300.0
    snapshot_quota_mb: int = 20480
    store_quota_mb: int = 102400
    image_limit_mb: int = 32768
    values_quota_mb: int = 10240
    uploads_quota_mb: int = 20480
    registries: Access = field(default_factory=Access)
    buckets: Access = field(default_factory=lambda: Access(setting="ISOBOX_BUCKETS"))
    bucket_spool_mb: int = 10240
    gpus: bool = True
    gpu_driver_abi: str = ""
    gpu_libraries: Path | None = None
    gpu_scrub: bool = True
    gpu_look_s: float = 5.0
    stores: tuple[str, ...] = ()
    lazy_cache_mb: int = 20480
    ca_bundle: tuple[bytes, ...] = ()
    network: bool = True
    egress_block: IPv4Network = BLOCK
    egress_dns: tuple[tuple[str, int], ...] | None = None
    egress_floor_holes: tuple[IPv4Network, ...] = ()
    egress_deny: tuple[HostRule | CidrRule, ...] = ()
    egress_presets: Mapping[str, Policy] = field(default_factory=dict)
    egress_trust: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **given: str | None) -> "Settings":
        """ISOBOX_* variables, overridden by what is given (state, listen); SettingsError names what is wrong."""
        values = {
            name: environment[f"ISOBOX_{name.upper()}"] for name in _PARSERS if f"ISOBOX_{name.upper()}" in environment
        }
        values |= {name: value for name, value in given.items() if value is not None}
        fields: dict[str, object] = {}
        for name, text in values.items():
            try:
                parsed = _PARSERS[name](text)
            except ValueError as error:
                raise SettingsError(f"ISOBOX_{name.upper()}={text!r}: {error}") from error
            fields.update(parsed)
        return cls(**fields)  # type: ignore[arg-type]  # each parser gives its fields their types

    def egress(self) -> NetworkSettings:
        """What the network is made by; the host's own resolvers where none are named."""
        resolvers = self.egress_dns
        if resolvers is None:
            resolvers = host_resolvers(Path("/etc/resolv.conf").read_text(errors="replace"))
        return NetworkSettings(
            block=self.egress_block,
            resolvers=resolvers,
            holes=self.egress_floor_holes,
            deny=self.egress_deny,
            trust=self.egress_trust,
        )


def _listen(text: str) -> dict[str, object]:
    match = re.fullmatch(r"(?:\[(?P<six>[0-9a-fA-F:]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})", text)
    if match is None or not 0 <= int(match["port"]) <= 65535:
        raise ValueError("expected HOST:PORT, for example 127.0.0.1:8700")
    return {"host": match["six"] or match["host"] or "127.0.0.1", "port": int(match["port"])}


def _flag(text: str) -> bool:
    if text.lower() not in ("0", "1", "true", "false", "yes", "no"):
        raise ValueError("expected 0 or 1")
    return text.lower() in ("1", "true", "yes")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) <= 0:
        raise ValueError("expected a whole number above 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("expected a whole number")
    return int(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError("expected a number of seconds above 0")
    return value


def _platform(text: str) -> str:
    if text not in ("auto", "systrap", "kvm", "ptrace"):
        raise ValueError("expected auto, systrap, kvm or ptrace")
    return text


def _block(text: str) -> IPv4Network:
    block = IPv4Network(text)
    if not 16 <= block.prefixlen <= 26 or not block.is_private:
        raise ValueError("expected a private IPv4 network of /16 to /26, for example 198.19.0.0/16")
    return block


def _resolvers(text: str) -> tuple[tuple[str, int], ...]:
    found = []
    for each in text.replace(",", " ").split():
        host, _, port = each.partition(":")
        found.append((str(IPv4Address(host)), int(port or 53)))
    if not found:
        raise ValueError("expected ADDRESS or ADDRESS:PORT, several with commas")
    return tuple(found)


def _networks(text: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(each) for each in text.replace(",", " ").split())


def _hosts(text: str, setting: str) -> Access:
    private: set[str] = set()
    plain: set[str] = set()
    for each in text.replace(",", " ").split():
        host = each.removeprefix("http://")
        if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9a-f:.]+\](:\d{1,5})?", host):
            raise ValueError(f"{each}: expected HOST:PORT, or http://HOST:PORT for one without TLS")
        (private if host == each else plain).add(host)
    return Access(frozenset(private), frozenset(plain), setting)


def _deny(text: str) -> tuple[HostRule | CidrRule, ...]:
    try:
        return parse({"deny": json.loads(text)}).deny
    except PolicyInvalid as error:
        raise ValueError(error.detail) from None


def _presets(text: str) -> dict[str, Policy]:
    try:
        return load(_file(text))
    except PolicyInvalid as error:
        raise ValueError(f"{error.detail} ({error.hint})") from None


def _abi(text: str) -> str:
    if not re.fullmatch(r"|latest|\d+\.\d+(\.\d+)?", text):
        raise ValueError("expected a driver's version, or latest")
    return text


def _folder(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_dir():
        raise ValueError("there is no such folder")
    return path


def _certificates(text: str) -> tuple[bytes, ...]:
    return authorities.parse(_file(text).read_bytes())


def _file(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_file():
        raise ValueError("there is no such file")
    return path


_PARSERS: dict[str, Callable[[str], dict[str, object]]] = {
    "state": lambda text: {"state": Path(text).absolute()},
    "cache": lambda text: {"cache": Path(text).absolute()},
    "listen": _listen,
    "connections": lambda text: {"connections": _positive(text)},
    "connections_per_address": lambda text: {"connections_per_address": _positive(text)},
    "websockets": lambda text: {"websockets": _positive(text)},
    "websockets_per_key": lambda text: {"websockets_per_key": _positive(text)},
    "head_timeout_s": lambda text: {"head_timeout_s": _seconds(text)},
    "runsc": lambda text: {"runsc": text or None},
    "platform": lambda text: {"platform": _platform(text)},
    "allow_root": lambda text: {"allow_root": _flag(text)},
    "allow_namespaces": lambda text: {"allow_namespaces": _flag(text)},
    "log_limit_mb": lambda text: {"log_limit_mb": _positive(text)},
    "retain_s": lambda text: {"retain_s": float(_positive(text))},
    "pool_image": lambda text: {"pool_image": text},
    "pool_floor": lambda text: {"pool_floor": _count(text)},
    "pool_ceiling": lambda text: {"pool_ceiling": _count(text)},
    "freeze_after_s": lambda text: {"freeze_after_s": _seconds(text)},
    "guest_silence_s": lambda text: {"guest_silence_s": _seconds(text)},
    "park_after_s": lambda text: {"park_after_s": _seconds(text)},
    "snapshot_quota_mb": lambda text: {"snapshot_quota_mb": _positive(text)},
    "store_quota_mb": lambda text: {"store_quota_mb": _positive(text)},
    "image_limit_mb": lambda text: {"image_limit_mb": _positive(text)},
    "values_quota_mb": lambda text: {"values_quota_mb": _positive(text)},
    "uploads_quota_mb": lambda text: {"uploads_quota_mb": _positive(text)},
    "stores": lambda text: {"stores": tuple(text.replace(",", " ").split())},
    "lazy_cache_mb": lambda text: {"lazy_cache_mb": _positive(text)},
    "registries": lambda text: {"registries": _hosts(text, "ISOBOX_REGISTRIES")},
    "buckets": lambda text: {"buckets": _hosts(text, "ISOBOX_BUCKETS")},
    "gpus": lambda text: {"gpus": _flag(text)},
    "gpu_driver_abi": lambda text: {"gpu_driver_abi": _abi(text)},
    "gpu_libraries": lambda text: {"gpu_libraries": _folder(text)},
    "gpu_scrub": lambda text: {"gpu_scrub": _flag(text)},
    "gpu_look_s": lambda text: {"gpu_look_s": _seconds(text)},
    "bucket_spool_mb": lambda text: {"bucket_spool_mb": _positive(text)},
    "ca_bundle": lambda text: {"ca_bundle": _certificates(text)},
    "network": lambda text: {"network": _flag(text)},
    "egress_block": lambda text: {"egress_block": _block(text)},
    "egress_dns": lambda text: {"egress_dns": _resolvers(text)},
    "egress_floor_holes": lambda text: {"egress_floor_holes": _networks(text)},
    "egress_deny": lambda text: {"egress_deny": _deny(text)},
    "egress_presets": lambda text: {"egress_presets": _presets(text)},
    "egress_trust": lambda text: {"egress_trust": _file(text)},
    "max_sandboxes": lambda text: {"max_sandboxes": _positive(text)},
}
