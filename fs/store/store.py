"""The store: pieces of contents, each kept once, in packs; recipes of images; how many images need each piece.

    FOLDER/index.db     where each piece lies, how many recipes name it; the truth about what is in the store
    FOLDER/lock         shared by writers, alone for whoever collects garbage
    FOLDER/writing/     packs that are being written
    a backend           packs/, images/; by default below FOLDER too

Crash at any moment: a pack is known to the index as pending before the backend has it, and as ours in the one
transaction that makes its image exist. What is pending while nobody writes is garbage.
"""

import contextlib
import fcntl
import hashlib
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from common.ids import new_id
from fs.erofs import Layout, Placed
from fs.errors import StoreCorrupt, StoreFull
from fs.progress import Progress
from fs.store import chunks
from fs.store.backend import Backend, cannot_write
from fs.store.recipe import Location, Recipe, decode
from fs.tree import Piece

_PACK_MAX: Final = 64 << 20
_AHEAD: Final = 8
_RUN: Final = 1 << 20
"""Bytes that one thread works on at a time."""
_WORKERS: Final = 2
_ZEROS: Final = bytes(chunks.MAX)
_QUERY: Final = 500
_DEAD_SHARE: Final = 0.5
_BUSY_S: Final = 60.0
_SCHEMA: Final = """
create table if not exists packs (id text primary key, size integer not null, pending integer not null) without rowid;
create table if not exists chunks (digest blob primary key, pack text not null, offset integer not null,
    length integer not null, size integer not null, refs integer not null) without rowid;
create index if not exists chunks_by_pack on chunks (pack);
create table if not exists images (digest text primary key, size integer not null) without rowid;
"""


