"""Volumes: files that outlive sandboxes."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server import Server

import isobox
from isobox import Sandbox, Volume


@pytest.fixture
def names() -> Iterator[str]:
    return (f"v{os.urandom(4).hex()}" for _ in range(100))


def where(server: Server) -> dict[str, str]:
    return {"url": server.url, "api_key": server.key}


def test_what_is_committed_is_there_for_the_next(server: Server, names: Iterator[str]) -> None:
    volume = Volume.create(next(names), **where(server))
    with Sandbox.create("base", volumes={"/data/deep": volume}, **where(server)) as first:
        first.exec(
            "sh", "-c", "cd /data/deep && echo 1 > a && mkdir d && ln -s ../a d/l && chmod 700 a && id -u"
        ).check()
        with Sandbox.create(
            "base", volumes={"/data": {"name": volume.name, "read_only": True}}, **where(server)
        ) as reader:
            assert reader.exec("ls", "/data").stdout == ""
            first.commit("/data/deep")
            assert reader.exec("ls", "/data").stdout == ""
            reader.reload("/data")
            assert reader.exec("ls", "/data").stdout == "a\nd\n"
            assert "Permission denied" in reader.exec("sh", "-c", "echo 2 > /data/b").stderr
            with pytest.raises(isobox.ConflictError, match="read-only"):
                reader.commit("/data")
        first.exec("sh", "-c", "echo lost > /data/deep/uncommitted").check()
    with Sandbox.create("base", volumes={"/v": volume.name}, **where(server)) as second:
        assert (
            second.exec("sh", "-c", "cd /v && ls -A && cat d/l && stat -c '%a %u' . a && echo 2 >> a").stdout
            == "a\nd\n1\n755 1000\n700 1000\n"
        )
        second.reload("/v")
        assert second.files.read("/v/a") == b"1\n"
        with pytest.raises(isobox.NotFound, match="no volume lies at /w"):
            second.commit("/w")
    volume.delete()


def test_a_link_in_the_place_of_a_volume_leads_nowhere(server: Server, names: Iterator[str]) -> None:
    volume = Volume.create(next(names), **where(server))
    with Sandbox.create("base", volumes={"/home/user/deep/v": volume}, **where(server)) as sandbox:
        sandbox.exec(shell="echo 1 > /home/user/deep/v/a").check()
        sandbox.commit("/home/user/deep/v")
        etc = sandbox.exec(shell="ls /etc | sort; cat /etc/passwd", user="root").check().stdout
        for trick in (
            # What root made may be moved away all the same: the folder above is the user's.
            "cd /home/user && mv deep was && mkdir deep && ln -s /etc deep/v",
            "cd /home/user && rm -rf deep && ln -s / deep && ln -s /etc v",
            "cd /home/user && rm -rf deep && ln -s . deep && rm v && ln -s /etc v",
            "cd /home/user && rm -rf deep && mkdir deep && mkfifo deep/v",
        ):
            sandbox.exec(shell=trick).check()
            for deed in (sandbox.reload, sandbox.commit):
                with pytest.raises(isobox.ConflictError, match="a link or a file lies at"):
                    deed("/home/user/deep/v")
        assert sandbox.exec(shell="ls /etc | sort; cat /etc/passwd", user="root").stdout == etc
        sandbox.exec(shell="cd /home/user && rm -rf deep && mkdir -p deep/v").check()
        sandbox.reload("/home/user/deep/v")
        assert sandbox.files.read("/home/user/deep/v/a") == b"1\n"
    with Sandbox.create("base", volumes={"/var/run/v": volume.name}, **where(server)) as other:
        assert other.exec("cat", "/run/v/a").stdout == "1\n", "a link of the image's own is followed"


def test_one_writer_at_a_time(server: Server, http: httpx.Client, names: Iterator[str]) -> None:
    volume = Volume.create(next(names), **where(server))
    with Sandbox.create("base", volumes={"/v": volume}, **where(server)) as writer:
        for busy in (
            lambda: Sandbox.create("base", volumes={"/v": volume}, **where(server)),
            volume.delete,
            lambda: volume.upload(__file__),
        ):
            with pytest.raises(isobox.ConflictError, match=f"sandbox {writer.id} has volume"):
                busy()
        before = {each["id"] for each in http.get("/v1/sandboxes", params={"state": "running"}).json()["sandboxes"]}
        assert writer.id in before
        child = writer.fork()[0]
        with child, pytest.raises(isobox.NotFound):
            child.commit("/v")
        writer.exec("sh", "-c", "echo x > /v/x").check()
        writer.commit("/v")
    with Sandbox.create("base", volumes={"/v": volume}, **where(server)) as next_writer:
        assert next_writer.files.read("/v/x") == b"x\n"
    volume.delete()


def test_without_a_sandbox(server: Server, names: Iterator[str], tmp_path: Path) -> None:
    volume = Volume.create(next(names), **where(server))
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/f").write_text("one")
    volume.upload(tmp_path / "in")
    (tmp_path / "in/sub/f").write_text("two")
    kept = volume.snapshot("first")
    volume.upload(tmp_path / "in", "/copy")
    assert sorted(each.path for each in volume.files()) == ["/copy", "/sub"]
    assert (volume.read("/sub/f"), volume.read("/copy/sub/f")) == (b"one", b"two")
    volume.download(tmp_path / "out")
    assert (tmp_path / "out/copy/sub/f").read_text() == "two"
    volume.restore(kept)
    assert [each.path for each in volume.files()] == ["/sub"]
    assert [each.name for each in Volume.list(**where(server)) if each.name == volume.name]
    with pytest.raises(isobox.NotFound):
        volume.read("/none")
    with Sandbox.create("base", volumes={"/v": volume}, **where(server)) as sandbox:
        assert sandbox.exec("sh", "-c", "cat /v/sub/f; echo more > /v/sub/g").stdout == "one"
    volume.delete()
    with pytest.raises(isobox.NotFound):
        Volume.get(volume.name, **where(server))


def test_a_quota_and_archives_that_are_refused(http: httpx.Client, names: Iterator[str]) -> None:
    name = next(names)
    assert http.post("/v1/volumes", json={"name": name, "quota_mb": 1}).status_code == 201
    assert http.post("/v1/volumes", json={"name": name}).json()["code"] == "name_taken"

    def put(*members: tuple[str, bytes]) -> httpx.Response:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for each, data in members:
                info = tarfile.TarInfo(each)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return http.put(f"/v1/volumes/{name}/archive", content=raw.getvalue())

    assert put(("small", b"1")).status_code == 200
    full = put(("large", os.urandom(2 << 20)))
    assert (full.status_code, full.json()["code"]) == (507, "store_full")
    assert "quota_mb" in full.json()["hint"]
    assert put(("../out", b"1")).json()["code"] == "image_invalid"
    assert http.put(f"/v1/volumes/{name}/archive", content=b"no tar").json()["code"] == "image_invalid"
    assert [each["name"] for each in http.get(f"/v1/volumes/{name}/files/list").json()["entries"]] == ["small"]
    for path in ("data", "/", "//x"):
        assert http.post("/v1/sandboxes", json={"volumes": {path: {"name": name}}}).json()["code"] == "invalid_request"
    missing = http.post("/v1/sandboxes", json={"image": "base", "volumes": {"/v": {"name": "no-such"}}})
    assert missing.json()["code"] == "volume_not_found"
    assert http.delete(f"/v1/volumes/{name}").status_code == 204


def test_a_restart_keeps_volumes_and_their_writers(own_server: Server) -> None:
    own_server.start()
    volume = Volume.create("kept", **where(own_server))
    sandbox = Sandbox.create("base", volumes={"/v": volume}, **where(own_server))
    sandbox.exec("sh", "-c", "echo 1 > /v/a").check()
    sandbox.commit("/v")
    own_server.kill()
    own_server.start()
    sandbox.exec("sh", "-c", "echo 2 > /v/a").check()
    sandbox.commit("/v")
    assert volume.read("/a") == b"2\n"
    sandbox.terminate()
    sandbox.close()


def test_by_hand(server: Server, names: Iterator[str], tmp_path: Path) -> None:
    def cli(*argv: str) -> str:
        environment = os.environ | {"ISOBOX_URL": server.url, "ISOBOX_API_KEY": server.key, "NO_COLOR": "1"}
        command = [sys.executable, "-m", "isobox.cli.main", "volume", *argv]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout

    name = next(names)
    (tmp_path / "f").write_text("by hand\n")
    assert cli("create", name) == f"{name}\n"
    cli("put", name, str(tmp_path / "f"), "/in")
    assert cli("cat", name, "/in/f") == "by hand\n"
    assert "in" in cli("ls", name)
    assert name in cli("ls")
    kept = cli("snapshot", name, "one").strip()
    cli("restore", name, kept)
    cli("get", name, str(tmp_path / "out"))
    assert (tmp_path / "out/in/f").read_text() == "by hand\n"
    cli("rm", name)
