"""Whatever comes in wrong is answered with a problem document and changes nothing."""

import json
import socket

import httpx
import pytest
from server import Server, running

from isobox import Sandbox

ABSENT = "sbx" + "a" * 26


def problem(answer: httpx.Response, *statuses: int) -> dict[str, object]:
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, object] = answer.json()
    assert set(document) == {"type", "title", "status", "code", "detail", "hint", "retryable", "request_id"}
    assert document["request_id"] == answer.headers["x-request-id"]
    return document


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400), (b"", 422), (b"[]", 422), (b"nonsense", 400), (b'{"a": ' * 100 + b"1" + b"}" * 100, 400),
        (b"[" * 500_000, 400), (b'{"image": "python", "surprise": 1}', 422), (b'{"timeout_s": -1}', 422),
        (b'{"timeout_s": 1e400}', 422), (b'{"timeout_s": NaN}', 422), (b'{"image": "../../etc"}', 422), (b'{"image": "nope"}', 404),
        (b'{"env": {"A": "x\\u0000y"}}', 422), (b'{"env": {"A=B": "x"}}', 422), (b'{"env": {"": "x"}}', 422),
        (b'{"resources": {"memory_mb": 1}}', 422), (b'{"resources": {"cpu": 0}}', 422), (b'{"user": "a b"}', 422),
        (b'{"workdir": "relative"}', 422), (b'{"command": []}', 422), (b'{"name": "\\ud800"}', 422), (b"\xff\xfe", 400),
        (b'{"labels": {"a b": "c"}}', 422),
    ],
)  # fmt: skip
def test_create(http: httpx.Client, body: bytes, status: int) -> None:
    before = running(http)
    answer = http.post("/v1/sandboxes", content=body, headers={"Content-Type": "application/json"})
    problem(answer, status)
    assert running(http) <= before


@pytest.mark.parametrize(
    "body",
    [
        {}, {"argv": []}, {"argv": [""]}, {"argv": ["a"], "shell": "b"}, {"argv": "ls"}, {"argv": ["a\0"]}, {"shell": "a\0"},
        {"argv": ["a"], "timeout_s": 0}, {"argv": ["a"], "timeout_s": -5}, {"argv": ["a"], "user": "\0"},
        {"argv": ["a"], "env": {"A": 5}}, {"argv": ["a"], "pty": {"rows": 0}}, {"argv": ["a"], "exec_id": "mine"},
        {"argv": ["a"], "overflow": "explode"}, {"argv": ["a"], "max_output_bytes": -1}, {"argv": ["a"], "workdir": "/\0"},
        {"argv": ["true"], "user": "nobody-here"}, {"argv": ["true"], "workdir": "/nope"}, {"argv": ["x"] * 5000},
    ],
)  # fmt: skip
def test_exec(http: httpx.Client, path: str, body: dict[str, object]) -> None:
    before = http.get(f"{path}/execs").json()
    problem(http.post(f"{path}/exec", json=body), 422)
    assert http.get(f"{path}/execs").json() == before


def test_unknown_things(http: httpx.Client, path: str) -> None:
    for id_ in (ABSENT, "x", "..", "sbx", "sbx" + "A" * 26, "%00"):
        problem(http.get(f"/v1/sandboxes/{id_}"), 404)
        problem(http.delete(f"/v1/sandboxes/{id_}"), 404, 405)
    for id_ in ("exe" + "a" * 26, "x"):
        problem(http.get(f"{path}/execs/{id_}"), 404)
        problem(http.post(f"{path}/execs/{id_}/signal", json={"signal": "TERM"}), 404)
        problem(http.get(f"{path}/execs/{id_}/output"), 404)
        problem(http.get(f"{path}/execs/{id_}/stream"), 404)
    problem(http.get("/nowhere"), 404)
    problem(http.put("/v1/sandboxes"), 405)


def test_signals(http: httpx.Client, sandbox: Sandbox, path: str) -> None:
    process = sandbox.start("sleep", "60")
    for bad in ("SIGNOPE", "", 0, 65, -9, 1.5, None, [], "9 9"):
        problem(http.post(f"{path}/execs/{process.id}/signal", json={"signal": bad}), 422)
    process.kill()
    process.wait()
    assert problem(http.post(f"{path}/execs/{process.id}/signal", json={"signal": 9}), 409)["code"] == "exec_ended"
    assert problem(http.post(f"{path}/execs/{process.id}/stdin", content=b"x"), 409)["code"] == "exec_ended"


def test_queries(http: httpx.Client, path: str) -> None:
    for query in ("limit=0", "limit=x", "state=odd", "cursor=!!!", "cursor=e30", "label=nocolon", "label=%00:%00"):
        answer = http.get(f"/v1/sandboxes?{query}")
        assert answer.status_code in (200, 422), query
    problem(http.get(f"{path}/wait", params={"timeout_s": -1}), 422)
    problem(http.get(f"{path}/files/list", params={"path": "/", "depth": 99}), 422)


def test_keys(server: Server) -> None:
    for headers in (
        {},
        {"Authorization": "Basic eDp5"},
        {"Authorization": "Bearer wrong"},
    ):
        answer = httpx.get(f"{server.url}/v1/sandboxes", headers=headers)
        assert problem(answer, 401)["hint"]
        assert answer.headers["www-authenticate"] == "Bearer"
    for open_ in ("/healthz", "/readyz", "/openapi.json"):
        assert httpx.get(server.url + open_).status_code == 200


def test_a_gigabyte_is_refused_before_it_is_held(server: Server) -> None:
    host, port = server.listen.split(":")
    assert server.process is not None
    before = rss_mb(server.process.pid)
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(
            f"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {1 << 30}\r\n\r\n".encode()
        )
        assert b" 413 " in raw.recv(4096).split(b"\r\n")[0]
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(
            f"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        piece = b"10000\r\n" + b'"' * 65536 + b"\r\n"
        try:
            for _ in range(1024):
                raw.sendall(piece)
        except OSError:
            pass  # it stopped listening: as it should
        assert b" 413 " in raw.recv(4096).split(b"\r\n")[0]
    assert rss_mb(server.process.pid) - before < 64


def rss_mb(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) >> 10


def test_a_body_without_its_content_type_is_told_what_to_send(http: httpx.Client) -> None:
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = http.post("/v1/sandboxes", content=b'{"image": "python"}', headers=headers)
        assert "Content-Type: application/json" in str(problem(answer, 422)["hint"])
    answer = http.post("/v1/sandboxes", content=b"[]", headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert "Content-Type" not in str(problem(answer, 422)["hint"])


def test_a_field_that_there_is_not_is_named(http: httpx.Client) -> None:
    answer = http.post("/v1/sandboxes", json={"memory": 256})
    assert problem(answer, 422)["detail"] == "body.memory: there is no such field here"


def test_metrics_and_openapi(http: httpx.Client, operator: httpx.Client) -> None:
    assert "isobox_sandboxes_created_total" in operator.get("/metrics").text
    assert problem(http.get("/metrics"), 403)["code"] == "operator_key_needed"
    assert problem(operator.get("/v1/sandboxes"), 403)["code"] == "tenant_key_needed"
    document = http.get("/openapi.json").json()
    assert "/v1/sandboxes/{sandbox_id}/exec" in document["paths"]
    json.dumps(document)
