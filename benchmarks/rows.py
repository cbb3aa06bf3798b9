"""Rows of results: their figures, the table, the file."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. ratio is median / peer_median; target says what was asked for, `met` whether it holds."""

    name: str
    unit: str
    n: int
    median: float
    p99: float
    peer: str | None = None
    peer_median: float | None = None
    ratio: float | None = None
    target: str | None = None
    met: bool | None = None


def timed(deed: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    deed()
    return (time.perf_counter() - began) * 1000


def p99(values: Sequence[float]) -> float:
    """The 99th percentile: with fewer than a hundred values the largest."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def beside(name: str, ours: Sequence[float], peer: str, theirs: Sequence[float], *, most: float | None = None) -> Row:
    """Milliseconds beside a peer's; most is the ratio asked for."""
    median, other = statistics.median(ours), statistics.median(theirs)
    ratio = median / other
    target = None if most is None else f"<= {most:g} x {peer}"
    met = None if most is None else ratio <= most
    return Row(
        name, "ms", len(ours), _round(median), _round(p99(ours)), peer, _round(other), _round(ratio), target, met
    )


def over(name: str, ours: Sequence[float], peer: str, theirs: Sequence[float], *, least: float) -> Row:
    """MB/s beside a peer's; least is the ratio asked for."""
    median, other = statistics.median(ours), statistics.median(theirs)
    ratio = median / other
    target = f">= {least:g} x {peer}"
    return Row(
        name,
        "MB/s",
        len(ours),
        _round(median),
        _round(p99(ours)),
        peer,
        _round(other),
        _round(ratio),
        target,
        ratio >= least,
    )


def alone(
    name: str, unit: str, values: Sequence[float], *, least: float | None = None, most: float | None = None
) -> Row:
    """A figure of our own, against a bound where there is one."""
    median = statistics.median(values)
    target = f">= {least:g}" if least is not None else f"<= {most:g}" if most is not None else None
    met = median >= least if least is not None else median <= most if most is not None else None
    return Row(name, unit, len(values), _round(median), _round(p99(values)), target=target, met=met)


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def table(rows: Sequence[Row]) -> str:
    """For people."""
    head = ("what", "n", "median", "p99", "unit", "peer", "its median", "ratio", "target", "")
    lines = [head]
    for row in rows:
        verdict = "" if row.met is None else "met" if row.met else "MISSED"
        cells = (
            row.name,
            row.n,
            row.median,
            row.p99,
            row.unit,
            row.peer,
            row.peer_median,
            row.ratio,
            row.target,
            verdict,
        )
        lines.append(tuple("" if cell is None else str(cell) for cell in cells))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def save(rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Write benchmarks/results.json."""
    RESULTS.write_text(json.dumps({"rows": [asdict(row) for row in rows], "notes": list(notes)}, indent=1) + "\n")
