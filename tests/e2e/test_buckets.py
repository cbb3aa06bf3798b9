"""Buckets as folders of sandboxes, over a real S3 server."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import httpx
import pytest
from bucket import S3Server
from server import Server, until
from test_image_api import free_port

import isobox
from isobox import Bucket, Sandbox

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    running = S3Server(free_port())
    yield running
    running.end()


@pytest.fixture(scope="module")
def ending() -> Iterator[S3Server]:
    """One that a test ends."""
    running = S3Server(free_port())
    yield running
    running.end()


@pytest.fixture(scope="module")
def client(s3: S3Server) -> Iterator[object]:
    found = boto3.session.Session().client(
        "s3", endpoint_url=s3.url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    yield found
    found.close()


@pytest.fixture(scope="module")
def server(s3: S3Server, ending: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that may speak to the buckets' servers."""
    running = Server(tmp_path_factory.mktemp("buckets") / "state", ISOBOX_BUCKETS=f"{s3.url},{ending.url}").start()
    try:
        keep_secrets(running)
        yield running
    finally:
        running.end()


def keep_secrets(server: Server) -> None:
    with server.client() as http:
        for name in ("s3-id", "s3-key"):
            assert http.put(f"/v1/secrets/{name}", json={"value": "test-credential"}).status_code in (200, 201)


def where(server: Server) -> dict[str, str]:
    return {"url": server.url, "api_key": server.key}


def bucket(s3: S3Server, **more: object) -> Bucket:
    return Bucket("images", endpoint=s3.url, access_key="s3-id", secret_key="s3-key", **more)  # type: ignore[arg-type]


GONE_AT_ONCE = """
import os
for each in range(40):
    open(f"/out/gone{each}", "w").close()
    os.unlink(f"/out/gone{each}")
"""


def sh(sandbox: Sandbox, command: str) -> str:
    return sandbox.exec("sh", "-c", command).check().stdout


def test_what_lies_there_is_read_and_nothing_else(server: Server, s3: S3Server, client: object) -> None:
    put = client.put_object  # type: ignore[attr-defined]
    data = os.urandom(3 << 20)
    put(Bucket="images", Key="in/large", Body=data)
    put(Bucket="images", Key="in/deep/er/x y+ü%2F&=.txt", Body=b"odd\n")
    put(Bucket="images", Key="in/../out", Body=b"never a name")
    put(Bucket="images", Key="in/a//b", Body=b"never a name")
    put(Bucket="images", Key="secret", Body=b"beside the prefix")
    mounted = {"/mnt/data": bucket(s3, prefix="in")}
    with Sandbox.create("python", volumes=mounted, **where(server)) as sandbox:
        assert sh(sandbox, "cd /mnt/data && find . -type f | sort") == "./deep/er/x y+ü%2F&=.txt\n./large\n"
        assert sh(sandbox, "cat '/mnt/data/deep/er/x y+ü%2F&=.txt'") == "odd\n"
        assert sandbox.files.read("/mnt/data/large") == data
        assert sh(sandbox, "tail -c 5 /mnt/data/large | od -An -tx1 | tr -d ' \\n'") == data[-5:].hex()
        assert sh(sandbox, "stat -c '%s %U %a' /mnt/data/large") == f"{len(data)} user 444\n"
        refused = sandbox.exec("sh", "-c", "echo x > /mnt/data/new")
        assert "Permission denied" in refused.stderr or "Read-only" in refused.stderr
        assert sandbox.exec("ls", "/mnt/data/../data/none").exit_code != 0
        put(Bucket="images", Key="in/later", Body=b"later\n")
        until(lambda: sandbox.exec("cat", "/mnt/data/later").stdout == "later\n")
        assert "credential" not in sh(sandbox, "env; cat /proc/self/mounts")


