import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpolicy.gateway.redact import Needles
from netpolicy.gateway.websocket import FrameRefused, Frames

SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz"
NEEDLES = Needles([SECRET])


def frame(opcode: int, payload: bytes, *, final: bool = True, first: int = 0, mask: int = 0) -> bytes:
    size = len(payload)
    length = bytes([mask | size]) if size < 126 else struct.pack(">BH", mask | 126, size)
    return bytes([(0x80 if final else 0) | first | opcode]) + length + payload


def messages(data: bytes) -> list[tuple[int, bytes]]:
    """The messages of frames: (opcode, payload), as a client puts them together."""
    found: list[tuple[int, bytes]] = []
    whole, opcode = b"", 0
    while data:
        size, offset = data[1] & 127, 2
        if size == 126:
            size, offset = int.from_bytes(data[2:4]), 4
        kind, payload = data[0] & 15, data[offset : offset + size]
        assert len(payload) == size
        if kind >= 8:
            found.append((kind, payload))
        else:
            assert bool(kind) != bool(opcode), "a continuation continues"
            opcode, whole = kind or opcode, whole + payload
            if data[0] & 0x80:
                found.append((opcode, whole))
                whole, opcode = b"", 0
        data = data[offset + size :]
    assert not whole
    return found


@st.composite
def conversation(draw: Any) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Messages in frames of any size, with others between them, and what they are."""
    data, expected = b"", []
    for _ in range(draw(st.integers(1, 4))):
        parts = draw(st.lists(st.sampled_from([b"hello ", SECRET.encode(), b"sk-proj-", b"x" * 200]), max_size=3))
        payload, opcode = b"".join(parts), draw(st.sampled_from([1, 2]))
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
        between: list[tuple[int, bytes]] = []
        for n, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(payload)], strict=True)):
            data += frame(0 if n else opcode, payload[begin:end], final=n == len(cuts))
            if n < len(cuts) and draw(st.booleans()):
                data += frame(9, SECRET.encode())
                between.append((9, b"*" * len(SECRET)))
        expected += [*between, (opcode, payload.replace(SECRET.encode(), b"*" * len(SECRET)))]
    return data, expected


@settings(deadline=None)
@given(conversation(), st.lists(st.integers(0, 2000), max_size=6))
def test_messages_arrive_without_their_secrets(talk: tuple[bytes, list[tuple[int, bytes]]], cuts: list[int]) -> None:
    (data, expected), frames, passed, begin = talk, Frames(NEEDLES), b"", 0
    for end in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        passed += frames.feed(data[begin:end])
        begin = end
    assert messages(passed) == expected
    assert bool(frames.found) == any(b"***" in payload for _, payload in expected)


def test_what_holds_no_secret_is_not_held_back() -> None:
    frames = Frames(NEEDLES)
    assert messages(frames.feed(frame(1, b"hello"))) == [(1, b"hello")]
    assert frames.feed(frame(1, b"token.", final=False)) == frame(1, b"token.", final=False)


@pytest.mark.parametrize(
    "data",
    [
        frame(1, b"squeezed", first=0x40),
        frame(1, b"\0\0\0\0masked", mask=0x80),
        frame(0, b"continues nothing"),
        frame(1, b"a", final=False) + frame(1, b"b"),
        frame(3, b"?"),
        frame(11, b"?"),
        frame(9, b"x" * 126),
        frame(9, b"x", final=False),
    ],
)
def test_what_is_not_a_plain_frame_is_refused(data: bytes) -> None:
    with pytest.raises(FrameRefused):
        Frames(NEEDLES).feed(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    try:
        passed = Frames(NEEDLES).feed(data)
    except FrameRefused:
        return
    assert len(passed) <= len(data) + 8
