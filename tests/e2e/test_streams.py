import json
import threading
import time

import httpx
import pytest
from server import Server
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from isobox import Sandbox


def open_(server: Server, path: str, protocol: str = "isobox.v1.json", key: str | None = None) -> ClientConnection:
    headers = {"Authorization": f"Bearer {key or server.key}"}
    return connect(
        "ws" + server.url[4:] + path,
        additional_headers=headers,
        subprotocols=[protocol],
        max_size=None,
        proxy=None,  # type: ignore[list-item]
    )


def events_of(socket: ClientConnection) -> list[dict[str, object]]:
    found = []
    try:
        while True:
            found.append(json.loads(socket.recv(timeout=30)))
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        assert closed.rcvd.code == 1000
    return found


def test_run_and_follow_over_one_socket(server: Server, path: str) -> None:
    with open_(server, f"{path}/exec") as socket:
        socket.send(json.dumps({"shell": "echo out; echo err >&2; read line; echo got $line; exit 5"}))
        socket.send(json.dumps({"type": "stdin", "data": "hello\n"}))
        events = events_of(socket)
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})
    assert "".join(str(e["data"]) for e in events if e["type"] == "stdout") == "out\ngot hello\n"
    assert "".join(str(e["data"]) for e in events if e["type"] == "stderr") == "err\n"
    assert events[0]["type"] == "started"
    assert events[-1]["type"] == "exit"
    assert events[-1]["data"]["outcome"]["exit_code"] == 5  # type: ignore[index]


def test_bytes_that_are_no_text(server: Server, sandbox: Sandbox, path: str) -> None:
    process = sandbox.start("printf", r"\377\376x")
    process.wait()
    with open_(server, f"{path}/execs/{process.id}/stream") as socket:
        events = events_of(socket)
    assert [e["data_b64"] for e in events if e["type"] == "stdout"] == ["//54"]
    with open_(server, f"{path}/execs/{process.id}/stream", "isobox.v1.bin") as socket:
        frames = []
        with pytest.raises(ConnectionClosed):
            while True:
                frames.append(socket.recv(timeout=30))
    binary = [frame for frame in frames if isinstance(frame, bytes)]
    assert [frame[9:] for frame in binary] == [b"\xff\xfex"]
    assert binary[0][0] == 1


