"""Buckets as folders of sandboxes: which, by whose keys, and what becomes of them when a sandbox moves or ends."""

import secrets
from typing import Any

import structlog

from common.errors import IsoboxError
from sandbox_api.host.interface import BucketMount, Host, Keys, Place
from sandbox_api.models.buckets import MountedBucket
from sandbox_api.problems import invalid
from sandbox_api.services.registry import Registry
from sandbox_api.services.secrets import SecretService
from sandbox_api.store.records import SandboxRecord

_log = structlog.get_logger(__name__)
_UID = 1000
"""The number of `user` in every image (fs/rootfs.py)."""


class BucketService:
    """The use cases of buckets."""

    def __init__(self, host: Host, registry: Registry, tenants_secrets: SecretService) -> None:
        self._host = host
        self._registry = registry
        self._secrets = tenants_secrets

    async def claim(self, sandbox: SandboxRecord, wanted: dict[str, MountedBucket]) -> None:
        """Before a sandbox starts: which buckets it gets, and that they can be had; 422 if not."""
        for path, each in sorted(wanted.items()):
            where = path.rstrip("/")
            if where in sandbox.volumes:
                raise invalid(f"a volume lies at {where} already", "choose another path for one of them")
            address = f"isobox-bucket-{secrets.token_hex(12)}"
            sandbox.buckets[where] = each.model_dump() | {"address": address}
        for mount in await self._mounts(sandbox):
            await self._host.buckets.check(mount)

    async def mount(self, sandbox: SandboxRecord) -> None:
        """Once it runs: mount them."""
        for mount in await self._mounts(sandbox):
            await self._host.buckets.mount(sandbox.id, mount)

    async def go_on(self, sandbox: SandboxRecord) -> None:
        """It runs again, or a copy of it, or under another server: its mounts are there, and have to be served."""
        if not sandbox.buckets:
            return
        try:
            await self._host.buckets.serve(sandbox.id, await self._mounts(sandbox))
        except IsoboxError as error:
            self._tell(sandbox.id, {"path": ", ".join(sandbox.buckets), "file": "", "detail": error.detail})

    async def settle(self, sandbox: SandboxRecord) -> None:
        """It is about to end."""
        if sandbox.buckets:
            await self._host.buckets.settle(sandbox.id)

    async def leave(self, sandbox: SandboxRecord) -> None:
        """It has ended."""
        if sandbox.buckets:
            await self._host.buckets.leave(sandbox.id)

    async def recover(self) -> None:
        """After a restart: store what ended sandboxes left."""
        for id_ in self._host.buckets.left() - set(self._registry.live):
            record = await self._registry.store.any_sandbox(id_)
            try:
                mounts = [] if record is None else await self._mounts(record)
            except IsoboxError as error:
                _log.warning("files of a bucket cannot be stored", sandbox=id_, error=error.detail)
                continue
            await self._host.buckets.finish(id_, mounts)

    async def watch_failures(self) -> None:
        """Tell sandboxes what failed, for ever."""
        while True:
            self._tell(*await self._host.buckets.next_failure())

    def _tell(self, sandbox: str, what: dict[str, Any]) -> None:
        if (live := self._registry.live.get(sandbox)) is not None:
            live.events.add("bucket_failed", **what)

    async def _mounts(self, sandbox: SandboxRecord) -> list[BucketMount]:
        owner = _UID if sandbox.user == "user" else 0
        found = []
        for path, each in sandbox.buckets.items():
            place = Place(each["bucket"], each["prefix"], (each["endpoint"] or "").rstrip("/"), each["region"])
            keys = await self._keys(sandbox.tenant, each)
            found.append(BucketMount(path, each["address"], place, keys, each["read_only"], owner))
        return found

    async def _keys(self, tenant: str, bucket: dict[str, Any]) -> Keys | None:
        if bucket["access_key"] is None and bucket["secret_key"] is None:
            return None
        values: dict[str, str] = {}
        for part in ("access_key", "secret_key", "session_token"):
            if (name := bucket[part]) is None:
                if part == "session_token":
                    continue
                raise invalid(f"{part} is missing", "name both secrets, access_key and secret_key")
            value = None if name.startswith(".") else await self._secrets.value(tenant, name)
            if value is None:
                raise invalid(f"there is no secret {name}", f"store it first: PUT /v1/secrets/{name}")
            values[part] = value
        return Keys(values["access_key"], values["secret_key"], values.get("session_token"))
