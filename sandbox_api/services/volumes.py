"""Volumes: files that outlive sandboxes.

A sandbox gets a copy of a volume's files when it is created. What it changes is its own until it commits; then it is
what others get, at their creation or when they reload. One sandbox at a time may commit: the one that has it for
writing.
"""

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakValueDictionary

from common.ids import new_id
from isolation.files import Entry, FileFailed
from sandbox_api.archives import unpacked
from sandbox_api.host.interface import Host
from sandbox_api.lifecycle import FINAL
from sandbox_api.models.common import time_of
from sandbox_api.models.volumes import CreateVolume, MountedVolume, Volume, VolumeSnapshot
from sandbox_api.problems import Problem, not_found
from sandbox_api.services.registry import Live, Registry
from sandbox_api.settings import Settings
from sandbox_api.store.records import SandboxRecord, VolumeRecord

_VOLUMES_MAX: Final = 1000
_SNAPSHOTS_MAX: Final = 100
_UID: Final = 1000
"""The number of `user` in every image (fs/rootfs.py)."""


class VolumeService:
    """The use cases of volumes."""

    def __init__(self, settings: Settings, host: Host, registry: Registry) -> None:
        self._settings = settings
        self._host = host
        self._registry = registry
        self._store = registry.store
        self._committing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # ---- volumes themselves

    async def create(self, tenant: str, request: CreateVolume) -> VolumeRecord:
        """An empty volume; 409 if the tenant has one of that name."""
        if await self._store.volume(tenant, request.name) is not None:
            raise Problem(409, "name_taken", f"there is a volume {request.name}", hint="use it, or another name")
        if len(await self._store.volumes(tenant)) >= _VOLUMES_MAX:
            raise Problem(429, "too_many_volumes", f"{_VOLUMES_MAX} volumes are the most", hint="delete some")
        now = time.time()
        record = VolumeRecord(new_id("vol"), tenant, request.name, request.quota_mb, now, now)
        await self._store.save_volume(record)
        return record

    async def all(self, tenant: str) -> list[VolumeRecord]:
        """The tenant's, by name."""
        return await self._store.volumes(tenant)

    async def get(self, tenant: str, name: str) -> VolumeRecord:
        """One of the tenant's; 404."""
        if (record := await self._store.volume(tenant, name)) is None:
            raise not_found("volume")
        return record

    async def delete(self, tenant: str, name: str) -> None:
        """Delete one and its snapshots; 409 while a sandbox has it read-write."""
        record = await self.get(tenant, name)
        await self._check_free(tenant, record)
        await self._store.forget_volume(record.id)
        for version in {record.version, *(each["version"] for each in record.snapshots)} - {0}:
            await self._host.volumes.remove(f"{record.id}.{version}")

    # ---- without a sandbox

    async def upload(self, tenant: str, name: str, path: str, archive: AsyncIterator[bytes]) -> VolumeRecord:
        """Lay a tar archive (plain, gzip or zstd) over its files, in the folder path; that is a commit."""
        async with self._alone(await self.get(tenant, name)):
            record = await self.get(tenant, name)
            await self._check_free(tenant, record)
            await self._commit(record, unpacked(archive), below=record.files, at=path)
            return record

    async def download(self, tenant: str, name: str, path: str) -> AsyncIterator[bytes]:
        """Files below a folder of it, as a tar archive."""
        record = await self.get(tenant, name)
        if record.files is None:
            raise Problem(404, "file_not_found", f"volume {name} is empty", hint="commit something to it first")
        return self._host.volumes.pack(record.files, path)

    async def read(self, tenant: str, name: str, path: str) -> AsyncIterator[bytes]:
        """A file of it."""
        record = await self.get(tenant, name)
        if record.files is None:
            raise Problem(404, "file_not_found", f"volume {name} is empty", hint="commit something to it first")
        return self._host.volumes.read(record.files, path)

    async def list_folder(self, tenant: str, name: str, path: str) -> list[Entry]:
        """What a folder of it holds."""
        record = await self.get(tenant, name)
        return [] if record.files is None else await self._host.volumes.list_folder(record.files, path)

    async def snapshot(self, tenant: str, name: str, title: str | None) -> VolumeRecord:
        """Keep its files as they are now."""
        record = await self.get(tenant, name)
        if len(record.snapshots) >= _SNAPSHOTS_MAX:
            raise Problem(
                429, "too_many_snapshots", f"{_SNAPSHOTS_MAX} are the most", hint="delete the volume's old ones"
            )
        kept = {"id": new_id("snp"), "name": title, "version": record.version, "size": record.size}
        record.snapshots.append(kept | {"created_at": time.time()})
        await self._store.save_volume(record)
        return record

    async def restore(self, tenant: str, name: str, snapshot: str) -> VolumeRecord:
        """Let its files be again what a snapshot kept; that is a commit."""
        async with self._alone(await self.get(tenant, name)):
            record = await self.get(tenant, name)
            await self._check_free(tenant, record)
            kept = next((each for each in record.snapshots if each["id"] == snapshot), None)
            if kept is None:
                raise not_found("snapshot")
            older, record.version, record.size = record.version, kept["version"], kept["size"]
            record.updated_at = time.time()
            await self._store.save_volume(record)
            await self._let_go(record, older)
            return record

    # ---- in sandboxes

    async def claim(self, sandbox: SandboxRecord, wanted: dict[str, MountedVolume]) -> None:
        """Before a sandbox starts: which volumes it gets, and that nobody else writes those that it may write."""
        for path, each in sorted(wanted.items()):
            record = await self.get(sandbox.tenant, each.name)
            if not each.read_only:
                await self._check_free(sandbox.tenant, record)
                record.writer = sandbox.id
                await self._store.save_volume(record)
            sandbox.volumes[path.rstrip("/")] = {"id": record.id, "name": record.name, "read_only": each.read_only}

    async def fill(self, sandbox: SandboxRecord) -> None:
        """Once it runs: put the files there."""
        for path, mounted in sandbox.volumes.items():
            record = await self.get(sandbox.tenant, mounted["name"])
            await self._fill(sandbox, path, mounted, record)

    async def _fill(self, sandbox: SandboxRecord, path: str, mounted: dict[str, Any], record: VolumeRecord) -> None:
        # Read-only files are root's, so that the sandbox's user cannot change them.
        owner = _UID if sandbox.user == "user" and not mounted["read_only"] else 0
        archive = self._host.volumes.pack(record.files, "/", owner=owner)
        await self._host.system_files.unpack(sandbox.id, path, True, archive, "root")
        mounted["version"] = record.version

    async def commit(self, tenant: str, sandbox_id: str, path: str) -> VolumeRecord:
        """Let the volume's files be what lies in the sandbox at path."""
        live, mounted = await self._mounted(tenant, sandbox_id, path)
        record = await self.get(tenant, mounted["name"])
        if mounted["read_only"] or record.writer != sandbox_id:
            raise Problem(
                409,
                "volume_read_only",
                f"the sandbox has {record.name} read-only",
                hint="create it with read_only=false",
            )
        async with self._alone(record), _in_place(path):
            record = await self.get(tenant, mounted["name"])
            contents = self._host.system_files.pack(live.record.id, path.rstrip("/"), "root")
            await anext(contents)
            await self._commit(record, _bytes(contents), below=None, at="/")
        mounted["version"] = record.version
        await self._store.save_sandbox(live.record)
        return record

    async def reload(self, tenant: str, sandbox_id: str, path: str) -> VolumeRecord:
        """Let the sandbox have the volume's files as they are now; what it changed and did not commit is lost."""
        live, mounted = await self._mounted(tenant, sandbox_id, path)
        record = await self.get(tenant, mounted["name"])
        where = path.rstrip("/")
        async with _in_place(path):
            await self._host.system_files.empty(sandbox_id, where, "root")
            await self._fill(live.record, where, mounted, record)
        await self._store.save_sandbox(live.record)
        return record

    async def _mounted(self, tenant: str, sandbox_id: str, path: str) -> tuple[Live, dict[str, Any]]:
        live = await self._registry.usable(tenant, sandbox_id)
        mounted = live.record.volumes.get(path.rstrip("/"))
        if mounted is None:
            known = ", ".join(live.record.volumes) or "none"
            raise Problem(404, "volume_not_found", f"no volume lies at {path}", hint=f"the sandbox's are: {known}")
        return live, mounted

    def _alone(self, record: VolumeRecord) -> asyncio.Lock:
        """One commit of a volume at a time: each makes the version after the one it found."""
        return self._committing.setdefault(record.id, asyncio.Lock())

    async def _check_free(self, tenant: str, record: VolumeRecord) -> None:
        if record.writer is None:
            return
        writer = await self._store.sandbox(tenant, record.writer)
        if writer is not None and writer.state not in FINAL:
            raise Problem(
                409,
                "volume_busy",
                f"sandbox {record.writer} has volume {record.name} read-write",
                hint="end that sandbox, or take the volume read_only",
                retryable=True,
            )
        record.writer = None

    async def _commit(self, record: VolumeRecord, archive: AsyncIterator[bytes], *, below: str | None, at: str) -> None:
        newest = max([record.version, *(each["version"] for each in record.snapshots)]) + 1
        most = record.quota_mb << 20
        facts = await self._host.volumes.keep(f"{record.id}.{newest}", archive, below=below, at=at, most=most)
        older, record.version, record.size, record.updated_at = record.version, newest, facts.size, time.time()
        await self._store.save_volume(record)
        await self._let_go(record, older)

    async def _let_go(self, record: VolumeRecord, version: int) -> None:
        """A version that neither the volume nor a snapshot of it needs goes."""
        if version and version != record.version and all(each["version"] != version for each in record.snapshots):
            await self._host.volumes.remove(f"{record.id}.{version}")


@asynccontextmanager
async def _in_place(path: str) -> AsyncIterator[None]:
    """Raise Problem(409) if a program has put something else where a volume was."""
    try:
        yield
    except FileFailed as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise Problem(
            409,
            "volume_replaced",
            f"a link or a file lies at {path}, or above it, where the volume was",
            hint="remove that and make the folder anew, then try again",
        ) from error


async def _bytes(contents: AsyncIterator[Entry | bytes]) -> AsyncIterator[bytes]:
    async for piece in contents:
        assert isinstance(piece, bytes)
        yield piece


def describe(record: VolumeRecord) -> Volume:
    """As a client sees it."""
    return Volume(
        id=record.id,
        name=record.name,
        quota_mb=record.quota_mb,
        size_bytes=record.size,
        version=record.version,
        writer=record.writer,
        snapshots=[
            VolumeSnapshot(
                id=each["id"],
                name=each["name"],
                size_bytes=each["size"],
                created_at=time_of(each["created_at"]),  # type: ignore[arg-type]  # not None
            )
            for each in record.snapshots
        ],
        created_at=time_of(record.created_at),  # type: ignore[arg-type]  # not None
        updated_at=time_of(record.updated_at),  # type: ignore[arg-type]  # not None
    )
