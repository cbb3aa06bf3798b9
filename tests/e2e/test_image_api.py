"""/v1/images: pulled from a real registry, built in sandboxes, made of snapshots, pushed, deleted."""

import gzip
import hashlib
import io
import json
import os
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from registry import registry
from server import Server

from isobox import Sandbox

CACHE = Path(os.environ.get("ISOBOX_CACHE", "/var/cache/isobox"))
PROGRAM = CACHE / "testing/docker-registry"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def layer(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(contents), 0o755
            tar.addfile(info, io.BytesIO(contents))
        for info in more:
            tar.addfile(info)
    return raw.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Origin:
    """What a stranger's image is made of: blobs and manifests by digest."""

    def __init__(self, *layers: bytes, config: dict[str, Any] | None = None) -> None:
        packed = [gzip.compress(each, 1, mtime=0) for each in layers]
        said = {
            "architecture": "amd64",
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(each) for each in layers]},
        }
        raw = json.dumps(said).encode()
        self.blobs = {digest(each): each for each in [raw, *packed]}
        descriptors = [
            {"mediaType": f"{MANIFEST}.layer+gzip", "digest": digest(each), "size": len(each)} for each in packed
        ]
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {
                    "digest": digest(raw),
                    "size": len(raw),
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                },
                "layers": descriptors,
            }
        ).encode()
        self.layers = [digest(each) for each in packed]

    def put(self, base: str, name: str, tag: str, *, index: bool = False, **options: Any) -> None:
        """Send it to a registry, the way any other client would."""
        with httpx.Client(base_url=base, **options) as http:
            for key, data in self.blobs.items():
                place = http.post(f"/v2/{name}/blobs/uploads/").headers["location"]
                mark = "&" if "?" in place else "?"
                assert http.put(f"{place}{mark}digest={key}", content=data).status_code == 201
            version = digest(self.manifest) if index else tag
            assert (
                http.put(
                    f"/v2/{name}/manifests/{version}", content=self.manifest, headers={"Content-Type": MANIFEST}
                ).status_code
                == 201
            )
            if index:
                kinds = [
                    {
                        "mediaType": MANIFEST,
                        "digest": digest(self.manifest),
                        "size": len(self.manifest),
                        "platform": {"os": "linux", "architecture": kind},
                    }
                    for kind in ("amd64",)
                ]
                listing = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": kinds}).encode()
                assert (
                    http.put(
                        f"/v2/{name}/manifests/{tag}", content=listing, headers={"Content-Type": INDEX}
                    ).status_code
                    == 201
                )


@pytest.fixture(scope="module")
def ports() -> tuple[int, int, int]:
    return free_port(), free_port(), free_port()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, ports: tuple[int, int, int]) -> Iterator[Server]:
    """A server whose operator allows two registries on loopback and a strange one."""
    folder = tmp_path_factory.mktemp("images")
    allowed = ",".join(f"http://127.0.0.1:{port}" for port in ports)
    running = Server(folder / "state", ISOBOX_REGISTRIES=allowed, ISOBOX_POOL_FLOOR="0").start()
    yield running
    with running.client() as http:
        for image in http.get("/v1/images", params={"limit": 500}).json()["images"]:
            if "machine" not in image["source"]:
                http.delete(f"/v1/images/{image['id']}")
    running.end()


@pytest.fixture(scope="module")
def http(images: Server) -> Iterator[httpx.Client]:
    with images.client() as client:
        yield client


