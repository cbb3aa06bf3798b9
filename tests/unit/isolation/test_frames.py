import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolation.channel import frames
from isolation.channel.frames import Frame, FrameReader, FromGuest
from isolation.errors import ChannelViolation

WIRE_H = (Path(frames.__file__).parents[1] / "guest" / "wire.h").read_text()


def raw(type_: int, payload: bytes = b"", *, stream: int = 0, exec_: int = 0, offset: int = 0) -> bytes:
    return frames.HEADER.pack(len(payload), type_, stream, 0, exec_, 0, offset) + payload


def feed(reader: FrameReader, data: bytes) -> list[tuple[Frame, bytes]]:
    found = []
    while data:
        space = reader.space()
        n = min(len(space), len(data))
        space[:n] = data[:n]
        data = data[n:]
        found += [(frame, bytes(frame.payload)) for frame in reader.feed(n)]
    return found


def defined(name: str) -> int:
    match = re.search(rf"#define {name} \(?([^/\n]+?)\)?\s*(?:/\*.*)?\n", WIRE_H)
    assert match, name
    return int(eval(re.sub(r"(\d+)u", r"\1", match.group(1))))


def enumerated(name: str) -> dict[str, int]:
    body = re.search(rf"enum {name} {{(.*?)}};", WIRE_H, re.DOTALL)
    assert body
    text = re.sub(r"/\*.*?\*/", "", body.group(1), flags=re.DOTALL)
    values, following = {}, 0
    for part in filter(None, (part.strip() for part in text.split(","))):
        name_, _, value = (piece.strip() for piece in part.partition("="))
        following = int(value) if value else following
        values[name_] = following
        following += 1
    return values


def test_the_two_sides_have_the_same_table() -> None:
    assert enumerated("from_host") == {each.name: each.value for each in frames.ToGuest}
    assert enumerated("from_init") == {each.name: each.value for each in frames.FromGuest}
    assert {k.removeprefix("STAGE_"): v for k, v in enumerated("stage").items()} == {
        s.name: s.value for s in frames.Stage
    }
    assert {k.removeprefix("START_"): v for k, v in enumerated("start_flags").items()} == {
        str(f.name): f.value for f in frames.StartFlag
    }
    for ours, theirs in {
        "FRAME_FROM_HOST": frames.FRAME_FROM_HOST,
        "FRAME_DATA_MAX": frames.DATA_MAX,
        "STREAM_WINDOW": frames.STREAM_WINDOW,
        "STDIN_WINDOW": frames.STDIN_WINDOW,
        "START_MAX": frames.START_MAX,
        "EXECS_MAX": frames.EXECS_MAX,
        "NONCE_SIZE": frames.NONCE_SIZE,
        "CHANNEL_VERSION": frames.VERSION,
    }.items():
        assert defined(ours) == theirs, ours


frame_lists = st.lists(
    st.tuples(
        st.sampled_from([FromGuest.OUT, FromGuest.STARTED, FromGuest.PONG]), st.binary(max_size=200), st.integers(0, 99)
    ),
    max_size=30,
)


@given(frame_lists, st.lists(st.integers(1, 300), max_size=60))
def test_frames_survive_any_cuts(items: list[tuple[int, bytes, int]], cuts: list[int]) -> None:
    data = b"".join(raw(type_, payload, exec_=exec_) for type_, payload, exec_ in items)
    reader, found, at = FrameReader(), [], 0
    for cut in [*cuts, len(data)]:
        found += feed(reader, data[at : at + cut])
        at += cut
    found += feed(reader, data[at:])
    assert [(frame.type, payload, frame.exec) for frame, payload in found] == items


@given(st.binary(max_size=500), frame_lists)
def test_a_new_link_discards_what_an_older_one_left(left: bytes, items: list[tuple[int, bytes, int]]) -> None:
    nonce = b"n" * 16
    mark = frames.hello_back(nonce)
    reader = FrameReader()
    reader.sync(mark)
    data = left + mark + struct.pack("<I", 1) + b"".join(raw(t, p, exec_=e) for t, p, e in items)
    found = []
    for i in range(0, len(data), 7):
        found += feed(reader, data[i : i + 7])
    assert found[0][0].type == FromGuest.HELLO_BACK
    assert [(frame.type, payload, frame.exec) for frame, payload in found[1:]] == items


@given(st.binary(max_size=4000))
@settings(max_examples=300)
def test_forged_bytes_are_frames_or_a_violation_and_nothing_else(data: bytes) -> None:
    reader = FrameReader()
    try:
        found = feed(reader, data)
    except ChannelViolation:
        return
    assert sum(len(payload) for _, payload in found) <= len(data)


def test_a_size_is_never_trusted() -> None:
    reader = FrameReader()
    with pytest.raises(ChannelViolation):
        feed(reader, frames.HEADER.pack(1 << 30, FromGuest.OUT, 1, 0, 1, 0, 0))
    with pytest.raises(ChannelViolation):
        feed(FrameReader(), frames.HEADER.pack(4096, FromGuest.STARTED, 1, 0, 1, 0, 0))


@given(st.integers(0, 20000))
def test_a_request_of_any_size_travels_in_whole_small_frames(size: int) -> None:
    pieces = frames.encode_start(7, b"x" * max(1, size), flags=0)
    assert all(len(piece) <= frames.FRAME_FROM_HOST for piece in pieces)
    assert b"".join(piece[frames.HEADER.size :] for piece in pieces) == b"x" * max(1, size)
    assert [piece[4] for piece in pieces][-1] == frames.ToGuest.START


def test_nul_is_refused_in_every_string() -> None:
    for argument in ({"user": "a\0"}, {"cwd": "/\0"}, {"argv": [b"\0"]}, {"env": {"A": "\0"}}):
        with pytest.raises(ValueError, match="NUL"):
            frames.encode_request(**({"user": "u", "cwd": "", "argv": [b"a"], "env": {}} | argument))
