import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.turns import turn_budget
from isolation.execlog import Event, EventType
from sandbox_api.contexts.protocol import ELEMENTS_MAX, MARK, TOO_MUCH, Message, Splitter, results, unfinished
from sandbox_api.services.live_context import LiveContext, Run
from sandbox_api.services.openlog import OpenLog
from sandbox_api.store.records import ContextRecord, ExecRecord

TOKEN = "0123456789abcdef"
RUNNER = Path(__file__).parents[3] / "sandbox_api" / "contexts" / "python_runner.py"


def frame(kind: str, payload: bytes, part: int = 0, more: str = ".") -> bytes:
    return MARK + TOKEN.encode() + f"{kind}{part:04x}{more}{len(payload):04x}".encode() + payload


def message(kind: str, data: object, size: int = 4000) -> bytes:
    raw = json.dumps(data).encode()
    parts = [raw[i : i + size] for i in range(0, len(raw), size)]
    return b"".join(frame(kind, p, n, "+" if n < len(parts) - 1 else ".") for n, p in enumerate(parts))


def split(data: bytes, cuts: list[int]) -> tuple[bytes, list[Message]]:
    splitter, out, messages = Splitter(TOKEN), b"", []
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for begin, end in pairwise(bounds):
        for piece in splitter.feed(data[begin:end]):
            if isinstance(piece, bytes):
                assert piece
                out += piece
            else:
                messages.append(piece)
    return out, messages


output = st.binary(max_size=60) | st.sampled_from(
    [MARK, MARK[:5], MARK + b"0123456789abcde", b"\x1e", b"\x1e\x1eisobox"]
)
said = st.dictionaries(st.text(max_size=5), st.text(max_size=40), max_size=3)


@given(st.lists(output | said, max_size=8), st.lists(st.integers(0, 5000), max_size=12), st.integers(1, 50))
def test_output_and_messages_come_apart_wherever_they_are_cut(
    parts: list[bytes | dict[str, str]], cuts: list[int], size: int
) -> None:
    data = b"".join(each if isinstance(each, bytes) else message("R", each, size) for each in parts)
    data += frame("D", b"1")  # so that nothing waits for more
    out, messages = split(data, cuts)
    assert out == b"".join(each for each in parts if isinstance(each, bytes))
    assert messages == [Message("R", each) for each in parts if isinstance(each, dict)] + [Message("D", 1)]


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=5))
def test_whatever_comes_is_output_or_waits(noise: bytes, cuts: list[int]) -> None:
    out, messages = split(noise, cuts)
    assert messages == []
    assert noise.startswith(out)
    assert len(noise) - len(out) <= len(MARK) + 30 or MARK + TOKEN.encode() in noise


@given(st.lists(output | said, min_size=1, max_size=6), st.integers(0, 2000))
def test_a_copy_goes_on_in_the_middle_of_a_frame(parts: list[bytes | dict[str, str]], cut: int) -> None:
    data = b"".join(each if isinstance(each, bytes) else message("R", each) for each in parts) + frame("D", b"1")
    cut %= len(data) + 1
    rest = unfinished(data[:cut][-8192:], TOKEN)
    assert data[:cut].endswith(rest)
    first, before = split(data[: cut - len(rest)], [])
    second, after = split(rest + data[cut:], [])
    whole, messages = split(data, [])
    assert whole.startswith(first), "what may begin a frame still waits in the original"
    assert whole.endswith(second)
    assert len(first) + len(second) >= len(whole) - 30
    assert before + after == messages


@pytest.mark.parametrize(
    "forged",
    [
        frame("R", b"{", 0, "+") + frame("R", b"x", 2, "."),  # a part is missing
        frame("R", b"not json"),
        frame("R", b"[" * 4000),
        frame("X", b"", 5, "."),
        frame("R", b'"a', 0, "+") + frame("D", b'b"', 1, "."),  # of another kind
    ],
)
def test_a_message_that_is_none_is_left_out(forged: bytes) -> None:
    out, messages = split(forged + b"after" + frame("D", b"1"), [])
    assert out == b"after"
    assert messages == [Message("D", 1)]


@pytest.mark.parametrize(
    "data", [None, [], {}, {"plain": 1}, {"text/" + "x" * 200: 1}, {1: 2}, {f"a/{n}": n for n in range(40)}]
)
def test_results_that_are_none(data: object) -> None:
    assert results(data) is None
    assert results({"text/plain": "2"}) == {"text/plain": "2"}