@dataclass(frozen=True, slots=True)
class Stats:
    """What the store holds, bytes: as stored, and as the pieces are."""

    images: int
    pieces: int
    stored_bytes: int
    piece_bytes: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did."""

    deleted_packs: int
    rewritten_packs: int
    freed_bytes: int


class Store:
    """See the module; all calls block, from any thread."""

    def __init__(
        self, folder: Path, backend: Backend, *, limit_bytes: int = 1 << 62, life: Progress | None = None
    ) -> None:
        """What reads contents in other threads ends once `life` is stopped."""
        self._folder = folder
        self._backend = backend
        self.limit_bytes = limit_bytes
        self._life = life or Progress()
        (folder / "writing").mkdir(parents=True, exist_ok=True)
        with self._db() as db:
            db.executescript("pragma journal_mode = wal;" + _SCHEMA)

    @contextmanager
    def _db(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._folder / "index.db", timeout=_BUSY_S, isolation_level=None)
        try:
            yield db
        except sqlite3.OperationalError as error:
            raise StoreFull(f"the store's index cannot be written: {error}", hint="see the disk") from error
        finally:
            db.close()

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with open(self._folder / "lock", "w") as lock:
            fcntl.flock(lock, how)
            yield

    # ---- reading

    def recipe(self, digest: str) -> Recipe | None:
        """The recipe of an image; None if the store has no such image."""
        stored = self._backend.get(_recipe_key(digest)) if self.has(digest) else None
        return None if stored is None else decode(stored, digest)

    def has(self, digest: str) -> bool:
        """Whether the store holds this image."""
        with self._db() as db:
            return db.execute("select 1 from images where digest = ?", (digest,)).fetchone() is not None

    def fetch(self, piece: Piece, at: Location) -> bytes:
        """A piece, checked."""
        return chunks.unpack(self._backend.read(_pack_key(at.pack), at.offset, at.length), piece)

    def stored(self, at: Location) -> bytes:
        """A piece as it is stored."""
        return self._backend.read(_pack_key(at.pack), at.offset, at.length)

    def _fetch_run(self, run: list[tuple[Placed, Location]]) -> list[tuple[int, bytes]]:
        return [(placed.offset, chunks.unpack(stored, placed.piece)) for placed, stored in read_run(self._backend, run)]

    def contents(self, pieces: Sequence[Piece]) -> Iterator[bytes]:
        """A file's contents, piece by piece."""
        with self._locked(fcntl.LOCK_SH), self._db() as db:
            for piece in pieces:
                self._life.check()
                row = db.execute("select pack, offset, length from chunks where digest = ?", (piece.digest,)).fetchone()
                if row is None:
                    raise StoreCorrupt("the store lacks a piece", hint="pull or build the image again")
                yield self.fetch(piece, Location(*row))

    def write_out(self, recipe: Recipe, target: Path) -> None:
        """Write an image's EROFS file, whole; it takes its name when it is done."""
        partial = target.with_name(f"{new_id('img')}.partial")
        try:
            with (
                self._locked(fcntl.LOCK_SH),
                partial.open("wb") as file,
                ThreadPoolExecutor(_WORKERS, "isobox-unpack") as pool,
            ):
                file.truncate(recipe.layout.size)
                file.write(recipe.layout.metadata)
                waiting: deque[Future[list[tuple[int, bytes]]]] = deque()
                for run in runs(recipe.pieces()):
                    self._life.check()
                    waiting.append(pool.submit(self._fetch_run, run))
                    if len(waiting) > _AHEAD:
                        _write(file, waiting.popleft())
                for each in waiting:
                    _write(file, each)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except OSError as error:
            raise StoreFull(f"the image cannot be written out: {error.strerror}", hint="free disk space") from error
        finally:
            partial.unlink(missing_ok=True)

    def stats(self) -> Stats:
        """What is there."""
        with self._db() as db:
            images = db.execute("select count(*) from images").fetchone()[0]
            pieces, size = db.execute("select count(*), coalesce(sum(size), 0) from chunks").fetchone()
            stored = db.execute("select coalesce(sum(size), 0) from packs where not pending").fetchone()[0]
            return Stats(images, pieces, stored, size)

    # ---- writing

    @contextmanager
    def writer(self, progress: Progress | None = None) -> Iterator["Writer"]:
        """Write pieces and then an image of them. What is not made part of an image is garbage afterwards."""
        with self._locked(fcntl.LOCK_SH), self._db() as db:
            writer = Writer(self._folder / "writing", self._backend, db, self.limit_bytes, progress)
            with writer:
                yield writer

    def drop(self, digest: str) -> None:
        """An image is needed no more; its pieces go when garbage is collected."""
        with self._locked(fcntl.LOCK_SH), self._db() as db:
            self._drop(db, digest)

    def _drop(self, db: sqlite3.Connection, digest: str) -> None:
        recipe = self.recipe(digest)
        with _transaction(db):
            if db.execute("delete from images where digest = ?", (digest,)).rowcount and recipe is not None:
                gone = {placed.piece.digest for placed in recipe.layout.placed}
                db.executemany("update chunks set refs = refs - 1 where digest = ?", [(each,) for each in gone])
        self._backend.delete(_recipe_key(digest))

    def believe(self, present: set[str]) -> None:
        """Forget what lies in packs that the backend, asked for its keys, does not have."""
        with self._locked(fcntl.LOCK_EX), self._db() as db, _transaction(db):
            known = [row[0] for row in db.execute("select id from packs")]
            gone = [(pack,) for pack in known if _pack_key(pack) not in present]
            db.executemany("delete from chunks where pack = ?", gone)
            db.executemany("delete from packs where id = ?", gone)
            if gone:
                db.execute("delete from images")

    def collect(self, needed: Callable[[], set[str]] | None = None) -> Collected:
        """Delete what no image needs; waits for readers and writers to end.

        Packs that are mostly garbage are written anew. needed, asked while nobody writes, tells which images to keep.
        """
        with self._locked(fcntl.LOCK_EX), self._db() as db:
            if needed is not None:
                known = {row[0] for row in db.execute("select digest from images")}
                for digest in known - needed():
                    self._drop(db, digest)
            for left in (self._folder / "writing").iterdir():
                left.unlink()
            doomed = [row[0] for row in db.execute("select id from packs where pending")]
            usage = db.execute(
                "select p.id, p.size, coalesce(sum(iif(c.refs > 0, c.length, 0)), 0) from packs p"
                " left join chunks c on c.pack = p.id where not p.pending group by p.id"
            ).fetchall()
            doomed += [pack for pack, _, live in usage if not live]
            thin = [pack for pack, size, live in usage if live and live < size * (1 - _DEAD_SHARE)]
            before = sum(size for _, size, _ in usage)
            if thin:
                self._rewrite(db, thin)
                doomed += thin
            for pack in doomed:
                self._backend.delete(_pack_key(pack))
                with _transaction(db):
                    db.execute("delete from chunks where pack = ?", (pack,))
                    db.execute("delete from packs where id = ?", (pack,))
            after = db.execute("select coalesce(sum(size), 0) from packs").fetchone()[0]
            return Collected(len(doomed) - len(thin), len(thin), before - after)

    def _rewrite(self, db: sqlite3.Connection, thin: Iterable[str]) -> None:
        """Copy the living pieces of these packs into new ones, and tell the recipes that name them."""
        with Writer(self._folder / "writing", self._backend, db, 1 << 62) as writer:
            marks = ", ".join("?" * len(list(thin)))
            rows = db.execute(
                f"select digest, size, pack, offset, length from chunks where refs > 0 and pack in ({marks})"  # noqa: S608
                " order by pack, offset",
                [*thin],
            ).fetchall()
            moved = {}
            for digest, size, pack, offset, length in rows:
                stored = self._backend.read(_pack_key(pack), offset, length)
                moved[digest] = writer.move(Piece(digest, size), stored)
            writer.flush()
            for (digest,) in db.execute("select digest from images").fetchall():
                recipe = self.recipe(digest)
                if recipe is None or not any(each.piece.digest in moved for each in recipe.layout.placed):
                    continue
                locations = tuple(
                    moved[placed.piece.digest]() if placed.piece.digest in moved else at
                    for placed, at in zip(recipe.layout.placed, recipe.locations, strict=True)
                )
                writer.put_recipe(Recipe(recipe.layout, locations))
            with _transaction(db):
                writer.settle()
                db.executemany(
                    "update chunks set pack = ?, offset = ?, length = ? where digest = ?",
                    [(at.pack, at.offset, at.length, digest) for digest, at in ((d, m()) for d, m in moved.items())],
                )


