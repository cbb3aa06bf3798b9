"""One append-only log for each exec: the bytes of its output in order, and an index of events.

Two files. `NAME.data` holds payloads back to back; `NAME.index` starts with a page of its own (what was dropped)
and goes on with fixed records, the record's number being the event's `seq`, from 1 on. Data is written before its
record, so that after a crash the index says what counts and the data is cut to it.

The log is bounded. Past `limit` bytes the oldest events go, all but those of the first MiB: their pages are punched
out of both files, the offsets stay. A reader learns of it from the index's first page and reports a gap.

One process writes; any number read, from any point, without locks: a reader looks at the first page again after it
has read, and takes nothing that was being dropped meanwhile.
"""

import ctypes
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

DEFAULT_LIMIT: Final = 256 << 20
HEAD_KEPT: Final = 1 << 20
_PAGE: Final = 4096
_HEAD: Final = struct.Struct("<8sQQ")  # magic; events up to here are kept for ever; events from here on exist
_MAGIC: Final = b"isoboxL1"
_RECORD: Final = struct.Struct("<BxxxIQQQQ")
_RUN_MAX: Final = 256 << 10
_KEEP_SIZE_PUNCH_HOLE: Final = 0x01 | 0x02  # linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class EventType(IntEnum):
    """What a record of the log is; stdout and stderr carry bytes, the others JSON."""

    STDOUT = 1
    STDERR = 2
    STARTED = 3
    ERROR = 4
    NETWORK = 5
    EXIT = 6
    RESULT = 7
    SANDBOX = 8


class Record(NamedTuple):
    """An index record: payload size, time in µs since the epoch, and the offsets where the payload begins."""

    type: int
    size: int
    t_us: int
    data_offset: int
    out_offset: int
    err_offset: int

    @property
    def after(self) -> tuple[int, int, int]:
        """Offsets in data, stdout and stderr right behind this record."""
        return (
            self.data_offset + self.size,
            self.out_offset + (self.size if self.type == EventType.STDOUT else 0),
            self.err_offset + (self.size if self.type == EventType.STDERR else 0),
        )


@dataclass(frozen=True, slots=True)
class Event:
    """An event as read: a run of output may join several records and has the seq of the last."""

    seq: int
    t_us: int
    type: EventType
    payload: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Events up to seq were dropped by the retention: so many bytes of stdout and stderr."""

    seq: int
    stdout_bytes: int
    stderr_bytes: int


class _Index:
    """The index file, for both sides."""

    def __init__(self, path: Path, flags: int) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o600)

    def bounds(self) -> tuple[int, int]:
        """(last event of the kept head, first event of the tail); a gap lies between when they are not neighbours."""
        magic, head, tail = _HEAD.unpack(os.pread(self.fd, _HEAD.size, 0))
        if magic != _MAGIC:
            raise ValueError("not an isobox exec log")
        return head, tail

    def last(self) -> int:
        """The newest seq."""
        return max(0, (os.fstat(self.fd).st_size - _PAGE) // _RECORD.size)

    def records(self, first: int, count: int) -> list[Record]:
        raw = os.pread(self.fd, count * _RECORD.size, _PAGE + (first - 1) * _RECORD.size)
        whole = len(raw) // _RECORD.size * _RECORD.size
        return [Record._make(fields) for fields in _RECORD.iter_unpack(raw[:whole])]

    def record(self, seq: int) -> Record:
        return self.records(seq, 1)[0]

    def after(self, seq: int) -> tuple[int, int, int]:
        return self.record(seq).after if seq else (0, 0, 0)

    def search(self, low: int, high: int, column: int, offset: int) -> int:
        """The first seq in low..high behind which column (0 data, 1 stdout, 2 stderr) is beyond offset, or high + 1."""
        while low <= high:
            middle = (low + high) // 2
            if self.record(middle).after[column] > offset:
                high = middle - 1
            else:
                low = middle + 1
        return low


def _punch(fd: int, begin: int, end: int) -> None:
    begin, end = -(-begin // _PAGE) * _PAGE, end // _PAGE * _PAGE
    if end > begin and _libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, begin, end - begin) != 0:
        raise OSError(ctypes.get_errno(), "cannot punch a hole into an exec's log")


def _paths(base: Path) -> tuple[Path, Path]:
    return base.with_name(base.name + ".data"), base.with_name(base.name + ".index")


def remove(base: Path) -> None:
    """Delete a log's files, if any."""
    for path in _paths(base):
        path.unlink(missing_ok=True)


