"""What a tenant has is to others as if it were not there: every route of the API, with the ids of somebody else."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from nursery import Nursery
from server import Server

import isobox

THEIRS = "their-key-0123456789"
app = isobox.App("private-app")
DATA = b"private upload"
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
ABSENT = {
    "sandbox_id": "sbx" + "a" * 26,
    "exec_id": "exe" + "a" * 26,
    "context_id": "ctx" + "a" * 26,
    "snapshot_id": "snp" + "a" * 26,
    "image": "img" + "a" * 26,
    "volume": "absent-volume",
    "secret": "absent-secret",
    "function_id": "fun" + "a" * 26,
    "call_id": "cal" + "a" * 26,
    "run_id": "run" + "a" * 26,
    "app": "absent-app",
    "dict": "absent-dict",
    "queue": "absent-queue",
    "digest": "sha256:" + "0" * 64,
}

BODIES: dict[str, Any] = {
    "PATCH /v1/sandboxes/{sandbox_id}": {"labels": {"mine": "now"}},
    "POST /v1/sandboxes/{sandbox_id}/snapshots": {"kind": "filesystem"},
    "POST /v1/sandboxes/{sandbox_id}/fork": {"count": 1},
    "POST /v1/sandboxes/{sandbox_id}/exec": {"argv": ["true"]},
    "POST /v1/sandboxes/{sandbox_id}/execs/{exec_id}/signal": {"signal": "KILL"},
    "POST /v1/sandboxes/{sandbox_id}/contexts": {"language": "python"},
    "POST /v1/sandboxes/{sandbox_id}/contexts/{context_id}/run": {"code": "1"},
    "POST /v1/sandboxes/{sandbox_id}/run": {"code": "1"},
    "POST /v1/sandboxes/{sandbox_id}/files/mkdir": {"path": "/tmp/mine"},
    "POST /v1/sandboxes/{sandbox_id}/files/move": {"path": "/tmp/a", "to": "/tmp/b"},
    "POST /v1/sandboxes/{sandbox_id}/files/copy": {"path": "/tmp/a", "to": "/tmp/b"},
    "POST /v1/sandboxes/{sandbox_id}/files/chmod": {"path": "/tmp/a", "mode": "0600"},
    "POST /v1/sandboxes/{sandbox_id}/files/edit": {"path": "/tmp/a", "edits": [{"old": "a", "new": "b"}]},
    "PUT /v1/sandboxes/{sandbox_id}/network": {"default": "allow"},
    "PUT /v1/secrets/{secret}": {"value": "mine-own"},
    "POST /v1/images/{image}/push": {"reference": "registry.example.com/x:1"},
    "POST /v1/volumes/{volume}/snapshots": {"name": "mine"},
    "POST /v1/volumes/{volume}/restore": {"snapshot": "snp" + "a" * 26},
    "POST /v1/sandboxes/{sandbox_id}/volumes/commit": {"path": "/kept"},
    "POST /v1/sandboxes/{sandbox_id}/volumes/reload": {"path": "/kept"},
    "POST /v1/functions/{function_id}/sandbox": {"timeout_s": 60},
    "POST /v1/functions/{function_id}/calls": {"inputs": [{"data": "altbXSwge31d"}]},
    "POST /v1/calls/{call_id}/inputs": {"first": 0, "inputs": []},
    "PUT /v1/runs/{run_id}": {"app": "private-app"},
    "POST /v1/apps/{app}/deploy": {"functions": {"mine": "{function_id}"}},
    "POST /v1/apps/{app}/rollback": {"version": 1},
    "POST /v1/dicts/{dict}/get": {"keys": ["YQ=="]},
    "POST /v1/dicts/{dict}/put": {"items": [{"key": "YQ==", "value": "YQ=="}]},
    "POST /v1/dicts/{dict}/pop": {"keys": ["YQ=="]},
    "POST /v1/queues/{queue}/put": {"values": ["YQ=="]},
    "POST /v1/queues/{queue}/get": {"count": 1},
}
QUERIES = {
    "GET /v1/images/{image}/diff": {"from": "base"},
    "POST /v1/sandboxes/{sandbox_id}/files/edit": {},
}
MAKES_ITS_OWN = {
    "PUT /v1/secrets/{secret}": 200,
    "PUT /v1/dicts/{dict}": 200,
    "PUT /v1/queues/{queue}": 200,
    "PUT /v1/uploads/{digest}": 422,  # what it holds is not sent here
    "PUT /v1/runs/{run_id}": 409,  # of an id that is in use nobody else can make one; it says no more than that
}
"""A name or id that one tenant has is free for another: what the route answers then."""

OPERATORS = {"POST /v1/gpus/{uuid}/clear", "GET /v1/store/{key}", "GET /metrics"}


@app.function(max_containers=1)
def private_function() -> str:
    return "private result"


def named(path: str) -> str:
    """A path whose parameters say what they are names of."""
    return re.sub(r"/(secret|volume|app|dict|queue)s/\{name\}", r"/\1s/{\1}", path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("two") / "state", nursery, ISOBOX_POOL_FLOOR="0")
    running.state.mkdir()
    (running.state / "keys").write_text(f"other {THEIRS}\n")
    running.start()
    yield running
    with other(running) as http:
        for each in http.get("/v1/sandboxes", params={"state": "running"}).json()["sandboxes"]:
            http.delete(f"/v1/sandboxes/{each['id']}")
    running.end()
    assert '"level": "error"' not in running.log()


def other(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {THEIRS}"}, timeout=60)


@pytest.fixture(scope="module")
def mine(shared: Server) -> dict[str, str]:
    """One of everything, by the parameter of a path that it is for."""
    with shared.client() as http:

        def post(path: str, /, **body: Any) -> Any:
            answer = http.post(path, json=body)
            assert answer.is_success, answer.text
            return answer.json()

        http.put("/v1/secrets/private-secret", json={"value": "private-value"}).raise_for_status()
        http.put(f"/v1/uploads/{DIGEST}", content=DATA).raise_for_status()
        post("/v1/volumes", name="private-volume")
        sandbox = post(
            "/v1/sandboxes",
            image="python",
            name="private name",
            labels={"private": "label"},
            env={"PRIVATE": "private env"},
            volumes={"/kept": {"name": "private-volume"}},
            network={"default": "deny"},
        )["id"]
        path = f"/v1/sandboxes/{sandbox}"
        exec_ = post(f"{path}/exec", argv=["sleep", "600"], wait=False)["id"]
        context = post(f"{path}/contexts", language="python")["id"]
        post(f"{path}/volumes/commit", path="/kept")
        snapshot = post(f"{path}/snapshots", kind="filesystem")["id"]
        image = post("/v1/images", name="private-image", build={"base": "base", "steps": [{"run": "echo > /private"}]})
        assert http.get(f"/v1/images/{image['id']}/wait", params={"timeout_s": 60}).json()["state"] == "ready"
        for kind in ("dict", "queue"):
            http.put(f"/v1/{kind}s/private-{kind}", json={}).raise_for_status()
        post("/v1/dicts/private-dict/put", items=[{"key": "cA==", "value": "cA=="}])
        http.post("/v1/queues/private-queue/put", json={"values": ["cA=="]}).raise_for_status()
        function = app.deploy(url=shared.url, api_key=shared.key)["functions"]["private_function"]["id"]
        call = post(f"/v1/functions/{function}/calls", inputs=[{"data": "altbXSwge31d"}], wait_s=60)
        assert call["complete"], call
        run = "run" + "b" * 26
        http.put(f"/v1/runs/{run}", json={"app": "private-app", "functions": [function]}).raise_for_status()
        return {
            "sandbox_id": sandbox,
            "exec_id": exec_,
            "context_id": context,
            "snapshot_id": snapshot,
            "image": image["id"],
            "volume": "private-volume",
            "secret": "private-secret",
            "function_id": function,
            "call_id": call["id"],
            "run_id": run,
            "app": "private-app",
            "dict": "private-dict",
            "queue": "private-queue",
            "digest": DIGEST,
        }


def routes(server: Server) -> list[tuple[str, str]]:
    """All that the API has; a new one is here by itself."""
    with server.client() as http:
        paths = http.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def ask(http: httpx.Client, method: str, path: str, ids: dict[str, str]) -> tuple[int, str]:
    """The status and what is said, without the ids that were asked for."""
    route = f"{method} {path}"
    fixed = {"port": "8080", "seq": "1", "uuid": "GPU-0", "key": "names/base"}
    url = re.sub(r"\{(\w+)\}", lambda match: (ids | fixed)[match[1]], path)
    query = QUERIES.get(route, {"path": "/tmp/x"} if "/files" in path or "/archive" in path else {})
    body = json.loads(json.dumps(BODIES.get(route)).replace("{function_id}", ids["function_id"]))
    raw = (
        b""
        if body is None and method in ("POST", "PUT", "PATCH") and path.endswith(("/files", "/archive", "/stdin"))
        else None
    )
    answer = http.request(method, url, params=query, json=body if body is not None or raw is not None else {} if method in ("POST", "PUT", "PATCH") and not path.endswith("{digest}") else None, content=raw)  # fmt: skip
    said = answer.text
    for value in ids.values():
        said = said.replace(value, "ID").replace(value[:19], "ID")
    said = re.sub(r'"(request_id|created_at|updated_at)": ?"[^"]*"', r'"\1":""', said)
    return answer.status_code, said


def facts(server: Server, ids: dict[str, str]) -> dict[str, Any]:
    """What the tenant sees of its own."""
    found = {}
    with server.client() as http:
        for path in (
            *(
                "/v1/sandboxes?state=running",
                "/v1/snapshots",
                "/v1/secrets",
                "/v1/images",
                "/v1/volumes",
                "/v1/functions",
            ),
            *("/v1/apps", "/v1/dicts", "/v1/queues", "/v1/dicts/private-dict/items", "/v1/queues/private-queue/items"),
            *(
                f"/v1/sandboxes/{ids['sandbox_id']}/{part}"
                for part in ("execs", "contexts", "network", "files/list?path=/tmp")
            ),
            *(f"/v1/calls/{ids['call_id']}", f"/v1/functions/{ids['function_id']}"),
        ):
            answer = http.get(path)
            assert answer.is_success, (path, answer.text)
            found[path] = answer.json()
        assert http.head(f"/v1/uploads/{ids['digest']}").status_code == 200
    for each in found["/v1/sandboxes?state=running"]["sandboxes"]:
        each.pop("expires_at", None)
    return found


def test_another_tenants_are_as_absent_ones(shared: Server, mine: dict[str, str]) -> None:
    before = facts(shared, mine)
    with other(shared) as http:
        for method, path in ((method, named(path)) for method, path in routes(shared)):
            route = f"{method} {path}"
            status, said = ask(http, method, path, mine)
            if route in OPERATORS:
                assert (status, json.loads(said)["code"]) == (403, "operator_key_needed"), route
            elif route in MAKES_ITS_OWN:
                assert status == MAKES_ITS_OWN[route], (route, said)
            elif set(re.findall(r"\{(\w+)\}", path)) & set(ABSENT):
                # What it made with the same name a moment ago is its own, and no matter here.
                own = re.search(r"/v1/(secrets|dicts|queues)/", path)
                assert status == 404 or (own and status < 500), (route, status, said)
                if not own:
                    assert (status, said) == ask(http, method, path, ABSENT), route
            assert "private" not in said.replace("private-app", "") or route in MAKES_ITS_OWN, (route, said)
            assert not any(value in said for name, value in mine.items() if name.endswith("_id")), route
        http.post("/v1/images/prune").raise_for_status()
    assert facts(shared, mine) == before


def test_lists_and_sums_have_ones_own_alone(shared: Server, mine: dict[str, str]) -> None:
    with other(shared) as http:
        for method, path in routes(shared):
            if method == "GET" and "{" not in path and path.startswith("/v1/"):
                said = http.get(path).text
                assert "private-image" not in said, path
                assert "private_function" not in said, path
                assert "private name" not in said, path
                assert not any(value in said for name, value in mine.items() if name.endswith("_id")), path


def test_the_operator_has_no_tenants_things(shared: Server, mine: dict[str, str]) -> None:
    with shared.operator() as http:
        for method, path in ((method, named(path)) for method, path in routes(shared)):
            if (
                path in ("/healthz", "/readyz", "/metrics")
                or path.startswith("/v1/store")
                or path.endswith(("/clear", "/prune"))
            ):
                continue
            status, said = ask(http, method, path, mine)
            assert status == 403, (method, path, status, said)
            assert not said or json.loads(said)["code"] == "tenant_key_needed"
        assert mine["function_id"] in http.get("/metrics").text


def test_what_each_builds_is_its_own_though_it_is_the_same(shared: Server, mine: dict[str, str]) -> None:
    build = {"base": "base", "steps": [{"run": "echo > /private"}]}

    def made(http: httpx.Client, name: str) -> dict[str, Any]:
        answer = http.post("/v1/images", json={"name": name, "build": build}).json()
        return dict(http.get(f"/v1/images/{answer['id']}/wait", params={"timeout_s": 60}).json())

    with shared.client() as http, other(shared) as theirs:
        image = made(theirs, "mine-too")
        assert image["state"] == "ready"
        sandbox = theirs.post("/v1/sandboxes", json={"image": "mine-too"}).json()["id"]
        theirs.post("/v1/images/prune").raise_for_status()
        again = made(http, "private-again")
        assert "as before" in http.get(f"/v1/images/{again['id']}/log").text, "another tenant's prune keeps my steps"
        in_use = theirs.delete(f"/v1/images/{image['id']}")
        assert (in_use.status_code, in_use.json()["code"]) == (409, "image_in_use")
        assert sandbox in in_use.json()["detail"]
        for own in (again["id"], mine["image"]):
            assert http.delete(f"/v1/images/{own}").status_code == 204, "nobody else's sandbox is in the way"
        done = theirs.post(f"/v1/sandboxes/{sandbox}/exec", json={"argv": ["ls", "/private"]}).json()
        assert done["outcome"]["exit_code"] == 0
        second = theirs.post("/v1/sandboxes", json={"image": "mine-too"})
        assert second.status_code == 201, second.text
        for id_ in (sandbox, second.json()["id"]):
            theirs.delete(f"/v1/sandboxes/{id_}")
        with shared.operator() as operator:
            operator.post("/v1/images/prune").raise_for_status()