class Writer:
    """Pieces on their way into packs. Made by `Store.writer`."""

    def __init__(
        self,
        folder: Path,
        backend: Backend,
        db: sqlite3.Connection,
        limit: int,
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress or Progress()
        self._folder = folder
        self._backend = backend
        self._db = db
        self._limit = limit
        self._new: dict[bytes, tuple[int, Location | None]] = {}
        self._batch: list[tuple[Piece, bytes]] = []
        self._batched = 0
        self._packing: deque[Future[list[tuple[Piece, bytes]]]] = deque()
        self._pool = ThreadPoolExecutor(_WORKERS, "isobox-pack")
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._at = 0
        self._open: list[tuple[Piece, int, int]] = []
        self._packs: list[str] = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def add(self, contents: BinaryIO) -> tuple[Piece, ...]:
        """Take a file's contents in; StoreFull if there is no room."""
        found = []
        for data in chunks.cut(contents):
            self._progress.check()
            piece = Piece(chunks.digest(data), len(data))
            found.append(piece)
            if self.known(piece.digest):
                continue
            self._new[piece.digest] = (piece.size, None)
            self._batch.append((piece, data))
            self._batched += len(data)
            if self._batched > _RUN:
                self._submit()
        return tuple(found)

    def fetch(self, piece: Piece) -> bytes:
        """A piece that was taken in before the last `flush`, or that was there."""
        if (found := self._new.get(piece.digest)) is not None and found[1] is not None:
            at = found[1]
        else:
            at = self._where_all({piece.digest})[piece.digest]
        return chunks.unpack(self._backend.read(_pack_key(at.pack), at.offset, at.length), piece)

    def move(self, piece: Piece, stored: bytes) -> Callable[[], Location]:
        """Take in a piece as it is stored already; where it lies is known after `flush`."""
        self._new[piece.digest] = (piece.size, None)
        self._append(piece, stored)

        def where() -> Location:
            at = self._new[piece.digest][1]
            assert at is not None
            return at

        return where

    def known(self, digest: bytes) -> bool:
        """Whether this piece is in the store, or on its way."""
        return digest in self._new or self._known(digest)

    def _known(self, digest: bytes) -> bool:
        return self._db.execute("select 1 from chunks where digest = ?", (digest,)).fetchone() is not None

    def _submit(self) -> None:
        self._packing.append(self._pool.submit(_pack_all, self._batch))
        self._batch, self._batched = [], 0
        while len(self._packing) > _AHEAD:
            self._append_next()

    def _append_next(self) -> None:
        for piece, stored in self._packing.popleft().result():
            self._append(piece, stored)

    def _append(self, piece: Piece, stored: bytes) -> None:
        if self._at and self._at + len(stored) > _PACK_MAX:
            self._finish()
        try:
            if self._file is None:
                self._path = self._folder / f"{new_id('img')}.pack"
                self._file = self._path.open("xb")
            self._file.write(stored)
        except OSError as error:
            raise cannot_write(error) from error
        self._hash.update(stored)
        self._open.append((piece, self._at, len(stored)))
        self._at += len(stored)

    def _finish(self) -> None:
        """The pack that is open is full: hand it to the backend."""
        if self._file is None or self._path is None:
            return
        kept = self._db.execute("select coalesce(sum(size), 0) from packs").fetchone()[0]
        if kept + self._at > self._limit:
            raise StoreFull(
                f"the store would grow beyond {self._limit >> 20} MiB", hint="remove images, then: isobox image prune"
            )
        try:
            self._file.close()
        except OSError as error:
            raise cannot_write(error) from error
        pack = self._hash.hexdigest()
        self._db.execute("insert or ignore into packs values (?, ?, 1)", (pack, self._at))
        self._backend.put(_pack_key(pack), self._path)
        self._path.unlink()
        for piece, offset, length in self._open:
            self._new[piece.digest] = (piece.size, Location(pack, offset, length))
        self._packs.append(pack)
        self._path, self._file, self._hash, self._at, self._open = None, None, hashlib.sha256(), 0, []

    def flush(self) -> None:
        """All pieces that were taken in are in the backend afterwards."""
        self._submit()
        while self._packing:
            self._append_next()
        self._finish()

    def settle(self) -> None:
        """Within a transaction: the packs written so far are ours."""
        self._db.executemany("update packs set pending = 0 where id = ?", [(pack,) for pack in self._packs])
        self._packs = []

    def commit(self, layout: Layout, elsewhere: Mapping[bytes, Location] | None = None) -> Recipe:
        """Make an image of pieces that were taken in, or that were there: it exists when this returns.

        elsewhere says where pieces lie that another store keeps.
        """
        self.flush()
        with _transaction(self._db):
            self.settle()
            self._db.executemany(
                "insert or ignore into chunks values (?, ?, ?, ?, ?, 0)",
                [
                    (each, at.pack, at.offset, at.length, size)
                    for each, (size, at) in self._new.items()
                    if at is not None
                ],
            )
            # Only now, for another writer may have stored the same piece meanwhile: the index says which of them stays.
            where = self._where_all({placed.piece.digest for placed in layout.placed}, elsewhere)
            recipe = Recipe(layout, tuple(where[placed.piece.digest] for placed in layout.placed))
            self.put_recipe(recipe)
            used = {placed.piece.digest for placed in layout.placed}
            if not self._db.execute(
                "insert or ignore into images values (?, ?)", (recipe.digest, layout.size)
            ).rowcount:
                used &= self._new.keys()  # it was here, and its other pieces counted; these lay elsewhere till now
            if used:
                self._db.executemany("update chunks set refs = refs + 1 where digest = ?", [(each,) for each in used])
        self._new = {}
        return recipe

    def put_recipe(self, recipe: Recipe) -> None:
        """Store a recipe under its image's digest."""
        path = self._folder / f"{new_id('img')}.recipe"
        try:
            path.write_bytes(recipe.encode())
            self._backend.put(_recipe_key(recipe.digest), path)
        except OSError as error:
            raise cannot_write(error) from error
        finally:
            path.unlink(missing_ok=True)

    def _where_all(
        self, digests: set[bytes], elsewhere: Mapping[bytes, Location] | None = None
    ) -> dict[bytes, Location]:
        found, todo = dict(elsewhere or {}), list(digests)
        for start in range(0, len(todo), _QUERY):
            some = todo[start : start + _QUERY]
            query = f"select digest, pack, offset, length from chunks where digest in ({', '.join('?' * len(some))})"  # noqa: S608
            found.update({row[0]: Location(*row[1:]) for row in self._db.execute(query, some)})
        if not digests <= found.keys():
            raise StoreCorrupt("a piece of the image was never stored")
        return found


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("begin immediate")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("rollback")
        raise
    db.execute("commit")


def _pack_all(batch: list[tuple[Piece, bytes]]) -> list[tuple[Piece, bytes]]:
    return [(piece, chunks.pack(data)) for piece, data in batch]


def runs(pieces: Iterable[tuple[Placed, Location]]) -> Iterator[list[tuple[Placed, Location]]]:
    """Pieces as runs that lie one behind the other in a pack: one read each."""
    run: list[tuple[Placed, Location]] = []
    size = 0
    for placed, at in pieces:
        last = run[-1][1] if run else None
        if last and (size > _RUN or at.pack != last.pack or at.offset != last.offset + last.length):
            yield run
            run, size = [], 0
        run.append((placed, at))
        size += at.length
    if run:
        yield run


def read_run(backend: Backend, run: list[tuple[Placed, Location]]) -> Iterator[tuple[Placed, bytes]]:
    """Each piece of a run as it is stored."""
    first, last = run[0][1], run[-1][1]
    stored = backend.read(_pack_key(first.pack), first.offset, last.offset + last.length - first.offset)
    for placed, at in run:
        begin = at.offset - first.offset
        yield placed, stored[begin : begin + at.length]


def _write(file: BinaryIO, found: Future[list[tuple[int, bytes]]]) -> None:
    for offset, data in found.result():
        if data == _ZEROS[: len(data)]:  # the file has been made so large already: what is empty takes no disk
            continue
        file.seek(offset)
        file.write(data)


def _pack_key(pack: str) -> str:
    return f"packs/{pack}"


def _recipe_key(digest: str) -> str:
    return f"images/{digest.removeprefix('sha256:')}"
