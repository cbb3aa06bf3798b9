"""One of each thing that the API knows, of one tenant's; and what fields of requests may sensibly hold."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fuzzed_app import app
from server import Server, until

SECOND_KEY = "isobox_second_tenant_0123456789abcdef0123456789"


@dataclass(frozen=True, slots=True)
class Scene:
    """ids: by the name of a path's parameter, for one operation or another; known: see `odd_requests.Generator`."""

    ids: dict[str, str]
    known: dict[str, list[Any]]


def second_tenant(state: Path) -> None:
    """Give the server in this state directory another tenant, before it starts."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    (state / "keys").write_text(f"second {SECOND_KEY}\n")
    (state / "keys").chmod(0o600)


def small_archive() -> bytes:
    """A tar archive of one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("hello.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
    return packed.getvalue()


def end_everything(http: httpx.Client) -> None:
    """Let nothing run any more, though a function that was asked for would begin another container at once."""
    for function in http.get("/v1/functions").json()["functions"]:
        http.delete(f"/v1/functions/{function['id']}").raise_for_status()

    def is_empty() -> bool:
        found = [
            sandbox["id"]
            for state in ("creating", "running", "paused")
            for sandbox in http.get("/v1/sandboxes", params={"state": state, "limit": 500}).json()["sandboxes"]
        ]
        for id_ in found:
            http.delete(f"/v1/sandboxes/{id_}")
        containers = http.get("/v1/functions").json()["functions"]
        return not found and not any(each["containers"] or each["queued"] or each["running"] for each in containers)

    until(is_empty, timeout=60)


@contextmanager
def scene(server: Server, http: httpx.Client) -> Iterator[Scene]:
    """Make it; what it made that would not go with the server's sandboxes goes at the end."""

    def made(method: str, path: str, **options: Any) -> Any:
        answer = http.request(method, path, **options)
        assert answer.status_code < 300, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    archive = small_archive()
    upload = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    made("PUT", f"/v1/uploads/{upload}", content=archive)
    made("POST", "/v1/volumes", json={"name": "vol"})
    made("PUT", "/v1/volumes/vol/archive", content=archive)
    volume_snapshot = made("POST", "/v1/volumes/vol/snapshots", json={"name": "kept"})["snapshots"][0]["id"]
    made("PUT", "/v1/secrets/sec", json={"value": "user:password"})
    made("PUT", "/v1/dicts/things", json={})
    made("POST", "/v1/dicts/things/put", json={"items": [{"key": "YQ==", "value": "YQ=="}]})
    made("PUT", "/v1/queues/things", json={})
    made("POST", "/v1/queues/things/put", json={"values": ["YQ=="]})
    sandbox = made(
        "POST",
        "/v1/sandboxes",
        json={
            "name": "scene",
            "labels": {"kind": "scene"},
            "timeout_s": 3000,
            "volumes": {"/vol": {"name": "vol"}},
            "network": "none",
        },
    )["id"]
    below = f"/v1/sandboxes/{sandbox}"
    exec_ = made("POST", f"{below}/exec", json={"argv": ["seq", "10"]})["id"]
    running = made("POST", f"{below}/exec", json={"argv": ["cat"], "stdin": True, "wait": False})["id"]
    made("PUT", f"{below}/files", params={"path": "/tmp/f"}, content=b"0123456789")
    made(
        "POST",
        f"{below}/exec",
        json={"argv": ["python3", "-m", "http.server", "8000"], "workdir": "/tmp", "wait": False},
    )
    made("GET", f"{below}/ports/8000/wait")
    context = made("POST", f"{below}/contexts", json={})["id"]
    run = made("POST", f"{below}/contexts/{context}/run", json={"code": "1 + 1"})["id"]
    snapshot = made("POST", f"{below}/snapshots", json={"kind": "filesystem", "name": "kept"})["id"]
    image = made("POST", "/v1/images", json={"name": "img", "snapshot": snapshot})["id"]
    assert made("GET", f"/v1/images/{image}/wait")["state"] == "ready"
    app.deploy("fuzzed", url=server.url, api_key=server.key)
    function = made("GET", "/v1/apps/fuzzed")["functions"]["double"]["id"]
    call = made("POST", f"/v1/functions/{function}/calls", json={"inputs": []})["id"]
    run_id = "run" + "b" * 26
    made("PUT", f"/v1/runs/{run_id}", json={"app": "fuzzed", "functions": [function]})
    ids = {
        "sandbox_id": sandbox, "exec_id": exec_, "context_id": context, "snapshot_id": snapshot, "image": image, "function_id": function,
        "call_id": call, "run_id": run_id, "seq": "1", "digest": upload, "uuid": "GPU-0", "port": "8000", "key": "names/img",
    }  # fmt: skip
    known = _known(ids, running=running, run=run, volume_snapshot=volume_snapshot, archive=archive)
    try:
        yield Scene(ids, known)
    finally:
        http.post("/v1/apps/fuzzed/stop", json={})
        http.delete(f"/v1/runs/{ids['run_id']}")


def _known(
    ids: dict[str, str], *, running: str, run: str, volume_snapshot: str, archive: bytes
) -> dict[str, list[Any]]:
    return {name: [value] for name, value in ids.items()} | {
        "path exec_id": [ids["exec_id"], running, run],
        "exec_id": [ids["exec_id"], "exe" + "e" * 26],
        "uuid": ["GPU-0"],
        "seq": [0, 1],
        "port": [8000, 8001],
        "key": ["names/img", "names/python", "images/x"],
        "older": ["python", ids["image"]],
        "from": [0, 1, "python"],
        "cursor": [],
        "path": ["/tmp", "/tmp/f", "/home/user", "/vol", "/nope"],
        "to": ["/tmp/g", "/tmp/h/i"],
        "path_b64": ["L3RtcC9m"],
        "user": ["user", "root", "1000:1000", "nobody-here"],
        "workdir": ["/tmp"],
        "name": ["vol", "sec", "things", "fuzzed", "img", "double"],
        "app": ["fuzzed"],
        "function": ["double", "page"],
        "functions": [[ids["function_id"]], {"double": ids["function_id"]}],
        "image": ["python", ids["image"]],
        "base": ["python", "img"],
        "snapshot": [ids["snapshot_id"], volume_snapshot, True, False],
        "code": ["1 + 1", "print('x')", ids["digest"]],
        "entry": [{}],
        "upload": [ids["digest"]],
        "command": [["true"]],
        "argv": [["true"], ["echo", "hi"], ["no-such-program"]],
        "shell": ["exit 3", "echo hi"],
        "run": [ids["run_id"], "true"],
        "code_": ["1"],
        "wait": [True, False],
        "wait_s": [0],
        "timeout_s": [1000, 3000],
        "query timeout_s": [0, 0.1],
        "period_s": [3600],
        "cron": ["0 9 * * 1"],
        "timezone": ["UTC"],
        "idle_timeout_s": [500],
        "park_after_s": [500],
        "memory_mb": [128],
        "disk_mb": [64],
        "cpu": [0.5],
        "pids": [64],
        "quota_mb": [1],
        "gpu": [None],
        "count": [1],
        "min_containers": [0],
        "buffer_containers": [0],
        "max_containers": [1],
        "more": [False],
        "limit": [1, 500],
        "depth": [1, 2],
        "max_output_bytes": [0, 100],
        "signal": ["TERM", 10, "0"],
        "language": ["python", "ruby"],
        "reference": ["No Reference"],
        "registry": [{"reference": "127.0.0.1:1/x/y:z"}],
        "endpoint": ["http://127.0.0.1:1"],
        "bucket": ["bucket"],
        "preset": ["none"],
        "host": ["example.com", "*.example.com"],
        "cidr": ["203.0.113.0/24"],
        "ports": [[80], ["8000-8100"]],
        "proto": ["tcp"],
        "secret": ["sec"],
        "header": ["authorization"],
        "format": ["Bearer {}"],
        "methods": [["GET"]],
        "state": ["running", "terminated"],
        "stdin": ["typed", True],
        "format_": ["tar"],
        "mode": ["644", "0755"],
        "edits": [[{"old": "0", "new": "1"}]],
        "label": [["kind:scene"]],
        "labels": [{"kind": "scene"}],
        "env": [{"A": "b"}],
        "secrets": [{"TOKEN": "sec"}],
        "steps": [[{"run": "true"}], [{"env": {"A": "b"}}]],
        "volumes": [{"/data": {"name": "vol", "read_only": True}}],
        "buckets": [{}],
        "keys": [["YQ=="]],
        "values": [["YQ=="]],
        "items": [[{"key": "YQ==", "value": "YQ=="}]],
        "data": ["YQ=="],
        "inputs": [[], [{"data": "YQ=="}]],
        "token": ["0123456789abcdef"],
        "value": ["a-long-value"],
        "bytes": [archive, b"bytes"],
        "id": ["cal" + "c" * 26],
        "Range": ["bytes=0-1"],
        "Last-Event-ID": [0],
        "since": [0],
        "until": [1e11],
        "after": [0],
        "text": [
            "text", "a", "/a", "A", "8000-8100", "sha256:" + "0" * 64, "exe" + "d" * 26, "fun" + "d" * 26, "run" + "d" * 26, "cal" + "d" * 26,
            "snp" + "d" * 26, "644", "http://127.0.0.1:1", "any", "0123456789abcdef", "names/python",
        ],
    }  # fmt: skip
