"""Our OpenAPI document, asked with ids that are there and values that nobody expects, by the owner and by a stranger."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from fuzz import FIELDS, faults, send, strangers, told
from odd_requests import ODD_TEXTS
from scene import SECOND_KEY, Scene, end_everything, scene, second_tenant
from server import Server

EACH = 8
"""Odd requests to each operation: some 1,000 in all. More by hand: see fuzz.py."""

OWN = {"put_secret", "create_dict", "create_queue", "run_news", "upload"}
"""What makes a thing of the caller's own, by the name or digest that it gives: not asked for by the stranger."""

OF_THE_OPERATOR = ("/v1/store/", "/v1/gpus/")
"""What no tenant's key opens, whatever it names."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("faults") / "state"
    second_tenant(state)
    running = Server(state, ISOBOX_MAX_SANDBOXES="8").start()
    yield running
    with running.client() as client:
        end_everything(client)
    running.end()
    assert "Traceback" not in running.log()
    assert '"level": "error"' not in running.log()


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> Any:
    return http.get("/openapi.json").json()


@pytest.fixture(scope="module")
def things(server: Server, http: httpx.Client) -> Iterator[Scene]:
    with scene(server, http) as found:
        yield found


def looked_at(http: httpx.Client, ids: dict[str, str]) -> list[Any]:
    """The first tenant's things, as they are shown; what changes by itself is left out."""
    sandbox = f"/v1/sandboxes/{ids['sandbox_id']}"
    paths = (
        sandbox, f"{sandbox}/execs/{ids['exec_id']}", f"{sandbox}/network", f"{sandbox}/contexts", f"{sandbox}/files/list?path=/tmp", "/v1/volumes", "/v1/secrets",
        "/v1/dicts", "/v1/queues", f"/v1/images/{ids['image']}", f"/v1/snapshots/{ids['snapshot_id']}", f"/v1/calls/{ids['call_id']}", "/v1/apps/fuzzed",
    )  # fmt: skip
    answers = [http.get(path) for path in paths]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json() for answer in answers]


@pytest.mark.timeout(120)
def test_to_a_stranger_nothing_is_there(server: Server, http: httpx.Client, document: Any, things: Scene) -> None:
    before, wrong = looked_at(http, things.ids), []
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {SECOND_KEY}"}, timeout=60) as stranger:
        for seed in range(2):
            for operation, request in strangers(document, things, Random(seed)):
                name = operation.id.partition("_v1")[0]
                if name in OWN:
                    continue
                answer = send(stranger, request)
                everybodys = "/python" in request.target
                expected = {404, 422}  # a request that is wrong in itself is told so to anybody
                if request.target.startswith(OF_THE_OPERATOR):
                    expected = {403, 404, 422}
                if answer.status_code >= 500 or (answer.status_code not in expected and not everybodys):
                    wrong.append(told(request, answer, "not as if it were absent"))
    assert not wrong, "\n".join(wrong)
    assert looked_at(http, things.ids) == before


@pytest.mark.timeout(60)
def test_an_idempotency_key_on_an_open_path_is_no_failure(http: httpx.Client) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json"):
        for key in ("k", "k" * 255, "k" * 256):
            for _ in range(2):
                answer = httpx.post(f"{http.base_url}{path}", headers={"Idempotency-Key": key})
                assert answer.status_code == 405
                assert set(answer.json()) == FIELDS


FIRST_FRAMES: list[str | bytes] = [
    b"", b"\x00\xff", "", "{", "[]", "null", "[" * 5000, '{"argv": ["true"], "env": {"\\ud800": ""}}', '{"argv": ["\\ud800"]}', '{"argv": ["a\\u0000"]}',
    '{"argv": ["true"], "timeout_s": 1e999}', '{"argv": ["true"], "timeout_s": NaN}', '{"argv": ["true"], "max_output_bytes": ' + "9" * 5000 + "}",
    '{"argv": ["true"], "user": "nobody-here"}', '{"argv": ["true"], "workdir": "/nope"}', '{"argv": ["true"], "stdin": "\\udfff"}', '{"type": "stdin"}',
]  # fmt: skip
FRAMES: list[str | bytes] = [
    b"\x00", "", "{", "[" * 5000, '{"type": 1}', '{"type": "\\ud800"}', '{"type": "stdin", "data": "\\ud800"}', '{"type": "stdin", "data_b64": "é"}',
    '{"type": "stdin", "data": 1}', '{"type": "signal", "signal": ' + "9" * 4000 + "}", '{"type": "signal", "signal": 1e999}', '{"type": "signal", "signal": "²"}',
    '{"type": "signal", "signal": ["TERM"]}', '{"type": "signal", "signal": NaN}', '{"type": "resize", "rows": 1e999, "cols": 1}', '{"type": "resize", "rows": 5, "cols": 5}',
]  # fmt: skip


@pytest.mark.timeout(120)
def test_odd_frames_are_refused_with_a_problem(server: Server, http: httpx.Client) -> None:
    sandbox = http.post("/v1/sandboxes", json={"timeout_s": 600}).json()["id"]
    base = f"ws{server.url.removeprefix('http')}/v1/sandboxes/{sandbox}"
    headers = {"Authorization": f"Bearer {server.key}"}

    def last_of(path: str, frame: str | bytes | None) -> Any:
        """What the server said last before it closed the connection."""
        last: Any = None
        with connect(base + path, additional_headers=headers, proxy=None, close_timeout=5) as socket:
            if frame is not None:
                socket.send(frame)
            try:
                while True:
                    said = socket.recv(timeout=30)
                    last = json.loads(said)
            except ConnectionClosed as closed:
                assert closed.rcvd is not None
                assert closed.rcvd.code in (1000, 1008), (path, frame, closed)
        return last

    for frame in FIRST_FRAMES:
        last = last_of("/exec", frame)
        assert last["type"] == "problem", (frame, last)
        assert 400 <= last["data"]["status"] < 500, (frame, last)
    exec_id = http.post(f"/v1/sandboxes/{sandbox}/exec", json={"argv": ["cat"], "stdin": True, "wait": False}).json()[
        "id"
    ]
    for frame in FRAMES:
        last = last_of(f"/execs/{exec_id}/stream", frame)
        assert last["type"] == "problem", (frame, last)
        assert 400 <= last["data"]["status"] < 500, (frame, last)
    for path in ("/exec", f"/execs/{exec_id}/stream", "/events", "/files/watch", "/ports/9/tcp", "/ports/9/x"):
        for text in (text for text in ODD_TEXTS if len(text) < 1000):
            if path in ("/exec", "/ports/9/x") and text != b"%00":
                continue  # they take no parameters
            try:
                with connect(
                    f"{base}{path}?from={text.decode()}&path={text.decode()}&user={text.decode()}",
                    additional_headers=headers,
                    proxy=None,
                ) as socket:
                    socket.close()
            except InvalidStatus as error:
                assert error.response.status_code < 500 or error.response.status_code == 502, (
                    path,
                    text,
                    error.response.body,
                )
                assert set(json.loads(error.response.body or b"")) == FIELDS
    http.delete(f"/v1/sandboxes/{sandbox}").raise_for_status()


@pytest.mark.timeout(180)
def test_no_request_makes_the_server_fail(http: httpx.Client, document: Any, things: Scene) -> None:
    wrong = [told(request, answer, why) for request, answer, why in faults(http, document, things, Random(17), EACH)]
    assert not wrong, "\n".join(wrong)
