"""The operator's settings: from the environment, checked once."""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import IsoboxError


class SettingsError(IsoboxError):
    """A setting that cannot be used."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things lie and how much is allowed. Sizes in MiB, durations in seconds."""

    state: Path = Path("/var/lib/isobox")
    cache: Path = Path("/var/cache/isobox")
    host: str = "127.0.0.1"
    port: int = 8700
    runsc: str | None = None
    platform: str = "auto"
    allow_root: bool = True
    log_limit_mb: int = 256
    retain_s: float = 3600.0
    max_sandboxes: int = 200
    pool_image: str = "python"
    pool_floor: int = 2
    pool_ceiling: int = 8
    freeze_after_s: float = 2.0
    park_after_s: float = 600.0
    snapshot_quota_mb: int = 20480

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


_PARSERS: dict[str, Callable[[str], dict[str, object]]] = {
    "state": lambda text: {"state": Path(text).absolute()},
    "cache": lambda text: {"cache": Path(text).absolute()},
    "listen": _listen,
    "runsc": lambda text: {"runsc": text or None},
    "platform": lambda text: {"platform": _platform(text)},
    "allow_root": lambda text: {"allow_root": _flag(text)},
    "log_limit_mb": lambda text: {"log_limit_mb": _positive(text)},
    "retain_s": lambda text: {"retain_s": float(_positive(text))},
    "pool_image": lambda text: {"pool_image": text},
    "pool_floor": lambda text: {"pool_floor": _count(text)},
    "pool_ceiling": lambda text: {"pool_ceiling": _count(text)},
    "freeze_after_s": lambda text: {"freeze_after_s": _seconds(text)},
    "park_after_s": lambda text: {"park_after_s": _seconds(text)},
    "snapshot_quota_mb": lambda text: {"snapshot_quota_mb": _positive(text)},
    "max_sandboxes": lambda text: {"max_sandboxes": _positive(text)},
}
