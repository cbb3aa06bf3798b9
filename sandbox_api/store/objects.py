"""Dicts and queues of functions, in the state's SQLite. Keys and values are bytes that nobody here reads."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from sandbox_api.readable import readable

Kind = Literal["dict", "queue"]
SCHEMA = """
create table objects (id text primary key, tenant text not null, kind text not null, name text not null,
                      doc text not null, items integer not null, bytes integer not null,
                      unique (tenant, kind, name)) without rowid;
create table dict_items (object text not null, key blob not null, seq integer not null, value blob not null,
                         primary key (object, key)) without rowid;
create index dict_items_in_order on dict_items (object, seq);
create table queue_items (seq integer primary key autoincrement, object text not null, part text not null,
                          value blob not null, expires_at real not null);
create index queue_items_by_part on queue_items (object, part, seq);
create index queue_items_by_end on queue_items (expires_at);
create table object_answers (token text not null, object text not null, at real not null, answer text not null,
                             primary key (object, token)) without rowid;
create trigger dict_items_come after insert on dict_items begin
    update objects set items = items + 1, bytes = bytes + length(new.key) + length(new.value) where id = new.object;
end;
create trigger dict_items_change after update on dict_items begin
    update objects set bytes = bytes + length(new.value) - length(old.value) where id = new.object;
end;
create trigger dict_items_go after delete on dict_items begin
    update objects set items = items - 1, bytes = bytes - length(old.key) - length(old.value) where id = old.object;
end;
create trigger queue_items_come after insert on queue_items begin
    update objects set items = items + 1, bytes = bytes + length(new.value) where id = new.object;
end;
create trigger queue_items_go after delete on queue_items begin
    update objects set items = items - 1, bytes = bytes - length(old.value) where id = old.object;