class LogWriter:
    """The one writer of a log; opens it anew or goes on where a crash left it."""

    def __init__(self, base: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        data, index = _paths(base)
        self._limit = max(limit, 2 * HEAD_KEPT)
        self._data = os.open(data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._index = _Index(index, os.O_RDWR | os.O_CREAT)
        if os.fstat(self._index.fd).st_size < _PAGE:
            os.pwrite(self._index.fd, _HEAD.pack(_MAGIC, 0, 1).ljust(_PAGE, b"\0"), 0)
        self._head, self._tail = self._index.bounds()
        self.last = self._index.last()
        os.ftruncate(self._index.fd, _PAGE + self.last * _RECORD.size)
        self._offset, self.stdout, self.stderr = self._index.after(self.last)
        os.ftruncate(self._data, self._offset)
        self._dropped = self._dropped_bytes()

    def _dropped_bytes(self) -> int:
        if self._tail <= self._head + 1:
            return 0
        dropped = self._index.record(self._tail).data_offset - self._index.after(self._head)[0]
        return dropped + (self._tail - self._head - 1) * _RECORD.size

    def append(self, type_: EventType, payload: bytes | memoryview) -> int:
        """Write one event and return its seq; it is safe from a crash of this process once this returns."""
        size = len(payload)
        done = 0
        while done < size:
            done += os.pwrite(self._data, payload[done:], self._offset + done)
        record = _RECORD.pack(type_, size, time.time_ns() // 1000, self._offset, self.stdout, self.stderr)
        os.pwrite(self._index.fd, record, _PAGE + self.last * _RECORD.size)
        self.last += 1
        self._offset += size
        if type_ == EventType.STDOUT:
            self.stdout += size
        elif type_ == EventType.STDERR:
            self.stderr += size
        if self._head == self.last - 1 and self._offset <= HEAD_KEPT:
            self._head = self.last
            self._write_bounds()
        return self.last

    @property
    def size(self) -> int:
        """Bytes on disk, dropped ones not counted."""
        return self._offset + self.last * _RECORD.size - self._dropped

    @property
    def full(self) -> bool:
        """Whether the log has reached its limit."""
        return self.size > self._limit

    def reclaim(self, *, keep_from: int | None = None) -> None:
        """Drop the oldest events behind the head until a sixteenth of the limit is free, none from keep_from on."""
        if not self.full:
            return
        excess = self.size - self._limit + self._limit // 16
        first = max(self._tail, self._head + 1)
        begin = self._index.record(first).data_offset
        tail = min(self._index.search(first, self.last, 0, begin + excess), self.last)
        if keep_from is not None:
            tail = min(tail, keep_from)
        if tail <= first:
            return
        self._tail = tail
        self._write_bounds()  # first the word, then the deed: a reader must not take holes for bytes
        end = self._index.record(tail).data_offset
        kept_data, _, _ = self._index.after(self._head)
        _punch(self._data, kept_data, end)
        _punch(self._index.fd, _PAGE + self._head * _RECORD.size, _PAGE + (tail - 1) * _RECORD.size)
        self._dropped = end - kept_data + (tail - 1 - self._head) * _RECORD.size

    def _write_bounds(self) -> None:
        os.pwrite(self._index.fd, _HEAD.pack(_MAGIC, self._head, max(self._tail, self._head + 1)), 0)

    def close(self) -> None:
        """Close the files."""
        os.close(self._data)
        os.close(self._index.fd)


class LogReader:
    """Reads a log from any point, while it is written or later."""

    def __init__(self, base: Path) -> None:
        """FileNotFoundError if there is no such log."""
        data, index = _paths(base)
        self._index = _Index(index, os.O_RDONLY)
        try:
            self._data = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._index.fd)
            raise

    def close(self) -> None:
        """Close the files."""
        os.close(self._data)
        os.close(self._index.fd)

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def last(self) -> int:
        """The newest seq; 0 when there is none yet."""
        return self._index.last()

    def totals(self) -> tuple[int, int]:
        """Bytes of stdout and stderr so far."""
        last = self.last
        _, out, err = self._index.after(last)
        return out, err

    def read(self, after: int, *, budget: int = 256 << 10) -> list[Event | Gap]:
        """Events with a seq above after, about budget bytes of them, runs of one stream joined; [] at the end."""
        last = self.last
        if after >= last:
            return []
        head, tail = self._index.bounds()
        if head <= after < tail - 1:
            return [self._gap(max(after, head), tail)]
        records = self._index.records(after + 1, min((head if after < head else last) - after, 512))
        events = self._join(after, records, budget)
        _, tail = self._index.bounds()
        if head <= after < tail - 1:  # dropped while we read
            return [self._gap(max(after, head), tail)]
        return list(events)

    def _gap(self, after: int, tail: int) -> Gap:
        _, out, err = self._index.after(after)
        there = self._index.record(tail)
        return Gap(tail - 1, there.out_offset - out, there.err_offset - err)

    def _join(self, after: int, records: list[Record], budget: int) -> list[Event]:
        events: list[Event] = []
        i = 0
        while i < len(records) and budget > 0:
            first, size, j = records[i], records[i].size, i + 1
            if first.type in (EventType.STDOUT, EventType.STDERR):
                while j < len(records) and records[j].type == first.type and size + records[j].size <= budget:
                    size += records[j].size
                    j += 1
            payload = os.pread(self._data, size, first.data_offset)
            events.append(Event(after + j, records[j - 1].t_us, EventType(first.type), payload))
            budget -= size
            i = j
        return events

    def stream(self, stream: int, start: int, limit: int) -> tuple[int, bytes]:
        """Up to limit bytes of stream (1 stdout, 2 stderr) from offset start: (offset they begin at, bytes).

        The offset is larger than start where the retention has dropped what was there.
        """
        pieces: list[bytes] = []
        begin = position = start
        for seq, record, size in self._runs_of(stream, start, limit):
            offset = record[3 + stream]
            if not pieces:
                begin = position = max(start, offset)
            elif offset != position or limit <= 0:
                break
            skip = position - offset
            piece = os.pread(self._data, min(size - skip, limit), record.data_offset + skip)
            if not self._still_there(seq):  # dropped while we read
                return (begin, b"".join(pieces)) if pieces else self.stream(stream, start, limit)
            pieces.append(piece)
            position += len(piece)
            limit -= len(piece)
        return begin, b"".join(pieces)

    def _runs_of(self, stream: int, start: int, limit: int) -> Iterator[tuple[int, Record, int]]:
        """Records of a stream that lie together, as one: the seq of the first, that record, and the size of all.

        A program that prints byte by byte has a record for each. The kept head and what follows it are never one: of
        those the retention drops the one alone.
        """
        head, _ = self._index.bounds()
        seq, first, size = 0, None, 0
        for at, record in self._records_of(stream, start):
            together = first is not None and record.data_offset == first.data_offset + size and at != head + 1
            if first is not None and together and size < min(_RUN_MAX, first.size + limit):
                size += record.size
                continue
            if first is not None:
                yield seq, first, size
            seq, first, size = at, record, record.size
        if first is not None:
            yield seq, first, size

    def _still_there(self, seq: int) -> bool:
        head, tail = self._index.bounds()
        return seq <= head or seq >= tail

    def _records_of(self, stream: int, start: int) -> Iterator[tuple[int, Record]]:
        last = self.last
        head, tail = self._index.bounds()
        for low, high in ((1, min(head, last)), (max(tail, head + 1), last)):
            if low > high or self._index.after(high)[stream] <= start:
                continue
            seq = self._index.search(low, high, stream, start)
            while seq <= high:
                batch = self._index.records(seq, min(256, high - seq + 1))
                for record in batch:
                    if record.type == stream:
                        yield seq, record
                    seq += 1
                if not batch:
                    return

    def seqs(self, type_: EventType) -> list[int]:
        """The seqs of all events of a type that are there, by the index alone."""
        last = self.last
        head, tail = self._index.bounds()
        seqs = []
        for low, high in ((1, min(head, last)), (max(tail, head + 1), last)):
            for begin in range(low, high + 1, 4096):
                records = self._index.records(begin, min(4096, high - begin + 1))
                seqs += [begin + n for n, record in enumerate(records) if record.type == type_]
        return seqs

    def ending(self) -> bytes | None:
        """The payload of the exit event, if the exec has ended."""
        last = self.last
        if last and (record := self._index.record(last)).type == EventType.EXIT:
            return os.pread(self._data, record.size, record.data_offset)
        return None
