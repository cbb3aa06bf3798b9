"""State in SQLite: what must outlive the server.

One connection, used from the event loop: a write-ahead log makes a commit a few dozen microseconds, cheaper than a
hop to a thread and back. With synchronous=NORMAL a commit waits for no disk; the checkpoint, which does, is made by
`checkpoint` in a thread. The methods are coroutines so that a store across a network can take this one's place.
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from sandbox_api.lifecycle import FINAL, State
from sandbox_api.readable import readable
from sandbox_api.store import functions, objects
from sandbox_api.store.records import (
    ContextRecord,
    ExecRecord,
    ImageRecord,
    SandboxRecord,
    SecretRecord,
    SnapshotRecord,
    UsageRecord,
    VolumeRecord,
)

Record = TypeVar("Record")
_SCHEMA_VERSION: Final = 7
_SCHEMA: Final = (
    """
create table sandboxes (id text primary key, tenant text not null, created_at real not null, ended_at real,
                        state text not null, doc text not null) without rowid;
create index sandboxes_by_time on sandboxes (tenant, created_at);
create table execs (id text primary key, sandbox_id text not null, created_at real not null, state text not null,
                    doc text not null) without rowid;
create index execs_by_sandbox on execs (sandbox_id, created_at);
create table answers (tenant text not null, key text not null, request text not null, status integer not null,
                      type text not null, body blob not null, at real not null,
                      primary key (tenant, key)) without rowid;
""",
    """
create table snapshots (id text primary key, tenant text not null, created_at real not null, expires_at real,
                        doc text not null) without rowid;
create table contexts (id text primary key, sandbox_id text not null, created_at real not null,
                       doc text not null) without rowid;
create index contexts_by_sandbox on contexts (sandbox_id, created_at);
""",
    """
create table secrets (tenant text not null, name text not null, created_at real not null, updated_at real not null,
                      sealed blob not null, primary key (tenant, name)) without rowid;
""",
    """
create table images (id text primary key, tenant text not null, name text not null, created_at real not null,
                     state text not null, doc text not null) without rowid;
create index images_by_name on images (tenant, name);
create table volumes (id text primary key, tenant text not null, name text not null, doc text not null,
                      unique (tenant, name)) without rowid;
create table steps (tenant text not null, key text not null, digest text not null, at real not null,
                    primary key (tenant, key)) without rowid;
""",
    """
create table gpus (uuid text primary key, doc text not null) without rowid;
create table usage (sandbox text primary key, tenant text not null, started_at real not null, ended_at real not null,
                    doc text not null) without rowid;
create index usage_by_time on usage (tenant, started_at);
""",
    functions.SCHEMA,
    functions.RUNS_SCHEMA + objects.SCHEMA,
)
"""What each version adds to the one before it."""


_FIELDS: Final = {
    kind: tuple(field.name for field in fields(kind))
    for kind in (SandboxRecord, ExecRecord, ContextRecord, SnapshotRecord, ImageRecord)
}


_UNREFUSED: Final = {"namespaces": True}
"""What holds of sandboxes, and of snapshots of them, that a server made which refused nobody namespaces."""


def _document(record: SandboxRecord | ExecRecord | ContextRecord | SnapshotRecord | ImageRecord) -> str:
    # Not dataclasses.asdict: that copies deeply, and all that is wanted is text.
    return json.dumps({name: getattr(record, name) for name in _FIELDS[type(record)]})


def _sandbox(doc: str) -> SandboxRecord:
    found = _UNREFUSED | json.loads(doc)
    return SandboxRecord(**(found | {"state": State(found["state"])}))


def _snapshot(doc: str) -> SnapshotRecord:
    found = json.loads(doc)
    return SnapshotRecord(**(found | {"sandbox": _UNREFUSED | found["sandbox"]}))


def _exec(doc: str) -> ExecRecord:
    return ExecRecord(**json.loads(doc))


def _all(kind: Callable[..., Record], rows: Iterable[tuple[str]]) -> list[Record]:
    """The records of a list's rows; one that cannot be read does not spoil it."""
    return [*readable(rows, lambda row: kind(**json.loads(row[0])))]


