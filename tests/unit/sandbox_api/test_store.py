"""Records of earlier servers."""

import asyncio
import json
import sqlite3
from pathlib import Path

from sandbox_api.lifecycle import State
from sandbox_api.store.records import SandboxRecord, SnapshotRecord
from sandbox_api.store.store import Store


def record() -> SandboxRecord:
    return SandboxRecord("sbx", "default", State.RUNNING, "python", 1.0, {}, 300.0, "user")


def test_what_an_older_server_made_may_create_namespaces(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")

    async def told() -> tuple[bool, bool]:
        sandbox, snapshot = await store.sandbox("default", "sbx"), await store.snapshot("default", "snp")
        assert sandbox is not None
        assert snapshot is not None
        return sandbox.namespaces, snapshot.sandbox["namespaces"]

    async def keep() -> None:
        await store.save_sandbox(record())
        kept = {"image": "python", "namespaces": False}
        await store.save_snapshot(SnapshotRecord("snp", "default", "sbx", 1.0, "", 1, kept))

    asyncio.run(keep())
    assert asyncio.run(told()) == (False, False)
    older = sqlite3.connect(tmp_path / "db")
    for table, path in (("sandboxes", "$.namespaces"), ("snapshots", "$.sandbox.namespaces")):
        older.execute(f"update {table} set doc = json_remove(doc, '{path}')")
        assert "namespaces" not in json.dumps(older.execute(f"select doc from {table}").fetchall())
    older.commit()
    older.close()
    assert asyncio.run(told()) == (True, True)
    store.close()
