"""Who is calling: API keys and the tenants they stand for.

`DIR/api-key` (0600) holds the key of the tenant `default`; it is made on first start. `DIR/keys`, where the operator
has written one, holds further lines `TENANT KEY`.
"""

import hmac
import os
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Final

from sandbox_api.problems import Problem
from sandbox_api.settings import SettingsError

DEFAULT_TENANT: Final = "default"
KEY_SUBPROTOCOL: Final = "isobox.key."
"""A browser cannot set headers on a websocket: it offers this subprotocol with the key behind it."""


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


class Keys:
    """The keys of one server; only their digests are kept."""

    def __init__(self, tenants: dict[str, str]) -> None:
        """tenants: key to tenant."""
        self._tenants = {_digest(key): tenant for key, tenant in tenants.items()}

    @classmethod
    def load(cls, state: Path) -> "Keys":
        """Read the state directory's, making the first key where there is none; SettingsError for a bad line."""
        path = state / "api-key"
        if not path.exists():
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(f"isobox_{secrets.token_urlsafe(32)}\n")
        tenants = {path.read_text().strip(): DEFAULT_TENANT}
        further = state / "keys"
        if further.exists():
            for number, line in enumerate(further.read_text().splitlines(), 1):
                if not line.strip() or line.startswith("#"):
                    continue
                parts = line.split()
                if len(parts) != 2:
                    raise SettingsError(f"{further}:{number}: expected TENANT KEY")
                tenants[parts[1]] = parts[0]
        return cls(tenants)

    def tenant(self, key: str) -> str:
        """Whose key it is; 401."""
        given = _digest(key)
        found = None
        for digest, tenant in self._tenants.items():
            if hmac.compare_digest(digest, given):
                found = tenant
        if found is None:
            raise Problem(
                401,
                "not_authenticated",
                "no valid API key",
                hint="send `Authorization: Bearer KEY`; the first key is in the server's state directory, file api-key",
            )
        return found


def key_of(headers: dict[bytes, bytes]) -> str:
    """The key in a request's headers, or ''."""
    scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    for offered in headers.get(b"sec-websocket-protocol", b"").decode("latin-1").split(","):
        if offered.strip().startswith(KEY_SUBPROTOCOL):
            return offered.strip().removeprefix(KEY_SUBPROTOCOL)
    return ""
