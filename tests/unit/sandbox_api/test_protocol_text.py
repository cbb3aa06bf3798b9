import json

import pytest

from isolation.errors import HelperBroken
from isolation.execlog import Event, EventType
from isolation.files import FileFailed, _raise_error
from sandbox_api.contexts.protocol import results
from sandbox_api.functions.protocol import RunnerViolation, parse
from sandbox_api.output import wire
from sandbox_api.problems import Problem, from_error
from sandbox_api.services.cursor import decode_cursor, encode_cursor


def test_a_runner_s_words_are_text() -> None:
    frame = parse(json.dumps({"k": "error", "i": "cal.1", "t": "\ud800", "m": "a\udfffb", "b": "\udc80"}).encode())
    assert (frame.name, frame.text, frame.trace) == ("\ufffd", "a\ufffdb", "\ufffd")


@pytest.mark.parametrize(
    "line",
    [
        {"k": "done", "i": "\ud800", "v": {"d": ""}}, {"k": "print", "i": "é", "s": 1, "t": "x"}, {"k": "have", "n": 1, "ids": ["\ud800"]},
        *({"k": "done", "i": "cal.1", "v": {"f": path, "n": 1}} for path in ("relative", "/a\0b", "/\ud800", "/", "", "/" + "a" * 5000)),
    ],
)  # fmt: skip
def test_an_id_or_a_path_that_no_runner_of_ours_gives_is_a_violation(line: dict[str, object]) -> None:
    with pytest.raises(RunnerViolation):
        parse(json.dumps(line).encode())


def test_results_are_cleaned_where_they_come_in_and_where_they_go_out() -> None:
    hostile = json.loads('{"application/json": [1e999, "\\ud800"]}')
    assert results(hostile) == {"application/json": [None, "\ufffd"]}
    event = Event(
        seq=1, t_us=0, type=EventType.RESULT, payload=json.dumps(hostile).encode()
    )  # as an older server wrote it
    for frame in (wire.text_frame(event), wire.sse_frame(event).decode()):
        frame.encode()
        assert "Infinity" not in frame


@pytest.mark.parametrize("number", [b"1" * 20, b"-5", b"9999", b"0", b"x", b"1" * 5000])
def test_an_errno_nobody_has_is_told_as_a_replaced_program(number: bytes) -> None:
    with pytest.raises(HelperBroken) as caught:
        _raise_error(b"error\0" + number + b"\0/\xff\0")
    problem = from_error(caught.value)
    assert (problem.status, problem.code) == (502, "helper_broken")
    json.dumps(problem.document(""), ensure_ascii=False).encode()


def test_a_path_that_is_no_text_is_told_all_the_same() -> None:
    with pytest.raises(FileFailed) as caught:
        _raise_error(b"error\0002\0/\xff\0")
    json.dumps(from_error(caught.value).document(""), ensure_ascii=False).encode()


def test_only_cursors_of_ours_are_read() -> None:
    assert decode_cursor(encode_cursor(1.5, "sbxa")) == (1.5, "sbxa")
    for cursor in ("WzFlOTk5LCJhIl0", "W05hTiwiYSJd", "WzEsIlx1ZDgwMCJd", "WyJhIiwiYiJd", "e30", "!!!", "", "²"):
        with pytest.raises(Problem):
            decode_cursor(cursor)