def test_any_number_of_followers_from_any_point(server: Server, sandbox: Sandbox, path: str) -> None:
    process = sandbox.start("/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.05; done")
    found: list[list[dict[str, object]]] = [[], [], []]

    def follow(i: int) -> None:
        time.sleep(0.1 * i)
        with open_(server, f"{path}/execs/{process.id}/stream") as socket:
            found[i] = events_of(socket)

    threads = [threading.Thread(target=follow, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = ["".join(str(e["data"]) for e in events if e["type"] == "stdout") for events in found]
    assert texts == ["".join(f"line {i}\n" for i in range(1, 9))] * 3
    middle = int(str(found[0][4]["seq"]))
    with open_(server, f"{path}/execs/{process.id}/stream?from={middle}") as socket:
        assert "".join(str(e["data"]) for e in events_of(socket) if e["type"] == "stdout") == "".join(
            str(e["data"]) for e in found[0][5:] if e["type"] == "stdout"
        )


def test_server_sent_events_resume(http: httpx.Client, sandbox: Sandbox, path: str) -> None:
    process = sandbox.start("seq", "5")
    process.wait()
    text = http.get(f"{path}/execs/{process.id}/stream").text
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    assert [block["event"] for block in blocks][-1] == "exit"
    assert "".join(json.loads(b["data"])["data"] for b in blocks if b["event"] == "stdout") == "1\n2\n3\n4\n5\n"
    rest = http.get(f"{path}/execs/{process.id}/stream", headers={"Last-Event-ID": blocks[0]["id"]}).text
    assert rest == text.split("\n\n", 1)[1]


def test_resize_and_signal_over_the_socket(server: Server, path: str) -> None:
    with open_(server, f"{path}/exec") as socket:
        script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done"
        socket.send(json.dumps({"argv": ["bash", "-c", script], "pty": {"rows": 10, "cols": 20}}))
        seen = ""
        while "ready" not in seen:
            event = json.loads(socket.recv(timeout=30))
            seen += str(event["data"]) if event["type"] == "stdout" else ""
        socket.send(json.dumps({"type": "resize", "rows": 44, "cols": 55}))
        events = events_of(socket)
    assert "44 55" in "".join(str(e["data"]) for e in events if e["type"] == "stdout")


@pytest.mark.parametrize(
    "frame",
    ["not json", "[]", '{"type": "dance"}', '{"type": "stdin"}', '{"type": "stdin", "data_b64": "*"}',
     '{"type": "resize", "rows": 0, "cols": 1}', '{"type": "resize", "rows": 5, "cols": 5}',
     '{"type": "signal", "signal": "SIGNOPE"}', "[" * 100000, b"binary"],
)  # fmt: skip
def test_frames_out_of_protocol_are_answered_and_change_nothing(
    server: Server, sandbox: Sandbox, path: str, frame: str | bytes
) -> None:
    process = sandbox.start("sleep", "30")
    with open_(server, f"{path}/execs/{process.id}/stream") as socket:
        assert json.loads(socket.recv(timeout=10))["type"] == "started"
        socket.send(frame)
        answer = json.loads(socket.recv(timeout=10))
        assert (answer["type"], answer["data"]["code"]) == ("problem", "frame_invalid")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
    assert process.poll().outcome is None
    process.kill()


def test_a_bad_first_frame_starts_nothing(server: Server, path: str) -> None:
    for frame in ("{}", "nope", '{"argv": []}', '{"argv": ["a\\u0000"]}', '{"argv": ["true"], "timeout_s": -1}'):
        with open_(server, f"{path}/exec") as socket:
            socket.send(frame)
            answer = json.loads(socket.recv(timeout=10))
            assert answer["type"] == "problem"
            assert answer["data"]["detail"]


def test_websockets_need_the_key_and_the_id(server: Server, path: str) -> None:
    for where, key, status in ((f"{path}/events", "wrong", 401), ("/v1/sandboxes/sbx1/events", server.key, 404)):
        with pytest.raises(InvalidStatus) as refused, open_(server, where, key=key):
            pass
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body or b"")["hint"]
    subprotocols = ["isobox.v1.json", f"isobox.key.{server.key}"]
    with connect("ws" + server.url[4:] + f"{path}/events", subprotocols=subprotocols, proxy=None) as socket:  # type: ignore[arg-type]
        assert socket.subprotocol == "isobox.v1.json"
        assert json.loads(socket.recv(timeout=10))["type"] == "state"


def test_a_flood_past_the_bound_shows_as_one_gap(own_server: Server) -> None:
    own_server.environment["ISOBOX_LOG_LIMIT_MB"] = "4"
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox:
        result = sandbox.exec("dd", "if=/dev/zero", "bs=1M", "count=64")
        events = list(sandbox.process(result.id))
        gaps = [event for event in events if event.type == "gap"]
        kept = sum(len(event.data) for event in events if event.type == "stdout")
        assert len(gaps) == 1
        assert kept + gaps[0].info["omitted"]["stdout"] == 64 << 20
        assert events[-1].type == "exit"


def test_block_waits_for_its_follower_and_loses_nothing(own_server: Server) -> None:
    own_server.environment["ISOBOX_LOG_LIMIT_MB"] = "4"
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox:
        process = sandbox.start("dd", "if=/dev/zero", "bs=1M", "count=48", overflow="block")
        time.sleep(1.0)
        assert process.poll().outcome is None  # it stands still: nobody follows
        events = list(process)
        assert sum(len(event.data) for event in events if event.type == "stdout") == 48 << 20
        assert not [event for event in events if event.type == "gap"]
