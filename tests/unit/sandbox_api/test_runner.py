"""The runner as a plain program, and what is made of what it says."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.functions import codec
from sandbox_api.functions import protocol
from sandbox_api.functions.protocol import Frame, Lines, RunnerViolation, batches, cost, parse

ROOT = Path(__file__).parents[3]
SOURCE = """
import asyncio, os, sys, time

def add(a, b=1):
    print("adding", a)
    print("no newline", end="")
    return a + b

def numbers(n):
    for i in range(n):
        yield i

async def later(x):
    await asyncio.sleep(0)
    return x

def fail(x):
    raise KeyError(x)

def odd():
    return object()

def large(n):
    os.write(1, b"stray\\n")
    return bytes(n)

def slow(x):
    time.sleep(0.2)
    return x
"""


def run(folder: Path, name: str, inputs: list[tuple[Any, ...]], **said: object) -> list[Frame]:
    code = folder / "code"
    (code / "isobox_inside").mkdir(parents=True)
    (code / "isobox_inside/__init__.py").touch()
    for part in ("codec.py", "marks.py"):
        shutil.copy(ROOT / "isobox/functions" / part, code / "isobox_inside" / part)
    (code / "mine.py").write_text(SOURCE)
    entry = {"module": "mine", "name": name, "python": list(sys.version_info[:2])}
    described = {"entry": entry, "concurrency": 1, "trust": "safe", "questions": 8} | said
    (folder / "function.json").write_text(json.dumps(described))
    lines = [
        protocol.run(f"cal.{n}", {"d": base64.b64encode(codec.encode_arguments(args, {}, None)).decode()})
        for n, args in enumerate(inputs)
    ]
    command = [sys.executable, ROOT / "sandbox_api/functions/runner.py", folder]
    done = subprocess.run(command, input=b"".join(lines), capture_output=True, timeout=30, check=True)
    return list(Lines().feed(done.stdout))


def values(frames: list[Frame], kind: str = "done") -> list[Any]:
    return [codec.decode_result(each.value.data, "safe") for each in frames if each.kind == kind and each.value]


def test_arguments_prints_and_results(tmp_path: Path) -> None:
    frames = run(tmp_path, "add", [(1, 2), (3,)])
    assert frames[0].kind == "ready"
    assert values(frames) == [3, 4]
    printed = "".join(each.text for each in frames if each.kind == "print" and each.input == "cal.0")
    assert printed == "adding 1\nno newline"


def test_generators_and_coroutines(tmp_path: Path) -> None:
    frames = run(tmp_path / "a", "numbers", [(3,)])
    assert values(frames, "yield") == [0, 1, 2]
    assert [each.number for each in frames if each.kind == "yield"] == [0, 1, 2]
    assert values(frames) == [None]
    assert values(run(tmp_path / "b", "later", [("x",)])) == ["x"]


def test_failures_are_told_with_where_they_happened(tmp_path: Path) -> None:
    frames = run(tmp_path / "a", "fail", [("why",)])
    error = next(each for each in frames if each.kind == "error")
    assert (error.name, error.input) == ("builtins.KeyError", "cal.0")
    assert "mine.py" in error.trace
    assert "runner.py" not in error.trace
    odd = run(tmp_path / "b", "odd", [()])[-1]
    assert (odd.kind, 'trust="pickle"' in odd.text) == ("error", True)
    broken = run(tmp_path / "c", "absent", [])[-1]
    assert (broken.kind, broken.name) == ("broken", "AttributeError")


def test_what_is_large_lies_in_a_file(tmp_path: Path) -> None:
    *_, stray, done = run(tmp_path, "large", [(200_000,)])
    assert (stray.kind, stray.text) == ("print", "stray\n")
    assert done.value is not None
    assert (done.value.size, Path(done.value.file).stat().st_size) == (200_001, 200_001)


def test_inputs_side_by_side(tmp_path: Path) -> None:
    frames = run(tmp_path, "slow", [(n,) for n in range(8)], concurrency=8)
    assert sorted(values(frames)) == list(range(8))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no json",
        b"[]",
        b'{"k": "other"}',
        b'{"k": "done", "i": "x"}',
        b'{"k": "done", "i": 5, "v": {"d": ""}}',
        b'{"k": "done", "i": "x", "v": {"d": "%%"}}',
        b'{"k": "done", "i": "x", "v": {"f": "/etc/shadow", "n": -1}}',
        b'{"k": "done", "i": "x", "v": {"f": "/x", "n": 99999999999999}}',
        b'{"k": "yield", "i": "x", "y": 0, "v": {"f": "/x", "n": 0}}',
        b'{"k": "print", "i": "x", "s": "1", "t": "x"}',
        b'{"k": "have", "n": 1, "ids": "all"}',
        b'{"k": "ask", "q": 1, "m": "PATCH", "p": "/x", "v": {"d": ""}}',
        b'{"k": "ask", "q": 1, "m": "GET", "p": "x", "v": {"d": ""}}',
        b'{"k": "ask", "q": -1, "m": "GET", "p": "/x", "v": {"d": ""}}',
        b'{"k": "ask", "q": 1, "m": "GET", "p": "/x", "v": null}',
        b'{"k": "ask", "q": 1, "m": "GET", "p": "/' + b"x" * 3000 + b'", "v": {"d": ""}}',
        b"[" * 100_000,
    ],
)
def test_what_no_runner_says(line: bytes) -> None:
    with pytest.raises(RunnerViolation):
        parse(line)


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_lines_however_they_are_cut(pieces: list[bytes]) -> None:
    said = b'{"k": "ready"}\n{"k": "have", "n": 7, "ids": ["a"]}\n'
    lines, frames = Lines(), []
    at = 0
    for each in [*map(len, pieces), len(said)]:
        frames += lines.feed(said[at : at + each])
        at += each
    assert [each.kind for each in frames] == ["ready", "have"]
    assert lines.pending == 0
    try:
        list(Lines().feed(b"".join(pieces) + b"\n"))
    except RunnerViolation:
        return


@given(st.lists(st.binary(max_size=400).filter(lambda line: b"\n" not in line), max_size=80))
def test_lines_come_in_pieces_that_a_turn_may_deal_with(lines: list[bytes]) -> None:
    pieces = [list(each) for each in batches(lines)]
    assert [line for piece in pieces for line in piece] == lines
    assert all(0 < len(piece) <= 16 for piece in pieces)


def test_a_batch_is_bounded_in_bytes_and_paid_for_by_what_is_in_it() -> None:
    large = [b"x" * 40_000] * 4
    assert [len(each) for each in batches(large)] == [1, 1, 1, 1]
    assert cost([b"[" * 1000]) > cost([b"x" * 1000]) > 1000