def test_what_is_written_becomes_objects(server: Server, s3: S3Server, client: object) -> None:
    def get(key: str) -> bytes:
        return bytes(client.get_object(Bucket="images", Key=f"out/{key}")["Body"].read())  # type: ignore[attr-defined]

    mounted = {"/out": bucket(s3, prefix="out/", read_only=False)}
    with Sandbox.create("python", volumes=mounted, **where(server)) as sandbox:
        sh(sandbox, "cd /out && echo one > a && mkdir -p d/e && echo two > d/e/b && cp -p a d/c && touch empty")
        assert sh(sandbox, "cd /out && cat a d/e/b d/c && find . | sort | tr '\\n' ' '") == (
            "one\ntwo\none\n. ./a ./d ./d/c ./d/e ./d/e/b ./empty "
        )
        sh(sandbox, "cd /out && echo more >> a && truncate -s 2 d/c && mv d/e/b d/moved && mv d/moved top")
        sandbox.run("import os; fd = os.open('/out/both', os.O_RDWR | os.O_CREAT); os.write(fd, b'0123456789')")
        assert sandbox.run("os.pwrite(fd, b'xy', 3); os.pread(fd, 100, 0)").text == "b'012xy56789'"
        assert sh(sandbox, "cat /out/both") == "012xy56789"  # not closed, and seen by all inside
        with pytest.raises(client.exceptions.NoSuchKey):  # type: ignore[attr-defined]
            get("both")
        sandbox.run("os.close(fd)")
        until(lambda: client.list_objects_v2(Bucket="images", Prefix="out/both")["KeyCount"] == 1)  # type: ignore[attr-defined]
        assert get("both") == b"012xy56789"
        assert sandbox.exec("rmdir", "/out/d").exit_code != 0
        sandbox.run(GONE_AT_ONCE)
        sh(sandbox, "rm /out/empty; cd /out && mv d f && dd if=/dev/zero of=large bs=1000000 count=70 status=none")
    assert (get("a"), get("f/c"), get("top")) == (b"one\nmore\n", b"on", b"two\n")
    assert len(get("large")) == 70_000_000
    keys = [each["Key"] for each in client.list_objects_v2(Bucket="images", Prefix="out/")["Contents"]]  # type: ignore[attr-defined]
    assert sorted(keys) == ["out/a", "out/both", "out/f/", "out/f/c", "out/f/e/", "out/large", "out/top"]


def test_what_is_on_its_way_may_be_opened_and_renamed(server: Server, s3: S3Server, client: object) -> None:
    mounted = {"/b": bucket(s3, prefix="way", read_only=False)}

    def while_on_its_way(sandbox: Sandbox, names: str, command: str) -> None:
        """Run a command while files of one letter are being stored, by a store that takes a second."""
        sandbox.run(f"files = [open('/b/' + name, 'w') for name in {names!r}]")
        sandbox.run(f"for name, file in zip({names!r}, files): file.write('old ' + name)")
        goes_on = threading.Timer(1, s3.process.send_signal, [signal.SIGCONT])
        s3.process.send_signal(signal.SIGSTOP)
        goes_on.start()
        try:
            assert sandbox.run("for file in files: file.close()").error is None
            done = sandbox.exec(shell=command)
        finally:
            goes_on.join()
        assert (done.exit_code, done.stderr) == (0, "")

    with Sandbox.create("python", volumes=mounted, **where(server)) as sandbox:
        while_on_its_way(sandbox, "a", "printf new > /b/a")
        while_on_its_way(sandbox, "c", "printf +more >> /b/c")
        while_on_its_way(sandbox, "d", "mv /b/d /b/e")
        while_on_its_way(sandbox, "fg", "mv -f /b/f /b/g")
        while_on_its_way(sandbox, "h", "rm /b/h")
        assert sh(sandbox, "cd /b; tail -n +1 * | grep .") == (
            "==> a <==\nnew\n==> c <==\nold c+more\n==> e <==\nold d\n==> g <==\nold f\n"
        )
    stored = client.list_objects_v2(Bucket="images", Prefix="way/")["Contents"]  # type: ignore[attr-defined]
    assert [each["Key"] for each in stored] == ["way/a", "way/c", "way/e", "way/g"]


