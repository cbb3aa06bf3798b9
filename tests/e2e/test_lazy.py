"""Images that lie in a store elsewhere: served part by part, over a real S3 server, a folder and another node."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bucket import S3Server
from machine import release
from server import Server, until
from test_image_api import free_port

from fs.store.remote import open_store
from isobox import Sandbox
from isobox.errors import NotFound

CACHE = Path(os.environ.get("ISOBOX_CACHE", "/var/cache/isobox"))
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3Server]:
    running = S3Server(free_port())
    yield running
    running.end()


@contextmanager
def fresh_machine(folder: Path, **environment: str) -> Iterator[Server]:
    """A server whose cache holds the programs, and not one image."""
    cache = folder / "cache"
    cache.mkdir(parents=True)
    for name in ("runsc", "init", "platform.json"):
        if (CACHE / name).exists():
            (cache / name).symlink_to(CACHE / name)
    running = Server(folder / "state", ISOBOX_CACHE=str(cache), ISOBOX_POOL_FLOOR="0", **environment).start()
    try:
        yield running
    finally:
        running.end()


def publish(name: str, url: str, **environment: str) -> None:
    argv = [sys.executable, "-m", "isobox.cli.main", "image", "publish", name, url]
    subprocess.run(argv, check=True, capture_output=True, env=os.environ | environment)


@pytest.fixture(scope="module")
def far(bucket: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that knows images only by the bucket they lie in."""
    publish("base", "s3://images/shared", **bucket.environment)
    with fresh_machine(
        tmp_path_factory.mktemp("far"), ISOBOX_STORES="s3://images/shared", **bucket.environment
    ) as running:
        yield running


def cached(server: Server) -> int:
    folder = Path(server.environment["ISOBOX_CACHE"]) / "lazy"
    return sum(path.stat().st_size for path in folder.glob("*/*"))


def lazy_pid(server: Server) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"fs.lazy.process" in line and str(server.state).encode() in line:
                return int(entry.name)
    raise AssertionError("no process serves lazy images")


def test_only_what_is_read_is_fetched(far: Server) -> None:
    with Sandbox.create("base", url=far.url, api_key=far.key) as sandbox:
        assert sandbox.exec("sh", "-c", "echo hello; cat /etc/debian_version /etc/hosts").exit_code == 0
        size = next(each for each in far_images(far) if each["name"] == "base")["size_bytes"]
        assert 0 < cached(far) < size * 0.2
        # All of it, byte for byte what a local image has.
        script = "cd /usr; find . -xdev -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
        there = sandbox.exec("sh", "-c", script, timeout_s=120).stdout
    with Sandbox.create("base", url=far.url, api_key=far.key) as again:
        assert again.exec("sh", "-c", script, timeout_s=120).stdout == there
    assert not (Path(far.environment["ISOBOX_CACHE"]) / "images/store/packs").exists() or cached(far) > size * 0.2


def far_images(server: Server) -> list[dict[str, object]]:
    with server.client() as http:
        return list(http.get("/v1/images").json()["images"])


def test_the_same_bytes_as_at_home(far: Server, server: Server) -> None:
    sums = []
    for each in (far, server):
        with Sandbox.create("base", url=each.url, api_key=each.key) as sandbox:
            sums.append(sandbox.exec("sh", "-c", "cat /usr/bin/* /usr/lib/*/lib* 2>/dev/null | sha256sum").stdout)
    assert sums[0] == sums[1]


def test_what_no_store_has(far: Server) -> None:
    with pytest.raises(NotFound, match="no image 'no-such'"):
        Sandbox.create("no-such", url=far.url, api_key=far.key)


def test_a_step_over_an_image_that_lies_elsewhere(far: Server) -> None:
    from isobox import Image

    image = Image.base("base").run("echo built > /built")
    with Sandbox.create(image, url=far.url, api_key=far.key) as sandbox:
        assert sandbox.exec("cat", "/built", "/etc/debian_version").stdout.startswith("built\n")