@pytest.fixture(scope="module")
def plain(ports: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry(PROGRAM, tmp_path_factory.mktemp("registry"), ports[0]) as found:
        yield found


def make(http: httpx.Client, name: str, **source: Any) -> dict[str, Any]:
    answer = http.post("/v1/images", json={"name": name, **source})
    assert answer.status_code == 202, answer.text
    for _ in range(10):
        found = http.get(f"/v1/images/{answer.json()['id']}/wait", params={"timeout_s": 30}).json()
        if found["state"] != "building":
            return dict(found)
    raise AssertionError("it did not end")


def told(http: httpx.Client, image: str) -> str:
    """All that was told while it was made."""
    lines = []
    with http.stream("GET", f"/v1/images/{image}/log") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                lines.append(str(data.get("data", "")))
    return "".join(lines)


def root_of(server: Server) -> dict[str, bytes]:
    """A small root file system that runs: a shell and what it needs, out of the image base."""
    with Sandbox.create("base", url=server.url, api_key=server.key) as found:
        needed = "/bin/sh /bin/cat /usr/bin/id " + found.exec(
            "sh", "-c", "ldd /bin/sh /bin/cat /usr/bin/id | grep -o '/[^ ]*' | sort -u"
        ).stdout.replace("\n", " ")
        return {path.lstrip("/"): found.files.read(path) for path in sorted(set(needed.replace(":", "").split()))}


@pytest.fixture(scope="module")
def root(images: Server) -> dict[str, bytes]:
    return root_of(images)


@pytest.mark.timeout(300)
def test_an_image_is_pulled_and_runs(http: httpx.Client, images: Server, plain: str, root: dict[str, bytes]) -> None:
    above = layer({"greeting": b"hello\n", "etc/.wh.gone": b"", "bin/su": b"x"})
    config = {"Env": ["GREETING=hi there", "PATH=/bin:/usr/bin"], "WorkingDir": "/etc"}
    Origin(layer(root | {"etc/gone": b"1"}), above, config=config).put(f"http://{plain}", "team/app", "1.0", index=True)
    found = make(http, "app", registry={"reference": f"{plain}/team/app:1.0"})
    assert found["state"] == "ready", found
    assert found["config"]["env"]["GREETING"] == "hi there"
    log = told(http, found["id"])
    assert "layer 2 of 2" in log
    with Sandbox.create("app", url=images.url, api_key=images.key) as sandbox:
        assert sandbox.exec("sh", "-c", "cat /greeting; echo $GREETING; cd /etc; echo *; pwd").stdout.splitlines()[
            :2
        ] == ["hello", "hi there"]
        assert sandbox.exec("sh", "-c", "pwd; echo *").stdout.split()[0] == "/etc"
        assert "gone" not in sandbox.exec("sh", "-c", "echo /etc/*").stdout
        assert http.delete(f"/v1/images/{found['id']}").json()["code"] == "image_in_use"
    assert http.delete(f"/v1/images/{found['id']}").status_code == 204
    assert http.get("/v1/images/app").status_code == 404


def test_with_a_password(
    http: httpx.Client, ports: tuple[int, int, int], tmp_path: Path, root: dict[str, bytes]
) -> None:
    with registry(PROGRAM, tmp_path, ports[1], password=True) as host:
        Origin(layer({"a": b"1"})).put(f"http://{host}", "secret/app", "latest", auth=("user", "secret"))
        refused = make(http, "closed", registry={"reference": f"{host}/secret/app"})
        assert refused["failure"]["code"] == "image_failed"
        assert "user and password" in refused["failure"]["hint"]
        http.put("/v1/secrets/registry", json={"value": "user:secret"}).raise_for_status()
        http.put("/v1/secrets/wrong", json={"value": "user:wrong"}).raise_for_status()
        assert (
            make(http, "closed", registry={"reference": f"{host}/secret/app", "secret": "wrong"})["state"] == "failed"
        )
        opened = make(http, "closed", registry={"reference": f"{host}/secret/app", "secret": "registry"})
        assert opened["state"] == "ready"
        pushed = http.post("/v1/images/closed/push", json={"reference": f"{host}/secret/copy:2", "secret": "registry"})
        assert pushed.status_code == 200, pushed.text
        again = make(
            http, "again", registry={"reference": f"{host}/secret/copy@{pushed.json()['digest']}", "secret": "registry"}
        )
        assert again["state"] == "ready"
        assert again["digest"] == opened["digest"]


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("ubuntu", "image_invalid", "no image in a registry"),
        ("team/app:1", "image_invalid", "no image in a registry"),
        ("127.0.0.1:1/app", "image_invalid", "private address"),
        ("localhost:5000/app", "image_invalid", "private address"),
        ("169.254.169.254/latest/meta-data", "image_invalid", "private address"),
        ("[::1]:5000/app", "image_invalid", "private address"),
        ("no-such-host.invalid/app", "registry_unreachable", "no host"),
        ("example.com/../etc", "image_invalid", "no image in a registry"),
    ],
)
def test_references_that_lead_nowhere(http: httpx.Client, reference: str, code: str, words: str) -> None:
    found = make(http, "nowhere", registry={"reference": reference})
    assert found["failure"]["code"] == code
    assert words in found["failure"]["detail"]


