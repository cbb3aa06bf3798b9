"""Functions, calls, inputs and what became of them, in the state's SQLite (see `store.py`)."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sandbox_api.readable import readable

InputState = Literal["queued", "running", "ended"]


@dataclass(slots=True)
class FunctionRecord:
    """A function; `asked` is its CreateFunction. retired: nobody keeps containers of it ready any more."""

    id: str
    tenant: str
    app: str
    name: str
    digest: str
    created_at: float
    asked: dict[str, Any]
    retired: bool = False
    snapshot: str | None = None
    """Its memory once it had begun, if that was copied; and the exec in there that is its runner."""
    snapshot_exec: str = ""


@dataclass(slots=True)
class CallRecord:
    """A call. total counts inputs that came, ended those that are over; open while more may come."""

    id: str
    tenant: str
    function: str
    created_at: float
    total: int = 0
    ended: int = 0
    open: bool = False
    cancelled: bool = False
    ended_at: float | None = None
    run: str | None = None
    """The run of the app that it belongs to."""
    depth: int = 0
    """How many calls wait for it, one inside the other."""
    kept: int = 0
    """Bytes that its inputs and results take on this machine, to 64 KiB."""

    @property
    def complete(self) -> bool:
        """Whether all is over."""
        return not self.open and self.ended >= self.total


@dataclass(slots=True)
class InputRecord:
    """An input. data, or the digest of an upload; container is the sandbox that has it; attempts have failed."""

    call: str
    index: int
    function: str
    state: InputState = "queued"
    data: bytes = b""
    upload: str | None = None
    container: str | None = None
    attempts: int = 0
    crashes: int = 0
    not_before: float = 0.0
    yields: int = 0
    """Of a generator: how many values the caller has."""

    @property
    def id(self) -> str:
        """What a runner knows it by."""
        return f"{self.call}.{self.index}"


@dataclass(slots=True)
class ContainerRecord:
    """A sandbox that runs a function: the runner's exec, and how many bytes of what it said were dealt with."""

    sandbox: str
    function: str
    exec: str
    taken: int = 0


@dataclass(slots=True)
class ResultRecord:
    """What happened to an input; doc as `models.functions.CallResult` has it."""

    seq: int
    call: str
    index: int
    kind: str
    doc: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BegunRecord:
    """A copy of an interpreter that has begun: its snapshot, its exec in there, and how large its sandbox was."""

    tenant: str
    digest: str
    user: str
    snapshot: str
    exec: str
    memory_mb: int
    disk_mb: int
    pids: int
    expires_at: float


@dataclass(slots=True)
class RunRecord:
    """An app that a client runs, and the functions that it made for that."""

    id: str
    tenant: str
    app: str
    functions: list[str] = field(default_factory=list)


@dataclass(slots=True)
class AppRecord:
    """A deployed app. version is the one in force, 0 for none; history has all: created_at, functions, copy_of."""

    tenant: str
    name: str
    version: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By function: `last_at` (when it ran), `last_call`, and `since` (when its schedule came into force)."""

    @property
    def functions(self) -> dict[str, str]:
        """Those in force: ids by names."""
        found: dict[str, str] = self.history[self.version - 1]["functions"] if self.version else {}
        return found


SCHEMA = """
create table apps (tenant text not null, name text not null, doc text not null,
                   primary key (tenant, name)) without rowid;
create table functions (id text primary key, tenant text not null, digest text not null, created_at real not null,
                        retired integer not null, doc text not null, unique (tenant, digest)) without rowid;
create table calls (id text primary key, tenant text not null, function text not null, created_at real not null,
                    ended_at real, doc text not null) without rowid;
create index calls_by_end on calls (ended_at);
create table inputs (call text not null, idx integer not null, function text not null, state text not null,
                     data blob not null, upload text, container text, attempts integer not null,
                     crashes integer not null, not_before real not null, yields integer not null,
                     primary key (call, idx)) without rowid;
create index inputs_by_function on inputs (function) where state != 'ended';
create table results (seq integer primary key autoincrement, call text not null, idx integer not null,
                      kind text not null, doc text not null);
create index results_by_call on results (call, seq);
create table containers (sandbox text primary key, function text not null, exec text not null,
                         taken integer not null) without rowid;
