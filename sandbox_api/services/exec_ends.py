"""How execs end: the record, and the log's last events."""

import contextlib
import json
from pathlib import Path

from isolation.execlog import EventType, LogReader
from sandbox_api.diagnose import limits
from sandbox_api.diagnose.diagnose import STDERR_READ, diagnose
from sandbox_api.host.interface import ExecEnd
from sandbox_api.store.records import ExecRecord


def conclude(record: ExecRecord, log: Path, end: ExecEnd, reason: str | None, detail: str) -> None:
    """Write down how it ended; reason and detail are its sandbox's, if that has ended too."""
    outcome = limits.outcome(end, reason)
    stderr = b"" if end.kind == "failed" else _tail(record, log)
    error = diagnose(outcome, end, record.argv, stderr=stderr, timeout_s=record.timeout_s, detail=detail)
    record.state = "exited"
    record.ended_at = end.ended_at
    record.outcome = outcome.model_dump()
    record.error = error.model_dump() if error else None
    record.cpu_s = round(end.cpu_s, 6)
    record.max_rss_mb = round(end.max_rss_kib / 1024, 1)


def _tail(record: ExecRecord, log: Path) -> bytes:
    stream = 1 if record.pty else 2
    with contextlib.suppress(FileNotFoundError), LogReader(log) as reader:
        total = reader.totals()[stream - 1]
        return reader.stream(stream, max(0, total - STDERR_READ), STDERR_READ)[1]
    return b""


def last_events(record: ExecRecord) -> list[tuple[EventType, bytes]]:
    """What the log of one that has ended closes with."""
    events = []
    if record.error is not None:
        events.append((EventType.ERROR, json.dumps(record.error).encode()))
    said = {
        "outcome": record.outcome,
        "error": record.error,
        "ended_at_s": record.ended_at,
        "duration_s": None
        if record.ended_at is None or record.started_at is None
        else round(record.ended_at - record.started_at, 6),
        "cpu_s": record.cpu_s,
        "max_rss_mb": record.max_rss_mb,
    }
    events.append((EventType.EXIT, json.dumps(said).encode()))
    return events