class Store:
    """See the module. Every method may raise sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=normal")
        self._db.execute("pragma wal_autocheckpoint=0")
        version = self._db.execute("pragma user_version").fetchone()[0]
        if version < _SCHEMA_VERSION:
            added = " ".join(_SCHEMA[version:])
            self._db.executescript(f"begin; {added} pragma user_version={_SCHEMA_VERSION}; commit;")
        elif version != _SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"{path} has version {version}; this server knows {_SCHEMA_VERSION}")
        self.functions = functions.FunctionStore(self._db)
        self.objects = objects.ObjectStore(self._db)

    def close(self) -> None:
        """Write the log back and close."""
        self._db.execute("pragma wal_checkpoint(truncate)")
        self._db.close()

    async def checkpoint(self) -> None:
        """Write the log back into the database, in a thread: this is what waits for the disk."""

        def work() -> None:
            db = sqlite3.connect(self._path, timeout=10)
            try:
                db.execute("pragma wal_checkpoint(passive)")
            finally:
                db.close()

        await asyncio.to_thread(work)

    # ---- sandboxes

    async def save_sandbox(self, record: SandboxRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into sandboxes values (?, ?, ?, ?, ?, ?)",
            (record.id, record.tenant, record.created_at, record.ended_at, record.state, _document(record)),
        )

    async def sandbox(self, tenant: str, id_: str) -> SandboxRecord | None:
        """One of the tenant's."""
        row = self._db.execute("select doc from sandboxes where id = ? and tenant = ?", (id_, tenant)).fetchone()
        return _sandbox(row[0]) if row else None

    async def any_sandbox(self, id_: str) -> SandboxRecord | None:
        """Whoever's it is."""
        row = self._db.execute("select doc from sandboxes where id = ?", (id_,)).fetchone()
        return _sandbox(row[0]) if row else None

    async def sandboxes(
        self, tenant: str, *, state: State | None, labels: dict[str, str], before: tuple[float, str] | None, limit: int
    ) -> list[SandboxRecord]:
        """The newest that match, from before (created_at, id) on."""
        query, values = "select doc from sandboxes where tenant = ?", [tenant]
        parameters: list[Any] = list(values)
        if state is not None:
            query += " and state = ?"
            parameters.append(state)
        for name, value in labels.items():
            query += " and (select value from json_each(doc, '$.labels') where key = ?) = ?"
            parameters += [name, value]
        if before is not None:
            query += " and (created_at, id) < (?, ?)"
            parameters += before
        rows = self._db.execute(query + " order by created_at desc, id desc limit ?", [*parameters, limit])
        return [*readable(rows, lambda row: _sandbox(row[0]))]

    async def unfinished_sandboxes(self) -> list[SandboxRecord]:
        """All tenants' that an earlier server left alive."""
        marks = ", ".join("?" * len(FINAL))
        rows = self._db.execute(f"select doc from sandboxes where state not in ({marks})", [*FINAL])  # noqa: S608
        return [_sandbox(row[0]) for row in rows]

    async def ended_before(self, moment: float, limit: int) -> list[str]:
        """Ids of sandboxes that ended before moment."""
        rows = self._db.execute("select id from sandboxes where ended_at < ? limit ?", (moment, limit))
        return [row[0] for row in rows]

    async def forget_sandbox(self, id_: str) -> None:
        """Delete a sandbox and its execs."""
        self._db.execute("begin immediate")
        self._db.execute("delete from execs where sandbox_id = ?", (id_,))
        self._db.execute("delete from contexts where sandbox_id = ?", (id_,))
        self._db.execute("delete from sandboxes where id = ?", (id_,))
        self._db.execute("commit")

    # ---- execs

    async def save_exec(self, record: ExecRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into execs values (?, ?, ?, ?, ?)",
            (record.id, record.sandbox_id, record.created_at, record.state, _document(record)),
        )

    async def forget_exec(self, id_: str) -> None:
        """Delete one that never began."""
        self._db.execute("delete from execs where id = ?", (id_,))

    async def exec_by_id(self, sandbox_id: str, id_: str) -> ExecRecord | None:
        """One of the sandbox's."""
        row = self._db.execute("select doc from execs where id = ? and sandbox_id = ?", (id_, sandbox_id)).fetchone()
        return _exec(row[0]) if row else None

    async def exec_is_taken(self, id_: str) -> bool:
        """Whether any sandbox has an exec of that id."""
        return self._db.execute("select 1 from execs where id = ?", (id_,)).fetchone() is not None

    async def execs(self, sandbox_id: str, *, before: tuple[float, str] | None, limit: int) -> list[ExecRecord]:
        """The newest of a sandbox's, from before (created_at, id) on."""
        rows = self._db.execute(
            "select doc from execs where sandbox_id = ? and (created_at, id) < (?, ?)"
            " and coalesce(json_extract(doc, '$.role'), 'exec') != 'context' order by created_at desc, id desc limit ?",
            (sandbox_id, *(before or (1e18, "")), limit),
        )
        return _all(ExecRecord, rows)

    async def unfinished_execs(self, sandbox_id: str) -> list[ExecRecord]:
        """Those of a sandbox that have not ended."""
        rows = self._db.execute("select doc from execs where sandbox_id = ? and state != 'exited'", (sandbox_id,))
        return [_exec(row[0]) for row in rows]

    # ---- contexts

    async def save_context(self, record: ContextRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into contexts values (?, ?, ?, ?)",
            (record.id, record.sandbox_id, record.created_at, _document(record)),
        )

    async def contexts(self, sandbox_id: str) -> list[ContextRecord]:
        """A sandbox's, the oldest first."""
        query = "select doc from contexts where sandbox_id = ? order by created_at, id"
        return [ContextRecord(**json.loads(row[0])) for row in self._db.execute(query, (sandbox_id,))]

    async def forget_context(self, id_: str) -> None:
        """Delete the record."""
        self._db.execute("delete from contexts where id = ?", (id_,))

    # ---- snapshots

    async def save_snapshot(self, record: SnapshotRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into snapshots values (?, ?, ?, ?, ?)",
            (record.id, record.tenant, record.created_at, record.expires_at, _document(record)),
        )

    async def snapshot(self, tenant: str, id_: str) -> SnapshotRecord | None:
        """One of the tenant's."""
        row = self._db.execute("select doc from snapshots where id = ? and tenant = ?", (id_, tenant)).fetchone()
        return _snapshot(row[0]) if row else None

    async def snapshots(self, tenant: str, *, before: tuple[float, str] | None, limit: int) -> list[SnapshotRecord]:
        """The tenant's newest, from before (created_at, id) on."""
        rows = self._db.execute(
            "select doc from snapshots where tenant = ? and (created_at, id) < (?, ?)"
            " order by created_at desc, id desc limit ?",
            (tenant, *(before or (1e18, "")), limit),
        )
        return [*readable(rows, lambda row: _snapshot(row[0]))]

    async def all_snapshots(self, *, expired_at: float | None = None) -> list[str]:
        """Ids of all tenants' snapshots, or of those whose time is over at a moment."""
        query, values = "select id from snapshots", []
        if expired_at is not None:
            query, values = query + " where expires_at <= ?", [expired_at]
        return [row[0] for row in self._db.execute(query, values)]

    async def template_snapshots(self) -> list[SnapshotRecord]:
        """All tenants' that were marked as templates."""
        rows = self._db.execute("select doc from snapshots where json_extract(doc, '$.template')")
        return [*readable(rows, lambda row: _snapshot(row[0]))]

    async def snapshot_bytes(self, tenant: str | None) -> int:
        """What a tenant's snapshots take on disk, or with None all."""
        query = "select sum(json_extract(doc, '$.size_bytes')) from snapshots where tenant = coalesce(?, tenant)"
        row = self._db.execute(query, (tenant,)).fetchone()
        return int(row[0] or 0)

    async def forget_snapshot(self, id_: str) -> None:
        """Delete the record."""
        self._db.execute("delete from snapshots where id = ?", (id_,))

    # ---- GPUs and usage

    async def save_gpu(self, uuid: str, doc: dict[str, Any]) -> None:
        """Insert or replace what is known of a device."""
        self._db.execute("insert or replace into gpus values (?, ?)", (uuid, json.dumps(doc)))

    async def gpus(self) -> list[tuple[str, dict[str, Any]]]:
        """What is known of devices, by UUID."""
        return [(uuid, json.loads(doc)) for uuid, doc in self._db.execute("select uuid, doc from gpus")]

    async def save_usage(self, record: UsageRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into usage values (?, ?, ?, ?, ?)",
            (record.sandbox, record.tenant, record.started_at, record.ended_at, json.dumps(asdict(record))),
        )

    async def usage(self, tenant: str, since: float, until: float, limit: int) -> list[UsageRecord]:
        """The tenant's that ran at some moment between, what began last first."""
        rows = self._db.execute(
            "select doc from usage where tenant = ? and started_at < ? and ended_at >= ?"
            " order by started_at desc, sandbox desc limit ?",
            (tenant, until, since, limit),
        )
        return _all(UsageRecord, rows)

    async def forget_usage(self, before: float) -> None:
        """Delete that of sandboxes that ended before a moment."""
        self._db.execute("delete from usage where ended_at < ?", (before,))

    # ---- images

    async def save_image(self, record: ImageRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into images values (?, ?, ?, ?, ?, ?)",
            (record.id, record.tenant, record.name, record.created_at, record.state, _document(record)),
        )

    async def image(self, tenant: str, id_: str) -> ImageRecord | None:
        """One of the tenant's."""
        row = self._db.execute("select doc from images where id = ? and tenant = ?", (id_, tenant)).fetchone()
        return ImageRecord(**json.loads(row[0])) if row else None

    async def image_named(self, tenant: str, name: str) -> ImageRecord | None:
        """The tenant's newest of that name that is ready."""
        query = (
            "select doc from images where tenant = ? and name = ? and state = 'ready' order by created_at desc limit 1"
        )
        row = self._db.execute(query, (tenant, name)).fetchone()
        return ImageRecord(**json.loads(row[0])) if row else None

    async def images(self, tenant: str, *, before: tuple[float, str] | None, limit: int) -> list[ImageRecord]:
        """The tenant's newest, from before (created_at, id) on."""
        rows = self._db.execute(
            "select doc from images where tenant = ? and (created_at, id) < (?, ?)"
            " order by created_at desc, id desc limit ?",
            (tenant, *(before or (1e18, "")), limit),
        )
        return _all(ImageRecord, rows)

    async def unfinished_images(self) -> list[ImageRecord]:
        """All tenants' that an earlier server was making."""
        return [
            ImageRecord(**json.loads(row[0]))
            for row in self._db.execute("select doc from images where state = 'building'")
        ]

    async def forget_image(self, id_: str) -> None:
        """Delete the record."""
        self._db.execute("delete from images where id = ?", (id_,))

    async def image_users(self, tenant: str, digest: str) -> list[str]:
        """Ids of the tenant's sandboxes that have not ended, and snapshots, that need the image of that digest."""
        marks = ", ".join("?" * len(FINAL))
        rows = self._db.execute(
            f"select id from sandboxes where tenant = ? and json_extract(doc, '$.image_digest') = ?"  # noqa: S608
            f" and state not in ({marks}) union all select id from snapshots where tenant = ?"
            " and json_extract(doc, '$.sandbox.image_digest') = ?",
            (tenant, digest, *FINAL, tenant, digest),
        )
        return [row[0] for row in rows]

    async def keep_step(self, tenant: str, key: str, digest: str) -> None:
        """Remember what a step of a build came to."""
        self._db.execute("insert or replace into steps values (?, ?, ?, ?)", (tenant, key, digest, time.time()))

    async def step(self, tenant: str, key: str) -> str | None:
        """The digest of the image that a step came to."""
        row = self._db.execute("select digest from steps where tenant = ? and key = ?", (tenant, key)).fetchone()
        return row[0] if row else None

    async def forget_steps(self, tenant: str | None) -> list[str]:
        """Forget what a tenant's steps came to, or with None all tenants'; the keys that nobody has any more."""
        query, values = "delete from steps", []
        if tenant is not None:
            query, values = query + " where tenant = ?", [tenant]
        self._db.execute("begin immediate")
        keys = {row[0] for row in self._db.execute(query + " returning key", values)}
        keys -= {row[0] for row in self._db.execute("select key from steps")}
        self._db.execute("commit")
        return sorted(keys)

    # ---- volumes

    async def save_volume(self, record: VolumeRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into volumes values (?, ?, ?, ?)",
            (record.id, record.tenant, record.name, json.dumps(asdict(record))),
        )

    async def volume(self, tenant: str, name: str) -> VolumeRecord | None:
        """The tenant's of that name."""
        row = self._db.execute("select doc from volumes where tenant = ? and name = ?", (tenant, name)).fetchone()
        return VolumeRecord(**json.loads(row[0])) if row else None

    async def volumes(self, tenant: str) -> list[VolumeRecord]:
        """The tenant's, by name."""
        rows = self._db.execute("select doc from volumes where tenant = ? order by name", (tenant,))
        return _all(VolumeRecord, rows)

    async def forget_volume(self, id_: str) -> None:
        """Delete the record."""
        self._db.execute("delete from volumes where id = ?", (id_,))

    # ---- secrets

    async def save_secret(self, record: SecretRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into secrets values (?, ?, ?, ?, ?)",
            (record.tenant, record.name, record.created_at, record.updated_at, record.sealed),
        )

    async def secret(self, tenant: str, name: str) -> SecretRecord | None:
        """One of the tenant's."""
        row = self._db.execute("select * from secrets where tenant = ? and name = ?", (tenant, name)).fetchone()
        return SecretRecord(*row) if row else None

    async def secrets(self, tenant: str) -> list[SecretRecord]:
        """The tenant's, by name."""
        rows = self._db.execute("select * from secrets where tenant = ? order by name", (tenant,))
        return [SecretRecord(*row) for row in rows]

    async def forget_secret(self, tenant: str, name: str) -> None:
        """Delete one."""
        self._db.execute("delete from secrets where tenant = ? and name = ?", (tenant, name))

    # ---- answers already given (Idempotency-Key)

    async def answer(self, tenant: str, key: str) -> tuple[str, int, str, bytes] | None:
        """(fingerprint of the request, status, content type, body) of the answer given under this key."""
        row = self._db.execute(
            "select request, status, type, body from answers where tenant = ? and key = ?", (tenant, key)
        ).fetchone()
        return tuple(row) if row else None

    async def keep_answer(self, tenant: str, key: str, request: str, status: int, type_: str, body: bytes) -> None:
        """Remember an answer."""
        self._db.execute(
            "insert or replace into answers values (?, ?, ?, ?, ?, ?, ?)",
            (tenant, key, request, status, type_, body, time.time()),
        )

    async def forget_answers(self, before: float) -> None:
        """Delete those given before a moment."""
        self._db.execute("delete from answers where at < ?", (before,))