"""
RUNS_SCHEMA = """
create table runs (id text primary key, tenant text not null, doc text not null) without rowid;
create table begun (tenant text not null, digest text not null, user text not null, doc text not null,
                    primary key (tenant, digest, user)) without rowid;
"""
_INPUT = "call, idx, inputs.function, state, data, upload, container, attempts, crashes, not_before, yields"


class FunctionStore:
    """The tables of functions; one connection, shared with `Store`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._inside = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is written together, or not at all; one in another is part of that."""
        if self._inside:
            yield
            return
        self._db.execute("begin immediate")
        self._inside = True
        try:
            yield
        except BaseException:
            self._db.execute("rollback")
            raise
        finally:
            self._inside = False
        self._db.execute("commit")

    # ---- functions

    def save_function(self, record: FunctionRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into functions values (?, ?, ?, ?, ?, ?)",
            (record.id, record.tenant, record.digest, record.created_at, record.retired, json.dumps(asdict(record))),
        )

    def function(self, id_: str) -> FunctionRecord | None:
        """One, whoever's."""
        return _function(self._db.execute("select doc from functions where id = ?", (id_,)).fetchone())

    def function_of(self, tenant: str, digest: str) -> FunctionRecord | None:
        """The tenant's that was asked for in the same words."""
        query = "select doc from functions where tenant = ? and digest = ?"
        return _function(self._db.execute(query, (tenant, digest)).fetchone())

    def functions(self, tenant: str | None, limit: int = 1000) -> list[FunctionRecord]:
        """The newest of a tenant's, or of all."""
        where, values = ("where tenant = ?", [tenant]) if tenant is not None else ("", [])
        rows = self._db.execute(
            f"select doc from functions {where} order by created_at desc limit ?",  # noqa: S608  # our own words
            [*values, limit],
        )
        return [*readable(rows, lambda row: FunctionRecord(**json.loads(row[0])))]

    def forget_function(self, id_: str) -> None:
        """Delete the record."""
        self._db.execute("delete from functions where id = ?", (id_,))

    # ---- apps

    def save_app(self, record: AppRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into apps values (?, ?, ?)", (record.tenant, record.name, json.dumps(asdict(record)))
        )

    def apps(self, tenant: str | None = None) -> list[AppRecord]:
        """A tenant's by name, or all."""
        rows = self._db.execute("select tenant, doc from apps order by name").fetchall()
        docs = [doc for whose, doc in rows if tenant in (None, whose)]
        return [*readable(docs, lambda doc: AppRecord(**json.loads(doc)))]

    def app(self, tenant: str, name: str) -> AppRecord | None:
        """One of the tenant's."""
        row = self._db.execute("select doc from apps where tenant = ? and name = ?", (tenant, name)).fetchone()
        return AppRecord(**json.loads(row[0])) if row else None

    # ---- runs

    def save_run(self, record: RunRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into runs values (?, ?, ?)", (record.id, record.tenant, json.dumps(asdict(record)))
        )

    def runs(self) -> list[RunRecord]:
        """All."""
        rows = self._db.execute("select doc from runs")
        return [*readable(rows, lambda row: RunRecord(**json.loads(row[0])))]

    def forget_run(self, id_: str) -> None:
        """Delete the record."""
        self._db.execute("delete from runs where id = ?", (id_,))

    # ---- interpreters

    def save_begun(self, record: BegunRecord) -> None:
        """Insert or replace."""
        values = (record.tenant, record.digest, record.user, json.dumps(asdict(record)))
        self._db.execute("insert or replace into begun values (?, ?, ?, ?)", values)

    def begun(self) -> list[BegunRecord]:
        """All."""
        rows = self._db.execute("select doc from begun")
        return [*readable(rows, lambda row: BegunRecord(**json.loads(row[0])))]

    def forget_begun(self, record: BegunRecord) -> None:
        """Delete the record."""
        key = (record.tenant, record.digest, record.user)
        self._db.execute("delete from begun where tenant = ? and digest = ? and user = ?", key)

    # ---- calls

    def save_call(self, record: CallRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into calls values (?, ?, ?, ?, ?, ?)",
            (
                *(record.id, record.tenant, record.function, record.created_at, record.ended_at),
                json.dumps(asdict(record)),
            ),
        )

    def call(self, id_: str) -> CallRecord | None:
        """One, whoever's."""
        row = self._db.execute("select doc from calls where id = ?", (id_,)).fetchone()
        return CallRecord(**json.loads(row[0])) if row else None

    def kept_bytes(self) -> dict[str, int]:
        """By tenant, what its calls take."""
        query = "select tenant, sum(coalesce(json_extract(doc, '$.kept'), 0)) from calls group by tenant"
        return {tenant: int(size) for tenant, size in self._db.execute(query)}

    def calls_not_ended(self) -> list[str]:
        """Those that are not over."""
        return [row[0] for row in self._db.execute("select id from calls where ended_at is null")]

    def functions_called(self) -> set[str]:
        """Those of which a call is remembered."""
        return {row[0] for row in self._db.execute("select distinct function from calls")}

    def calls_ended_before(self, moment: float) -> list[str]:
        """Those that were over by then."""
        return [row[0] for row in self._db.execute("select id from calls where ended_at < ?", (moment,))]

    def forget_call(self, id_: str) -> None:
        """Delete it with all that belongs to it."""
        for query in ("results where call", "inputs where call", "calls where id"):
            self._db.execute(f"delete from {query} = ?", (id_,))  # noqa: S608  # our own words

    # ---- inputs

    def add_inputs(self, records: list[InputRecord]) -> None:
        """Insert those that are not there."""
        marks = ", ".join("?" * 11)
        self._db.executemany(f"insert or ignore into inputs values ({marks})", [_row(each) for each in records])  # noqa: S608

    def save_input(self, record: InputRecord) -> None:
        """Bring one up to date."""
        self._db.execute(
            "update inputs set state = ?, container = ?, attempts = ?, crashes = ?, not_before = ?, yields = ?,"
            " data = ? where call = ? and idx = ?",
            (
                *(record.state, record.container, record.attempts, record.crashes, record.not_before, record.yields),
                *(b"" if record.state == "ended" else record.data, record.call, record.index),
            ),
        )

    def unfinished_inputs(self, function: str) -> list[InputRecord]:
        """A function's that are not over, in the order that they came."""
        rows = self._db.execute(
            f"select {_INPUT} from inputs join calls on calls.id = inputs.call"  # noqa: S608  # our own words
            " where inputs.function = ? and state != 'ended' order by calls.created_at, call, idx",
            (function,),
        )
        return [InputRecord(*row) for row in rows]

    def input(self, call: str, index: int) -> InputRecord | None:
        """One."""
        row = self._db.execute(
            f"select {_INPUT} from inputs where call = ? and idx = ?",  # noqa: S608  # our own words
            (call, index),
        ).fetchone()
        return InputRecord(*row) if row else None

    # ---- results

    def add_result(self, call: str, index: int, kind: str, doc: dict[str, Any]) -> int:
        """Append one: its seq."""
        cursor = self._db.execute(
            "insert into results (call, idx, kind, doc) values (?, ?, ?, ?)", (call, index, kind, json.dumps(doc))
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def results(self, call: str, after: int, limit: int) -> list[ResultRecord]:
        """A call's beyond after."""
        rows = self._db.execute(
            "select seq, call, idx, kind, doc from results where call = ? and seq > ? order by seq limit ?",
            (call, after, limit),
        )
        return [ResultRecord(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows]

    # ---- containers

    def save_container(self, record: ContainerRecord) -> None:
        """Insert or replace."""
        self._db.execute(
            "insert or replace into containers values (?, ?, ?, ?)",
            (record.sandbox, record.function, record.exec, record.taken),
        )

    def containers(self) -> list[ContainerRecord]:
        """All."""
        return [
            ContainerRecord(*row) for row in self._db.execute("select sandbox, function, exec, taken from containers")
        ]

    def forget_container(self, sandbox: str) -> None:
        """Delete the record."""
        self._db.execute("delete from containers where sandbox = ?", (sandbox,))


def _function(row: tuple[str] | None) -> FunctionRecord | None:
    return FunctionRecord(**json.loads(row[0])) if row else None


def _row(record: InputRecord) -> tuple[object, ...]:
    return (
        *(record.call, record.index, record.function, record.state, record.data, record.upload, record.container),
        *(record.attempts, record.crashes, record.not_before, record.yields),
    )
