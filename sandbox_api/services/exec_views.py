"""An exec as a client sees it."""

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any, Final

from common.turns import aside
from isolation.execlog import Event, LogReader
from sandbox_api.models.common import time_of
from sandbox_api.models.execs import Exec, ExecError, Omission, Outcome, Truncation
from sandbox_api.output.follow import clip
from sandbox_api.store.records import ExecRecord

_RECORDS_HERE: Final = 2048
_OUTPUT_HERE: Final = 256 << 10
"""What is read of a log sooner than a thread is woken."""
_RESULTS_MAX: Final = 32 << 20


async def describe_with_output(record: ExecRecord, log: Path, max_output_bytes: int) -> Exec:
    """As a client sees it, with output; what takes long to read is read beside the loop."""
    if is_quick(log, max_output_bytes):
        return describe_exec(record, log, max_output_bytes)
    return await aside(partial(describe_exec, record, log, max_output_bytes))


def is_quick(log: Path, limit: int) -> bool:
    """Whether a log is read in no time: it is small, or nothing of it is read."""
    try:
        with LogReader(log) as reader:
            return reader.last <= _RECORDS_HERE and min(limit, sum(reader.totals())) <= _OUTPUT_HERE
    except FileNotFoundError:
        return True


def describe_exec(record: ExecRecord, log: Path, max_output_bytes: int | None) -> Exec:
    """As a client sees it; without output if max_output_bytes is None."""
    began = record.started_at or record.created_at
    exec_ = Exec(
        id=record.id,
        sandbox_id=record.sandbox_id,
        argv=record.argv,
        state="exited" if record.state == "exited" else "running",
        started_at=time_of(began),  # type: ignore[arg-type]  # not None
        ended_at=time_of(record.ended_at),
        duration_s=None if record.ended_at is None else round(max(0.0, record.ended_at - began), 6),
        cpu_s=record.cpu_s,
        max_rss_mb=record.max_rss_mb,
        outcome=Outcome(**record.outcome) if record.outcome else None,
        error=ExecError(**record.error) if record.error else None,
        forked_from=record.forked_from,
        context=record.context,
    )
    if max_output_bytes is None:
        return exec_
    with contextlib.suppress(FileNotFoundError):
        out, err, totals, omitted = clip(log, max_output_bytes)
        exec_.stdout, exec_.stderr = out.decode(errors="replace"), err.decode(errors="replace")
        exec_.stdout_bytes, exec_.stderr_bytes = totals
        if omitted:
            exec_.truncated = Truncation(
                **{
                    name: Omission(omitted_bytes=end - begin, **{"from": begin}, to=end)
                    for name, (begin, end) in ((("stdout", "stderr")[n - 1], span) for n, span in omitted.items())
                }
            )
        if record.results:
            exec_.results = _results(record, log)
    return exec_


def _results(record: ExecRecord, log: Path) -> list[dict[str, Any]]:
    found, size = [], 0
    with LogReader(log) as reader:
        for seq in record.results:
            for event in reader.read(seq - 1, budget=1):
                if isinstance(event, Event) and (size := size + len(event.payload)) <= _RESULTS_MAX:
                    found.append(json.loads(event.payload))
    return found
