import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.values import Event as ClientEvent
from isolation.execlog import Event, EventType, Gap
from sandbox_api.output import wire

outputs = st.builds(
    Event,
    seq=st.integers(1, (1 << 63) - 1),
    t_us=st.integers(0, 1 << 51),
    type=st.sampled_from([EventType.STDOUT, EventType.STDERR]),
    payload=st.binary(max_size=500),
)


@given(outputs)
def test_output_survives_both_protocols(event: Event) -> None:
    for frame in (wire.text_frame(event), wire.binary_frame(event)):
        seen = ClientEvent.parse(frame)
        assert (seen.seq, seen.type, seen.data) == (event.seq, event.type.name.lower(), event.payload)


@given(outputs)
def test_a_server_sent_event_is_one_block(event: Event) -> None:
    text = wire.sse_frame(event).decode()
    assert text.count("\n\n") == 1
    assert text.endswith("\n\n")
    assert json.loads(text.split("data: ", 1)[1])["seq"] == event.seq


def test_a_gap_says_how_much_is_missing() -> None:
    assert wire.document(Gap(9, 100, 5)) == {
        "seq": 9,
        "t": None,
        "type": "gap",
        "data": {"omitted": {"stdout": 100, "stderr": 5}},
    }


@given(st.text(max_size=200))
def test_any_text_from_a_client_is_a_frame_or_a_clear_error(text: str) -> None:
    try:
        frame = wire.client_frame(text)
    except wire.ClientFrameError as error:
        assert str(error)
    else:
        assert frame["type"] in ("stdin", "stdin_eof", "signal", "resize")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)
)


@given(
    st.sampled_from(["stdin", "resize", "signal", "stdin_eof", "x"]),
    st.dictionaries(st.sampled_from(["data", "data_b64", "rows", "cols", "signal"]), json_values),
)
def test_any_object_from_a_client_too(kind: str, fields: dict[str, object]) -> None:
    try:
        frame = wire.client_frame(json.dumps({"type": kind, **fields}))
    except wire.ClientFrameError:
        return
    if frame["type"] == "stdin":
        assert isinstance(frame["data"], bytes)


@given(st.binary(max_size=100))
def test_stdin_in_base64(data: bytes) -> None:
    frame = wire.client_frame(json.dumps({"type": "stdin", "data_b64": base64.b64encode(data).decode()}))
    assert frame["data"] == data
    with pytest.raises(wire.ClientFrameError):
        wire.client_frame(json.dumps({"type": "stdin", "data_b64": "a" + base64.b64encode(data).decode() + "*"}))