def test_copies_pauses_and_a_killed_server_go_on(s3: S3Server, own_server: Server) -> None:
    own_server.environment["ISOBOX_BUCKETS"] = s3.url
    own_server.start()
    keep_secrets(own_server)
    mounted = {"/b": bucket(s3, prefix="moves", read_only=False)}
    with Sandbox.create("python", volumes=mounted, **where(own_server)) as sandbox:
        sh(sandbox, "head -c 2000000 /dev/zero > /b/zeros; echo hello > /b/greeting")
        sandbox.run("reading = open('/b/zeros', 'rb'); first = len(reading.read(1000))")
        sandbox.run("writing = open('/b/begun', 'w'); writing.write('before '); writing.flush()")
        for child in sandbox.fork(2):
            with child:
                assert child.run("len(reading.read())").text == "1999000"
                assert sh(child, "cat /b/greeting") == "hello\n"
                refused = child.run("writing.write('x'); writing.flush()").error
                assert refused is not None  # ESTALE, of which gVisor of 2024 makes EIO (fuse/read_write.go)
                assert "[Errno 5]" in refused.message or "[Errno 116]" in refused.message
        sandbox.pause()
        sandbox.resume()
        assert sandbox.run("reading.seek(0); len(reading.read(5000))").text == "5000"
        own_server.kill()
        own_server.start()
        assert sandbox.run("reading.seek(0); len(reading.read())").text == "2000000"
        assert sandbox.run("writing.write('after'); writing.close()").error is None
        assert sh(sandbox, "cat /b/begun") == "before after"
        kept = sandbox.snapshot(kind="filesystem")
        with Sandbox.create(snapshot=kept.id, **where(own_server)) as laid_out:
            assert sh(laid_out, "cat /b/begun") == "before after"


def test_what_was_closed_arrives_whoever_dies(s3: S3Server, client: object, own_server: Server) -> None:
    own_server.environment["ISOBOX_BUCKETS"] = s3.url
    own_server.start()
    keep_secrets(own_server)
    mounted = {"/b": bucket(s3, prefix="late", read_only=False)}
    sandbox = Sandbox.create("python", volumes=mounted, **where(own_server))
    program = "file = open('/b/kept', 'w'); file.write('kept\\n'); print('open'); input(); file.close()"
    closing = sandbox.start("python3", "-uc", program)
    until(lambda: closing.output() == b"open\n")
    s3.process.send_signal(signal.SIGSTOP)
    try:
        closing.write("\n")  # a newer runsc waits for the answer to a close, 20240729 does not
        spools = own_server.state / "buckets" / sandbox.id
        until(lambda: any('"upload": true' in each.read_text() for each in spools.glob("*/*.json")))
        own_server.kill()
    finally:
        s3.process.send_signal(signal.SIGCONT)
    own_server.start()

    def arrived() -> bool:
        return client.list_objects_v2(Bucket="images", Prefix="late/kept")["KeyCount"] == 1  # type: ignore[attr-defined]

    until(arrived)
    assert closing.wait().exit_code == 0
    assert sh(sandbox, "cat /b/kept") == "kept\n"
    sandbox.terminate()
    sandbox.close()
    until(lambda: not spools.exists())


def test_a_bucket_that_fails_says_so(server: Server, ending: S3Server) -> None:
    mounted = {"/b": bucket(ending, read_only=False)}
    with Sandbox.create("python", volumes=mounted, **where(server)) as sandbox:
        assert "No such file" in sandbox.exec("cat", "/b/x").stderr
        sandbox.run("file = open('/b/z', 'w'); file.write('never stored')")
        ending.end()
        for _ in range(3):
            assert "Input/output error" in sandbox.exec("cat", "/b/y").stderr
        sandbox.run("file.close()")
        told = []
        for event in sandbox.events():
            if event.type == "bucket_failed":
                told.append((event.info["path"], event.info["file"], event.info["detail"]))
                if event.info["file"]:
                    break
    assert ("/b", "") in [each[:2] for each in told]
    assert len(told) <= 4, told
    assert told[-1][:2] == ("/b", "z")
    assert told[-1][2].startswith("it was not stored: bucket images does not answer: ")