def test_what_is_not_there(http: httpx.Client, plain: str) -> None:
    found = make(http, "missing", registry={"reference": f"{plain}/no/such:tag"})
    assert found["failure"]["code"] == "image_not_found"
    assert http.post("/v1/sandboxes", json={"image": "missing"}).status_code == 404
    assert http.post("/v1/sandboxes", json={"image": found["id"]}).json()["code"] == "image_not_ready"


class Strange(ThreadingHTTPServer):
    """A registry that does what it is told to, the wire being the place for fakes."""

    def __init__(self, port: int, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def __enter__(self) -> "Strange":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def test_by_token_with_a_broken_download_that_is_taken_up_again(
    http: httpx.Client, ports: tuple[int, int, int]
) -> None:
    origin, ranges = Origin(layer({"noise": os.urandom(3 << 20)})), []

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path.startswith("/token"):
            assert "scope=repository%3Aapp%3Apull" in request.path
            reply(request, 200, b'{"token": "abc"}')
        elif request.headers.get("Authorization") != "Bearer abc":
            reply(
                request, 401, WWW_Authenticate=f'Bearer realm="http://127.0.0.1:{ports[2]}/token",service="s",scope="x"'
            )
        elif "/manifests/" in request.path:
            reply(request, 200, origin.manifest, Content_Type=MANIFEST)
        else:
            blob = origin.blobs[request.path.rpartition("/")[2]]
            begin = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            if len(blob) > 1 << 20:
                ranges.append(begin)
            if begin == 0 and len(blob) > 1 << 20:
                request.send_response(200)
                request.send_header("Content-Length", str(len(blob)))
                request.end_headers()
                request.wfile.write(blob[: 1 << 20])
                request.close_connection = True
            else:
                reply(request, 206 if begin else 200, blob[begin:])

    with Strange(ports[2], answer):
        found = make(http, "token", registry={"reference": f"127.0.0.1:{ports[2]}/app"})
    assert found["state"] == "ready", found
    assert ranges[0] == 0
    assert 0 < ranges[1] <= 1 << 20


def test_a_pull_of_what_never_comes_ends_when_its_image_is_deleted(
    http: httpx.Client, ports: tuple[int, int, int]
) -> None:
    origin, begun, left = Origin(layer({"a": b"1"})), threading.Event(), threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        if "/manifests/" in request.path:
            reply(request, 200, origin.manifest)
            return
        request.send_response(200)
        request.end_headers()
        begun.set()
        try:
            while not left.wait(0.01):
                request.wfile.write(b" ")
        except OSError:
            left.set()

    with Strange(ports[2], answer):
        asked = {"name": "never", "registry": {"reference": f"127.0.0.1:{ports[2]}/app"}}
        id_ = http.post("/v1/images", json=asked).raise_for_status().json()["id"]
        assert begun.wait(30)
        assert http.delete(f"/v1/images/{id_}").status_code == 204
        assert left.wait(30)
    assert http.get(f"/v1/images/{id_}").status_code == 404


def test_a_layer_of_nothing_that_reads_as_a_pebibyte(http: httpx.Client, ports: tuple[int, int, int]) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("holes")
        info.pax_headers = {"GNU.sparse.size": str(1 << 50), "GNU.sparse.numblocks": "0", "GNU.sparse.map": "0,0"}
        tar.addfile(info)
    origin = Origin(raw.getvalue())

    def answer(request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        reply(request, 200, origin.manifest if "/manifests/" in request.path else origin.blobs[name])

    with Strange(ports[2], answer):
        found = make(http, "holes", registry={"reference": f"127.0.0.1:{ports[2]}/app"})
    assert found["failure"]["code"] == "image_invalid"
    assert "unpacks to more than" in found["failure"]["detail"]


def test_a_password_goes_to_no_host_that_the_user_did_not_name(http: httpx.Client, ports: tuple[int, int, int]) -> None:
    origin, heard = Origin(layer({"a": b"1"})), []
    elsewhere = f"127.0.0.1:{ports[1]}"

    def other(request: BaseHTTPRequestHandler) -> None:
        heard.append((request.command, request.headers.get("Authorization")))
        request.rfile.read(int(request.headers.get("Content-Length", "0")))
        reply(request, 201 if request.command == "PUT" else 200, b'{"token": "abc"}')

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.headers.get("Authorization") != "Bearer abc":
            reply(request, 401, WWW_Authenticate=f'Bearer realm="http://{elsewhere}/token",service="s"')
        elif request.command == "HEAD":
            reply(request, 404)
        elif request.command == "POST":
            reply(request, 202, Location=f"http://{elsewhere}/upload?to=here")
        elif request.command == "PUT":
            request.rfile.read(int(request.headers.get("Content-Length", "0")))
            reply(request, 201)
        elif "/manifests/" in request.path:
            reply(request, 200, origin.manifest, Content_Type=MANIFEST)
        else:
            reply(request, 200, origin.blobs[request.path.rpartition("/")[2]])

    http.put("/v1/secrets/mine", json={"value": "user:secret"}).raise_for_status()
    source = {"reference": f"127.0.0.1:{ports[2]}/app", "secret": "mine"}
    with Strange(ports[2], answer), Strange(ports[1], other):
        failure = make(http, "asks", registry=source)["failure"]
        assert failure["code"] == "image_invalid"
        assert failure["detail"] == f"127.0.0.1:{ports[2]} wants the password to be sent to {elsewhere}"
        assert "auth_host" in failure["hint"]
        assert heard == []
        assert make(http, "asks", registry=source | {"auth_host": elsewhere})["state"] == "ready"
        assert heard == [("GET", "Basic dXNlcjpzZWNyZXQ=")]
        heard.clear()
        refused = http.post("/v1/images/asks/push", json=source)
        assert (refused.status_code, refused.json()["code"]) == (422, "image_invalid")
        assert heard == []
        http.post("/v1/images/asks/push", json=source | {"auth_host": elsewhere}).raise_for_status()
        assert heard == [("GET", "Basic dXNlcjpzZWNyZXQ="), ("PUT", None), ("PUT", None)]


@pytest.mark.parametrize("harm", ["layer", "config", "manifest", "redirect", "circle", "kind", "huge", "json", "diff"])
def test_a_registry_that_lies(http: httpx.Client, ports: tuple[int, int, int], harm: str) -> None:
    origin = Origin(layer({"a": b"1"}))
    version = digest(origin.manifest) if harm == "manifest" else "latest"
    if harm == "diff":
        raw = json.dumps({"rootfs": {"diff_ids": ["sha256:" + "0" * 64]}}).encode()
        manifest = json.loads(origin.manifest)
        manifest["config"] = {"digest": digest(raw), "size": len(raw)}
        origin.blobs[digest(raw)], origin.manifest = raw, json.dumps(manifest).encode()

    def answer(request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        if "/manifests/" in request.path:
            body = {
                "manifest": b"{}",
                "json": b"no json",
                "huge": b"x" * (9 << 20),
                "kind": b'{"manifests": [{"platform": {"os": "linux", "architecture": "arm64"}}]}',
            }.get(harm, origin.manifest)
            reply(request, 200, body)
        elif harm == "redirect":
            reply(request, 307, Location="http://169.254.169.254/latest/meta-data")
        elif harm == "circle":
            reply(request, 307, Location=request.path)
        elif (name in origin.layers) == (harm == "layer"):
            reply(request, 200, b"x" * len(origin.blobs[name]) if harm in ("layer", "config") else origin.blobs[name])
        else:
            reply(request, 200, origin.blobs[name])

    with Strange(ports[2], answer):
        found = make(
            http,
            "lies",
            registry={"reference": f"127.0.0.1:{ports[2]}/app" + (f"@{version}" if harm == "manifest" else "")},
        )
    words = {
        "layer": "not what its digest says",
        "config": "not what its manifest says",
        "manifest": "another manifest",
        "redirect": "private address",
        "circle": "in a circle",
        "kind": "not made for linux/amd64",
        "huge": "longer than",
        "json": "no JSON",
        "diff": "not what the image's config says",
    }
    assert words[harm] in found["failure"]["detail"]


@pytest.mark.timeout(300)
def test_an_image_is_built_step_by_step_and_steps_are_kept(http: httpx.Client, images: Server) -> None:
    steps: list[dict[str, Any]] = [
        {"env": {"WHO": "me"}},
        {"run": "echo made by $WHO > /made; date +%N > /moment; rm /etc/issue"},
        {"workdir": "/app/deep"},
        {"run": "pwd > where; chmod 4755 /bin/true"},
    ]
    first = make(http, "built", build={"base": "python", "steps": steps})
    assert first["state"] == "ready", first
    assert "step 2 of 4" in told(http, first["id"])
    again = make(http, "built", build={"base": "python", "steps": [*steps, {"run": "echo more > /more"}]})
    assert told(http, again["id"]).count("as before") == 3
    with (
        Sandbox.create("built", url=images.url, api_key=images.key) as sandbox,
        Sandbox.create(first["id"], url=images.url, api_key=images.key) as older,
    ):
        assert sandbox.exec(
            "sh", "-c", "cat /made /more where; pwd; echo $WHO; ls /etc/issue 2>&1 | wc -l"
        ).stdout.splitlines() == ["made by me", "more", "/app/deep", "/app/deep", "me", "1"]
        assert sandbox.files.read("/moment") == older.files.read("/moment")
        assert older.exec("cat", "/more").exit_code == 1


@pytest.mark.timeout(300)
def test_a_step_that_fails_shows_why(http: httpx.Client) -> None:
    found = make(http, "broken", build={"steps": [{"run": "true"}, {"run": "python3 -c 'import no_such_module'"}]})
    assert found["state"] == "failed"
    failure = found["failure"]
    assert (failure["code"], failure["step"], failure["exit_code"]) == ("step_failed", 2, 1)
    assert failure["error"]["name"] == "ModuleNotFoundError"
    assert "ModuleNotFoundError" in told(http, found["id"])
    assert http.get("/v1/sandboxes", params={"state": "running"}).json()["sandboxes"] == []


def test_a_snapshot_of_files_becomes_an_image(http: httpx.Client, images: Server) -> None:
    with Sandbox.create("base", url=images.url, api_key=images.key, env={"A": "b"}) as sandbox:
        sandbox.files.write("/home/user/kept", "yes")
        snapshot = sandbox.snapshot(kind="filesystem")
        memory = sandbox.snapshot()
    found = make(http, "of-snapshot", snapshot=snapshot.id)
    assert found["state"] == "ready", found
    assert http.post("/v1/images", json={"name": "x", "snapshot": memory.id}).json()["code"] == "snapshot_kind"
    for each in (snapshot, memory):
        http.delete(f"/v1/snapshots/{each.id}")
    with Sandbox.create("of-snapshot", url=images.url, api_key=images.key) as sandbox:
        assert sandbox.files.read("/home/user/kept") == b"yes"
        assert sandbox.exec("sh", "-c", "echo $A").stdout == "b\n"


def test_requests_that_make_no_image(http: httpx.Client) -> None:
    def code(**body: Any) -> str:
        return str(http.post("/v1/images", json=body).json()["code"])

    assert code(name="x") == "invalid_request"
    assert code(name="Bad Name", build={}) == "invalid_request"
    assert code(name="python", build={}) == "name_taken"
    assert code(name="x", build={"base": "no-such"}) == "image_not_found"
    assert code(name="x", snapshot="snp" + "a" * 26) == "snapshot_not_found"
    assert code(name="x", registry={"reference": "h.example/x", "secret": "none"}) == "secret_not_found"
    assert code(name="x", build={"steps": [{"walk": "x"}]}) == "invalid_request"
    assert http.get("/v1/images/img" + "a" * 26).status_code == 404
    assert http.post("/v1/sandboxes", json={"image": "step." + "a" * 40}).json()["code"] == "image_not_found"


@pytest.mark.timeout(300)
def test_a_server_killed_in_the_middle_of_a_build(own_server: Server) -> None:
    own_server.start()
    with own_server.client() as http:
        answer = http.post("/v1/images", json={"name": "slow", "build": {"steps": [{"run": "sleep 60"}]}}).json()
        for _ in range(200):
            if http.get("/v1/sandboxes", params={"state": "running"}).json()["sandboxes"]:
                break
    own_server.kill()
    own_server.start()
    with own_server.client() as http:
        found = http.get(f"/v1/images/{answer['id']}").json()
        assert found["failure"]["code"] == "server_restarted"
        assert "server_restarted" in http.get(f"/v1/images/{answer['id']}/log").text
        assert http.get("/v1/sandboxes", params={"state": "running"}).json()["sandboxes"] == []
