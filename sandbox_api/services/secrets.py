"""Tenants' secrets, sealed in the store by a key that lies beside it: the database alone tells nothing.

What a tenant stores can be replaced and deleted, never read back. Names that begin with a dot are the service's own.
"""

import os
import time
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common import atomic
from netpolicy.certificates import new_authority
from sandbox_api.host.interface import Authority
from sandbox_api.problems import Problem, not_found
from sandbox_api.settings import SettingsError
from sandbox_api.store.records import SecretRecord
from sandbox_api.store.store import Store

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_SECRETS_MAX: Final = 1000
_AUTHORITY: Final = ".egress-authority"


class Seal:
    """AES-256-GCM under the state directory's key; what is sealed for one place opens nowhere else."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def load(cls, state: Path) -> "Seal":
        """By the key in state/secrets.key (0600), made on first use; SettingsError for one that is cut short."""
        path = state / "secrets.key"
        try:
            if not path.exists():
                atomic.create(path, os.urandom(_KEY_BYTES))
            key = path.read_bytes()
        except OSError as error:
            hint = "make room for it, and see the folder's mode"
            raise SettingsError(f"{path} cannot be made or read: {error.strerror}", hint=hint) from error
        if len(key) != _KEY_BYTES:
            raise SettingsError(
                f"{path} has {len(key)} bytes instead of {_KEY_BYTES}: it is not the key that secrets were sealed with",
                hint="restore it from a backup; or delete it, and store every secret again",
            )
        return cls(key)

    def close(self, text: str, place: str) -> bytes:
        """Seal a text."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text.encode(), place.encode())

    def open(self, sealed: bytes, place: str) -> str:
        """Read it again; Problem if the key is another one."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.encode()).decode()
        except InvalidTag:
            raise Problem(
                500, "secret_unreadable", "a secret cannot be read with this state's key", hint="store it again"
            ) from None


class SecretService:
    """The use cases of secrets."""

    def __init__(self, store: Store, seal: Seal) -> None:
        self._store = store
        self._seal = seal

    async def put(self, tenant: str, name: str, value: str) -> SecretRecord:
        """Store one, or replace it."""
        now, had = time.time(), await self._store.secret(tenant, name)
        if had is None and len(await self._store.secrets(tenant)) >= _SECRETS_MAX:
            raise Problem(429, "too_many_secrets", f"{_SECRETS_MAX} secrets are the most", hint="delete some")
        record = SecretRecord(
            tenant, name, had.created_at if had else now, now, self._seal.close(value, f"{tenant}/{name}")
        )
        await self._store.save_secret(record)
        return record

    async def all(self, tenant: str) -> list[SecretRecord]:
        """The tenant's own, by name."""
        return [each for each in await self._store.secrets(tenant) if not each.name.startswith(".")]

    async def get(self, tenant: str, name: str) -> SecretRecord:
        """One of the tenant's; 404."""
        record = await self._store.secret(tenant, name)
        if record is None or name.startswith("."):
            raise not_found("secret")
        return record

    async def delete(self, tenant: str, name: str) -> None:
        """Delete one; 404."""
        await self.get(tenant, name)
        await self._store.forget_secret(tenant, name)

    # ---- for what uses them

    async def value(self, tenant: str, name: str) -> str | None:
        """What it is; None if there is none."""
        record = await self._store.secret(tenant, name)
        return None if record is None else self._seal.open(record.sealed, f"{tenant}/{name}")

    async def authority(self, tenant: str) -> Authority:
        """The tenant's certificate authority, made on first use."""
        kept = await self.value(tenant, _AUTHORITY)
        if kept is None:
            certificate, key = new_authority(tenant)
            kept = f"{certificate}\0{key}"
            await self.put(tenant, _AUTHORITY, kept)
        certificate, _, key = kept.partition("\0")
        return Authority(certificate, key)
