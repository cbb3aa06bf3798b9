"""Policies by name: `none`, `open`, `packages` (where this machine installs packages from), and the operator's own."""

import configparser
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from netpolicy.errors import PolicyInvalid
from netpolicy.names import NameInvalid, canonical
from netpolicy.policy import Policy, parse

BUILT_IN: Final = ("none", "open", "packages")
_TIMEOUT_S: Final = 20.0


def load(path: Path) -> dict[str, Policy]:
    """The operator's presets: a JSON object {name: policy}; PolicyInvalid names what is wrong."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PolicyInvalid(f"the presets in {path} cannot be read: {error}", hint="write a JSON object") from error
    if not isinstance(found, Mapping):
        raise PolicyInvalid(f"the presets in {path} are no JSON object", hint="write {NAME: POLICY}")
    presets = {}
    for name, policy in found.items():
        if name in BUILT_IN:
            raise PolicyInvalid(f"the preset {name!r} in {path} has the name of a built-in one", hint="rename it")
        try:
            presets[name] = parse(policy)
        except PolicyInvalid as error:
            raise PolicyInvalid(f"the preset {name!r} in {path}: {error.detail}", hint=error.hint) from error
    return presets


def built_in(name: str) -> Policy | None:
    """One of ours, if that is its name; `packages` asks this machine's own tools, which takes a second."""
    if name == "none":
        return Policy()
    if name == "open":
        return Policy(default="allow")
    return from_urls(machine_indexes()) if name == "packages" else None


def from_urls(urls: Iterable[str]) -> Policy:
    """What allows the hosts of these addresses, each at its port; those that are no host's name are left out."""
    hosts: dict[str, set[int]] = {}
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            continue
        try:
            hosts.setdefault(canonical(parts.hostname), set()).add(
                parts.port or (443 if parts.scheme == "https" else 80)
            )
        except NameInvalid:
            continue
    return parse({"allow": [{"host": host, "ports": sorted(ports)} for host, ports in sorted(hosts.items())]})


def machine_indexes() -> list[str]:
    """The package indexes and mirrors that pip, npm and apt of this machine use."""
    return [*_pip(os.environ), *_npm(), *_apt()]


def _pip(environment: Mapping[str, str]) -> list[str]:
    files = ["/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf"]
    files += [environment["PIP_CONFIG_FILE"]] if "PIP_CONFIG_FILE" in environment else []
    texts = [path.read_text(errors="replace") for file in files if (path := Path(file).expanduser()).is_file()]
    found = pip_indexes(texts, environment)
    return [*found, *_pip_default(index_given=_replaces_default(texts, environment))]


def pip_indexes(files: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """The addresses in pip's configuration: files' texts, and the environment (pip's user guide, Configuration)."""
    found: list[str] = []
    for text in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            continue
        for section in parser.sections():
            for option in ("index-url", "extra-index-url", "find-links"):
                found += parser.get(section, option, fallback="").split()
    for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        found += environment.get(variable, "").split()
    return found


def _replaces_default(files: Iterable[str], environment: Mapping[str, str]) -> bool:
    return "PIP_INDEX_URL" in environment or any(re.search(r"(?m)^index-url\s*=", text) for text in files)


def _pip_default(*, index_given: bool) -> list[str]:
    """Where pip looks when nobody tells it: it knows itself."""
    if index_given:
        return []
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return []
    return [PyPI.simple_url, f"https://{PyPI.file_storage_domain}/"]


def _output(*argv: str) -> list[str]:
    if shutil.which(argv[0]) is None:
        return []
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []  # a tool that does not work here uses no index either
    return done.stdout.split()


def _npm() -> list[str]:
    return _output("npm", "config", "get", "registry")


def _apt() -> list[str]:
    return sorted(set(_output("apt-get", "indextargets", "--format", "$(SITE)")))


def resolve(asked: str | Mapping[str, Any], presets: Mapping[str, Policy]) -> tuple[str | None, Mapping[str, Any]]:
    """A request's preset and the rules beside it: "packages" alone, or {"preset": "packages", "allow": […]}."""
    if isinstance(asked, str):
        return asked, {}
    rest = dict(asked)
    preset = rest.pop("preset", None)
    if preset is not None and not isinstance(preset, str):
        raise PolicyInvalid("preset: is no text", hint=f"known are: {', '.join([*BUILT_IN, *presets])}")
    return preset, rest