class EndlessListing(BaseHTTPRequestHandler):
    """Answers with a page of a name, and that there is more."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Endless)
        self.server.asked += 1
        size, when = "<Size>1</Size>", "<LastModified>2026-01-02T03:04:05Z</LastModified>"
        key = f"<Contents><Key>n{self.server.asked}</Key>{size}{when}</Contents>"
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{self.server.asked}</NextContinuationToken>"
        body = f"<ListBucketResult>{key}{more}</ListBucketResult>".encode()
        with contextlib.suppress(ConnectionError):  # whoever asked has hung up
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None: ...


class Endless(ThreadingHTTPServer):
    """An S3 server whose listings have no end."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked = 0
        super().__init__(("127.0.0.1", 0), EndlessListing)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self.thread.start()

    def end(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


def is_quiet(endless: Endless, http: httpx.Client) -> bool:
    """Whether it is asked nothing while the server answers some requests."""
    asked = endless.asked
    for _ in range(10):
        assert http.get("/readyz").status_code == 200
    return endless.asked == asked


def test_a_listing_without_an_end_keeps_neither_its_sandbox_nor_the_server_from_ending(own_server: Server) -> None:
    endless = Endless()
    try:
        own_server.environment["ISOBOX_BUCKETS"] = endless.url
        mounted = {"/b": Bucket("endless", endpoint=endless.url)}
        for ends_first in ("sandbox", "server"):
            own_server.start()
            sandbox = Sandbox.create("python", volumes=mounted, **where(own_server))
            sandbox.start("ls", "/b")
            begun = endless.asked
            until(lambda begun=begun: endless.asked > begun + 5)
            if ends_first == "sandbox":
                sandbox.terminate()
                with own_server.client() as http:
                    until(lambda http=http: is_quiet(endless, http))
            own_server.stop()
            sandbox.close()
    finally:
        endless.end()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"bucket": "none"}, "NoSuchBucket"),
        ({"endpoint": "http://127.0.0.1:9"}, "ISOBOX_BUCKETS=http://127.0.0.1:9"),
        ({"endpoint": "https://127.0.0.1:9"}, "has a private address"),
        ({"access_key": "absent"}, "no secret absent"),
        ({"secret_key": None}, "secret_key is missing"),
        ({"prefix": "../x"}, "a prefix is names"),
        ({"prefix": "/x"}, "a prefix is names"),
        ({"endpoint": "http://user:word@127.0.0.1"}, "pattern"),
        ({"bucket": "a/b"}, "pattern"),
    ],
)
def test_buckets_that_cannot_be(server: Server, s3: S3Server, asked: dict[str, str | None], words: str) -> None:
    given = bucket(s3).as_asked() | asked
    with server.client() as http:
        answer = http.post("/v1/sandboxes", json={"image": "base", "buckets": {"/b": given}})
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"] + answer.json()["hint"]


def test_a_link_that_came_with_files_leads_no_mount_astray(server: Server, s3: S3Server) -> None:
    mounted = {"/home/user/deep/b": bucket(s3)}
    with Sandbox.create("python", volumes=mounted, **where(server)) as sandbox:
        sandbox.exec(shell="cd /home/user && mv deep was && ln -s /etc deep").check()
        snapshot = sandbox.snapshot(kind="filesystem")
    with pytest.raises(isobox.ApiError, match="nothing can be mounted at /home/user/deep/b"):
        Sandbox.create(snapshot=snapshot.id, **where(server))


def test_a_path_that_cannot_be_mounted(server: Server, s3: S3Server) -> None:
    with pytest.raises(isobox.InvalidRequest, match="nothing can be mounted at /etc/passwd"):
        Sandbox.create("base", volumes={"/etc/passwd": bucket(s3)}, **where(server))
    with httpx.Client() as http:
        assert http.get(s3.url).status_code == 200