class Runner:
    """The runner as a plain program, without a sandbox."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER.read_text(), TOKEN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.count = 0

    def run(self, code: str, seed: str | None = None) -> tuple[str, str, list[object], bool]:
        self.count += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"run": self.count, "code": code, "seed": seed}).encode() + b"\n")
        self.process.stdin.flush()
        (out, found), (err, _) = self._until_done(self.process.stdout), self._until_done(self.process.stderr)
        shown = [each.data for each in found if each.kind == "R"]
        return out, err, shown, found[-1].data["ok"]

    def _until_done(self, stream: object) -> tuple[str, list[Message]]:
        splitter, out, found = Splitter(TOKEN), b"", []
        while True:
            for piece in splitter.feed(stream.read1(100)):  # type: ignore[attr-defined]
                if isinstance(piece, bytes):
                    out += piece
                elif piece.kind != "S":
                    found.append(piece)
                    if piece.kind == "D":
                        return out.decode(), found


@pytest.fixture
def runner() -> Iterator[Runner]:
    found = Runner()
    with found.process:
        yield found
        assert found.process.stdin is not None
        found.process.stdin.close()


def test_state_results_and_errors(runner: Runner) -> None:
    assert runner.run("x = 6\nprint('made')") == ("made\n", "", [], True)
    assert runner.run("x * 7")[2] == [{"text/plain": "42"}]
    assert runner.run("_")[2] == [{"text/plain": "42"}]
    assert runner.run("{'a': [1]}")[2] == [{"text/plain": "{'a': [1]}", "application/json": {"a": [1]}}]
    assert runner.run("import asyncio\nawait asyncio.sleep(0, 'slept')")[2] == [{"text/plain": "'slept'"}]
    out, err, shown, ok = runner.run("def f():\n    raise ValueError('no')\nf()")
    assert (out, shown, ok) == ("", [], False)
    assert err.splitlines() == [
        "Traceback (most recent call last):",
        '  File "<cell 6>", line 3, in <module>',
        "    f()",
        '  File "<cell 6>", line 2, in f',
        "    raise ValueError('no')",
        "ValueError: no",
    ]
    assert "SyntaxError" in runner.run("1 +")[1]
    assert "nobody to ask" in runner.run("input('?')")[1]
    assert runner.run("import sys; sys.exit(0)")[3]
    assert runner.run("import subprocess; r = subprocess.run(['cat']); print('not stuck')")[0] == "not stuck\n"
    assert runner.run("class B:\n    def __repr__(self): raise TypeError('broken')\nB()")[3] is False
    large = runner.run("'x' * 100_000")[2]
    assert large == [{"text/plain": repr("x" * 100_000)}]
    assert runner.run("__name__")[2] == [{"text/plain": "'__main__'"}]


def test_what_others_represent(runner: Runner) -> None:
    shown = runner.run(
        "class H:\n    def _repr_html_(self): return '<b>x</b>'\n    def __repr__(self): return 'H'\nH()"
    )[2]
    assert shown == [{"text/html": "<b>x</b>", "text/plain": "H"}]
    shown = runner.run(
        "class P:\n    def _repr_png_(self): return b'\\x89PNG'\n    def __repr__(self): return 'P'\nP()"
    )[2]
    assert shown == [{"image/png": "iVBORw==", "text/plain": "P"}]


def test_a_seed_makes_the_numbers_its_own(runner: Runner) -> None:
    code = "import random; random.random()"
    first = runner.run(code, seed="00" * 16)[2]
    assert runner.run(code, seed="00" * 16)[2] == first
    assert runner.run(code, seed="01" * 16)[2] != first


def test_a_message_of_too_many_elements_is_not_read() -> None:
    out, messages = split(message("R", [[] for _ in range(ELEMENTS_MAX)]), [])
    assert out == b""
    assert [each.kind for each in messages] == [TOO_MUCH]


def test_many_small_frames_cost_as_much_as_they_are() -> None:
    """Each was cut off the front of all the rest once: 3,000 frames moved 200 MB."""
    data = message("R", 1) * 3000
    splitter = Splitter(TOKEN)
    pieces = list(splitter.feed(data))
    assert len(pieces) == 3000
    assert not splitter._pending


def live(tmp_path: Path) -> tuple[LiveContext, Run]:
    record = ContextRecord("ctx", "sbx", "python", "exe", TOKEN, 0.0, default=False)
    common = {
        "sandbox_id": "sbx",
        "number": 1,
        "argv": ["python"],
        "title": None,
        "state": "running",
        "created_at": 0.0,
    }
    exec_, made = ExecRecord(id="exe", **common), ExecRecord(id="run", run=1, **common)  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    run = Run(made, OpenLog(tmp_path / "run", limit=1 << 20), loop.create_future())
    context = LiveContext(record, exec_, (Splitter(TOKEN), Splitter(TOKEN)), loop.create_future())
    context.current = run
    return context, run


def test_a_run_ends_behind_the_event_that_tells_of_it_and_the_next_begins_there(tmp_path: Path) -> None:
    async def run() -> None:
        context, running = live(tmp_path)
        done = message("D", {"run": 1, "ok": True})
        await context.take(Event(1, 0, EventType.STDERR, done))
        began = []

        async def next_run() -> None:
            async with context.reading:
                began.append(context.seq)

        # So much that it takes several turns: whoever comes meanwhile waits for the whole event.
        noise = (b"x" + message("R", {"text/plain": "1"})) * 500
        taking = asyncio.get_running_loop().create_task(context.take(Event(2, 0, EventType.STDOUT, done + noise)))
        await asyncio.sleep(0)
        waiting = asyncio.get_running_loop().create_task(next_run())
        await asyncio.sleep(0)
        assert not taking.done()
        assert not running.done.done(), "it ends behind the event"
        assert not began
        await taking
        await waiting
        assert await running.done
        assert began == [2]
        assert running.log.totals[0] == 500, "all of the event is the run's"
        assert turn_budget().largest <= 2 * turn_budget().limit

    asyncio.run(run())