end;
"""


@dataclass(slots=True)
class ObjectRecord:
    """A dict or a queue; used_at in seconds since the epoch, to the minute; ttl_s without use ends it."""

    id: str
    tenant: str
    kind: Kind
    name: str
    created_at: float
    used_at: float
    ttl_s: float | None = None


class ObjectStore:
    """See the module; on the connection of `Store`. Whoever writes does so inside its transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    # ---- objects

    def save(self, record: ObjectRecord) -> None:
        """Insert or update."""
        self._db.execute(
            "insert into objects values (?, ?, ?, ?, ?, 0, 0) on conflict (id) do update set doc = excluded.doc",
            (record.id, record.tenant, record.kind, record.name, json.dumps(asdict(record))),
        )

    def find(self, tenant: str, kind: Kind, name: str) -> ObjectRecord | None:
        """One by its name."""
        query = "select doc from objects where tenant = ? and kind = ? and name = ?"
        row = self._db.execute(query, (tenant, kind, name)).fetchone()
        return ObjectRecord(**json.loads(row[0])) if row else None

    def all(self, tenant: str | None, kind: Kind | None = None) -> list[ObjectRecord]:
        """A tenant's by name, or everybody's."""
        rows = self._db.execute("select doc from objects order by name").fetchall()
        found = readable(rows, lambda row: ObjectRecord(**json.loads(row[0])))
        return [each for each in found if tenant in (None, each.tenant) and kind in (None, each.kind)]

    def forget(self, id_: str) -> None:
        """Delete one and all that is in it."""
        self._db.execute("delete from objects where id = ?", (id_,))
        for query in ("dict_items where object", "queue_items where object", "object_answers where object"):
            self._db.execute(f"delete from {query} = ?", (id_,))  # noqa: S608  # our own words

    def size(self, id_: str) -> tuple[int, int]:
        """How many items are in it, and their bytes."""
        found: tuple[int, int] = self._db.execute("select items, bytes from objects where id = ?", (id_,)).fetchone()
        return found

    def bytes_of(self, tenant: str) -> int:
        """The bytes of all items of a tenant's."""
        query = "select coalesce(sum(bytes), 0) from objects where tenant = ?"
        return int(self._db.execute(query, (tenant,)).fetchone()[0])

    # ---- what was answered

    def answered(self, id_: str, token: str) -> str | None:
        """What the same question was answered with."""
        query = "select answer from object_answers where object = ? and token = ?"
        row = self._db.execute(query, (id_, token)).fetchone()
        return row[0] if row else None

    def answer(self, id_: str, token: str, at: float, answer: str) -> None:
        """Remember it."""
        self._db.execute("insert or replace into object_answers values (?, ?, ?, ?)", (token, id_, at, answer))

    def forget_answer(self, id_: str, token: str) -> None:
        """One that there is no room for."""
        self._db.execute("delete from object_answers where object = ? and token = ?", (id_, token))

    def forget_answers(self, before: float) -> None:
        """Those that nobody asks for any more."""
        self._db.execute("delete from object_answers where at < ?", (before,))

    # ---- dicts

    def get(self, id_: str, keys: Sequence[bytes]) -> Iterator[bytes | None]:
        """The values of keys, read as they are asked for."""
        query = "select value from dict_items where object = ? and key = ?"
        for key in keys:
            row = self._db.execute(query, (id_, key)).fetchone()
            yield row[0] if row else None

    def put(self, id_: str, key: bytes, value: bytes, *, if_absent: bool) -> bool:
        """Set one; False where it is there and was to be left."""
        if (
            if_absent
            and self._db.execute("select 1 from dict_items where object = ? and key = ?", (id_, key)).fetchone()
        ):
            return False
        query = (
            "insert into dict_items"
            " values (?, ?, (select coalesce(max(seq), 0) + 1 from dict_items where object = ?), ?)"
            " on conflict (object, key) do update set value = excluded.value"
        )
        self._db.execute(query, (id_, key, id_, value))
        return True

    def remove(self, id_: str, key: bytes) -> None:
        """Delete one."""
        self._db.execute("delete from dict_items where object = ? and key = ?", (id_, key))

    def items(self, id_: str, after: int, limit: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Those beyond a place (seq, key, value), in the order that their keys came; read as they are asked for."""
        query = "select seq, key, value from dict_items where object = ? and seq > ? order by seq limit ?"
        return self._db.execute(query, (id_, after, limit))

    def clear(self, id_: str) -> None:
        """Delete all in it."""
        self._db.execute("delete from dict_items where object = ?", (id_,))

    # ---- queues

    def append(self, id_: str, part: str, values: Sequence[bytes], expires_at: float) -> None:
        """At the end of a partition."""
        self._db.executemany(
            "insert into queue_items (object, part, value, expires_at) values (?, ?, ?, ?)",
            [(id_, part, value, expires_at) for value in values],
        )

    def peek(self, id_: str, part: str, after: int, limit: int, now: float) -> Iterator[tuple[int, bytes]]:
        """The first of a partition (seq, value) beyond a place, that have not expired; read as they are asked for."""
        query = (
            "select seq, value from queue_items where object = ? and part = ? and seq > ? and expires_at > ?"
            " order by seq limit ?"
        )
        return self._db.execute(query, (id_, part, after, now, limit))

    def take(self, seqs: Sequence[int]) -> None:
        """Delete these."""
        self._db.executemany("delete from queue_items where seq = ?", [(each,) for each in seqs])

    def lengths(self, id_: str, now: float) -> dict[str, int]:
        """By partition."""
        query = "select part, count(*) from queue_items where object = ? and expires_at > ? group by part"
        return dict(self._db.execute(query, (id_, now)).fetchall())

    def length(self, id_: str, part: str, now: float) -> int:
        """How many wait in a partition."""
        query = "select count(*) from queue_items where object = ? and part = ? and expires_at > ?"
        return int(self._db.execute(query, (id_, part, now)).fetchone()[0])

    def clear_queue(self, id_: str, part: str | None) -> None:
        """Delete all of a partition, or of all."""
        self._db.execute("delete from queue_items where object = ? and (? is null or part = ?)", (id_, part, part))

    def expire(self, now: float) -> None:
        """Delete what waited for too long."""
        self._db.execute("delete from queue_items where expires_at <= ?", (now,))
