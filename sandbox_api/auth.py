"""Who is calling: API keys and whom they stand for.

Three files of the state directory (0600) hold them. `api-key` has the key of the tenant `default`, `operator-key` the
operator's own, which reads the metrics and acts on what is everybody's; both are made on first start. `keys`, where the
operator has written one, has further lines `TENANT KEY`.

A key stands for one caller, and a server does not start with a key that is missing, short or there twice: whoever
empties a file to revoke a key, or whose disk was full when it was written, is told so.
"""

import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from common import atomic
from sandbox_api.problems import Problem
from sandbox_api.settings import SettingsError

DEFAULT_TENANT: Final = "default"
KEY_SUBPROTOCOL: Final = "isobox.key."
"""A browser cannot set headers on a websocket: it offers this subprotocol with the key behind it."""

KEY_MIN: Final = 20
"""Characters. What this server makes has 50; no one guesses twenty that were chosen at random."""

API_KEY: Final = "api-key"
OPERATOR_KEY: Final = "operator-key"
FURTHER_KEYS: Final = "keys"
_KEY: Final = re.compile(r"[!-~]+")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MAKE_ONE: Final = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes a good one"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a key stands for: a tenant, or the operator, who is none (tenant None)."""

    tenant: str | None

    @property
    def is_operator(self) -> bool:
        """Whether it is the operator."""
        return self.tenant is None


OPERATOR: Final = Caller(None)


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as a file has it; `place` names the file, and the line in it."""

    caller: Caller
    key: str
    place: str


def key_problem(key: str) -> str:
    """What is wrong with a key, or ""."""
    if not key:
        return "there is no key"
    if not _KEY.fullmatch(key):
        return "a key has printable ASCII characters alone, and no spaces"
    if len(key) < KEY_MIN:
        return f"the key has {len(key)} characters, and {KEY_MIN} are the fewest"
    return ""


def parse_keys(text: str, place: str) -> list[Entry]:
    """Entries of a file of lines `TENANT KEY`; blank lines and those that begin with # are left out. SettingsError."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        at, parts = f"{place}:{number}", line.split()
        if len(parts) != 2:
            raise SettingsError(f"{at}: expected TENANT KEY", hint="a tenant's name, a space, its key")
        tenant, key = parts
        if not _TENANT.fullmatch(tenant):
            hint = "letters, digits, dot, underscore and dash, at most 63, a letter or digit first"
            raise SettingsError(f"{at}: {tenant[:80]!r} is not a tenant's name", hint=hint)
        if problem := key_problem(key):
            raise SettingsError(f"{at}: {problem}", hint=_MAKE_ONE)
        entries.append(Entry(Caller(tenant), key, at))
    return entries


class Keys:
    """The keys of one server; only their digests are kept."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        """SettingsError for a key that no caller may have, and for one that is there twice."""
        self._callers: dict[bytes, Caller] = {}
        places: dict[bytes, str] = {}
        for entry in entries:
            if problem := key_problem(entry.key):
                raise SettingsError(f"{entry.place}: {problem}", hint=_MAKE_ONE)
            digest = _digest(entry.key)
            if digest in places:
                hint = "a key stands for one caller: give each its own, and leave out one of the two"
                raise SettingsError(f"{entry.place}: the key is that of {places[digest]}", hint=hint)
            self._callers[digest], places[digest] = entry.caller, entry.place

    @classmethod
    def load(cls, state: Path) -> "Keys":
        """Read the state directory's, making the first ones where there are none; SettingsError."""
        entries = [
            Entry(Caller(DEFAULT_TENANT), _own_key(state / API_KEY), str(state / API_KEY)),
            Entry(OPERATOR, _own_key(state / OPERATOR_KEY), str(state / OPERATOR_KEY)),
        ]
        further = state / FURTHER_KEYS
        if further.exists():
            entries += parse_keys(_read(further), str(further))
        return cls(entries)

    def caller(self, key: str | None) -> Caller:
        """Whose key it is; 401 for none, and for one that is nobody's."""
        found = None
        if key:
            given = _digest(key)
            for digest, caller in self._callers.items():
                if hmac.compare_digest(digest, given):
                    found = caller
        if found is None:
            raise Problem(
                401,
                "not_authenticated",
                "no valid API key",
                hint="send `Authorization: Bearer KEY`; the first key is in the server's state directory, file api-key",
            )
        return found


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not text", hint="restore it, or delete it and write it anew") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", hint="see whose it is, and its mode") from error


def _own_key(path: Path) -> str:
    """The key in a file of one line, which is made where it is missing."""
    if not path.exists():
        try:
            atomic.create(path, f"isobox_{secrets.token_urlsafe(32)}\n".encode())
        except OSError as error:
            hint = "make room for it, and see the folder's mode"
            raise SettingsError(f"{path} cannot be written: {error.strerror}", hint=hint) from error
    key = _read(path).strip()
    if problem := key_problem(key):
        raise SettingsError(
            f"{path}: {problem}", hint=f"delete the file to have a new key made, or write one: {_MAKE_ONE}"
        )
    return key


def key_of(headers: dict[bytes, bytes]) -> str | None:
    """The key in a request's headers; None where there is none."""
    scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip() or None
    for offered in headers.get(b"sec-websocket-protocol", b"").decode("latin-1").split(","):
        if offered.strip().startswith(KEY_SUBPROTOCOL):
            return offered.strip().removeprefix(KEY_SUBPROTOCOL) or None
    return None