def test_a_store_that_goes_away_is_an_error_and_no_hang(bucket: S3Server, tmp_path: Path) -> None:
    publish("base", "s3://images/away", **bucket.environment)
    with (
        fresh_machine(tmp_path, ISOBOX_STORES="s3://images/away", **bucket.environment) as far,
        Sandbox.create("base", url=far.url, api_key=far.key) as sandbox,
    ):
        everything = "cat /usr/lib/x86_64-linux-gnu/*.so* /usr/bin/* > /dev/null"
        sandbox.exec("sh", "-c", f"dd if=/etc/hosts of=/dev/null; : {everything}; cat /etc/hosts").check()
        read = ("dd", "if=/usr/bin/perl", "of=/dev/null", "bs=64k")
        bucket.process.send_signal(signal.SIGSTOP)
        try:
            # A short while is waited for …
            waiting = sandbox.start(*read)
            time.sleep(3)
            bucket.process.send_signal(signal.SIGCONT)
            assert waiting.wait().exit_code == 0
            # … a long one fails the read, or, where runsc knows no error of a mapping (20240729), ends the sandbox with
            # the reason.
            bucket.process.send_signal(signal.SIGSTOP)
            reading = sandbox.start("sh", "-c", everything)

            if release() >= 20250101:
                until(lambda: b"Input/output error" in reading.output("stderr"), timeout=90)
                bucket.process.send_signal(signal.SIGCONT)
                assert sandbox.exec(*read).exit_code == 0, "it goes on"
            else:
                until(lambda: sandbox.refresh().termination is not None, timeout=90)
                ended = sandbox.refresh().termination
                assert ended is not None
                assert ended["reason"] == "lost"
                assert "a part of its image cannot be had" in ended["detail"]
        finally:
            bucket.process.send_signal(signal.SIGCONT)


def test_sandboxes_outlive_the_process_and_the_server(bucket: S3Server, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    publish("base", str(folder))
    publish("python", str(folder))
    assert json.loads((folder / "names/base").read_text())["name"] == "base"
    with fresh_machine(tmp_path / "far", ISOBOX_STORES=str(folder)) as far:
        sandbox = Sandbox.create("base", url=far.url, api_key=far.key)
        sandbox.exec("sh", "-c", "echo hello").check()
        for _ in range(3):
            os.kill(lazy_pid(far), signal.SIGKILL)
            assert sandbox.exec("sh", "-c", "cat /usr/lib/x86_64-linux-gnu/*.so* | wc -c", timeout_s=60).exit_code == 0
        far.kill()
        os.kill(lazy_pid(far), signal.SIGKILL)
        far.start()
        assert sandbox.exec("sh", "-c", "cat /usr/bin/* | wc -c", timeout_s=60).exit_code == 0
        sandbox.terminate()
        sandbox.close()
    assert str(far.state) not in Path("/proc/self/mountinfo").read_text()


def test_from_another_node(server: Server, tmp_path: Path) -> None:
    with Sandbox.create("base", url=server.url, api_key=server.key):
        pass  # so that the node has it
    with (
        fresh_machine(tmp_path, ISOBOX_STORES=server.url, ISOBOX_STORES_KEY=server.operator_key) as far,
        Sandbox.create("base", url=far.url, api_key=far.key) as sandbox,
    ):
        assert sandbox.exec("sh", "-c", "echo from afar").stdout == "from afar\n"
    os.environ["ISOBOX_STORES_KEY"] = server.operator_key
    try:
        with contextlib.closing(open_store(server.url)) as node:
            assert node.get("names/base") is not None
            assert node.get("names/no-such") is None
            assert node.get("images/" + "0" * 64) is None
            assert node.get("packs/" + "0" * 64) is None
    finally:
        del os.environ["ISOBOX_STORES_KEY"]


def test_a_store_with_wrong_keys(server: Server, tmp_path: Path) -> None:
    with fresh_machine(tmp_path, ISOBOX_STORES=server.url, ISOBOX_STORES_KEY="wrong") as far, far.client() as http:
        answer = http.post("/v1/sandboxes", json={"image": "base"})
        assert answer.json()["code"] == "registry_unreachable"
        assert "ISOBOX_STORES_KEY" in answer.json()["hint"]
